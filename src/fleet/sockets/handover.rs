//! A value and descriptors, handed to another process over a socket that keeps datagrams apart. The first descriptor is
//! a file in memory with the value as JSON; several come in a datagram. One with [`END`] and none follows them.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::iter::once;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::datagram::{self, MAX_FDS};

/// The maximum of descriptors.
const MOST: usize = 2048;
const FDS: &[u8] = b"+";
const END: &[u8] = b"\n";
const SIGN_OF_LIFE: &[u8] = b".";

/// Hands this over.
pub fn send(to: BorrowedFd<'_>, value: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut file = File::from(memfd_create(c"wshd handover", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(value)?)?;
    let all: Vec<BorrowedFd<'_>> = once(file.as_fd()).chain(fds.iter().copied()).collect();
    all.chunks(MAX_FDS).try_for_each(|fds| datagram::send(to, FDS, fds))?;
    datagram::send(to, END, &[])
}

/// Says that it will come.
pub fn go_on(to: BorrowedFd<'_>) -> io::Result<()> {
    datagram::send(to, SIGN_OF_LIFE, &[])
}

/// What has come so far.
#[derive(Debug, Default)]
pub struct Received(Vec<OwnedFd>);

impl Received {
    /// Takes the next datagram; whether it was the last. `UnexpectedEof`: no more will come.
    pub fn take(&mut self, from: BorrowedFd<'_>) -> io::Result<bool> {
        let mut bytes = [0; 8];
        let received = datagram::receive_all(from, &mut bytes, MAX_FDS)?;
        self.0.extend(received.fds);
        match bytes.get(..received.size) {
            Some(b"") => Err(io::ErrorKind::UnexpectedEof.into()),
            _ if self.0.len() > MOST => Err(io::ErrorKind::InvalidData.into()),
            text => Ok(text == Some(END)),
        }
    }

    /// The value, and the descriptors in their order.
    pub fn open<T: DeserializeOwned>(self) -> Result<(T, Vec<OwnedFd>), String> {
        let failed = |error: &dyn std::fmt::Display| format!("what was handed over cannot be read: {error}");
        let mut fds = self.0.into_iter();
        let mut file = File::from(fds.next().ok_or_else(|| failed(&"it is missing"))?);
        let mut text = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(|error| failed(&error))?;
        let value = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
        Ok((value, fds.collect()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_value_comes_with_any_number_of_descriptors() {
        let (ours, theirs) = datagram::pair().unwrap();
        let files = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let fds: Vec<_> = (0..MAX_FDS + 1).map(|index| files[index % 2].as_fd()).collect();
        let mut received = Received::default();
        go_on(theirs.as_fd()).unwrap();
        assert!(!received.take(ours.as_fd()).unwrap());
        assert_eq!(received.take(ours.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        send(theirs.as_fd(), &("a value", 7), &fds).unwrap();
        while !received.take(ours.as_fd()).unwrap() {}
        let (value, fds): ((String, u32), _) = received.open().unwrap();
        assert_eq!((value, fds.len()), (("a value".to_owned(), 7), MAX_FDS + 1));
        let inode = |fd: OwnedFd| File::from(fd).metadata().unwrap().ino();
        let inodes = files.map(|file| inode(file.into()));
        assert!(fds.into_iter().map(inode).zip(inodes.into_iter().cycle()).all(|(one, other)| one == other));
        drop(theirs);
        assert_eq!(Received::default().take(ours.as_fd()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(Received::default().open::<()>().unwrap_err().contains("missing"));
    }
}
