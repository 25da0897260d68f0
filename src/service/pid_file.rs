//! The pid file: it is there, whole and locked while its server serves, so that another one that is told the same file
//! does not start. Locks as fcntl(2) has them belong to the supervisor alone: not to its workers, nor to what a handler
//! starts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Why there is no pid file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another server has it.
    #[error("--pid-file {}: another server, process {holder}, holds it", path.display())]
    Held {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        holder: i32,
    },
    /// It can not be written.
    #[error("--pid-file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A pid file, or before the server serves, what will be one.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    /// Under another name until it is placed.
    passing: PathBuf,
    /// Locked.
    file: File,
    is_placed: bool,
}

/// How often a file that comes and goes is looked at.
const TRIES: u32 = 8;

impl PidFile {
    /// Finds out that no other server holds the file, and that one can be written.
    pub fn prepare(path: &Path) -> Result<Self, Error> {
        if let Some(holder) =
            open(path).and_then(|file| try_lock(&file)).map_err(|source| io_at(path, source))?
        {
            return Err(Error::Held { path: path.to_owned(), holder });
        }
        Self::write(path)
    }

    /// The same for a server that takes over from another one, which holds the file.
    pub fn write(path: &Path) -> Result<Self, Error> {
        let failed = |source| io_at(path, source);
        let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::IsADirectory.into()))?;
        let passing = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        let _ = fs::remove_file(&passing); // of a process that had this number and was killed
        // create_new follows no link that somebody has put there.
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o644).open(&passing).map_err(failed)?;
        let written = writeln!(file, "{}", std::process::id()).and_then(|()| try_lock(&Some(&file)));
        if let Err(error) = written {
            let _ = fs::remove_file(&passing);
            return Err(failed(error));
        }
        Ok(Self { path: path.to_owned(), passing, file, is_placed: false })
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The server serves. A file that a server has left behind makes way, one that is held does not.
    pub fn place(&mut self) -> Result<(), Error> {
        for _ in 0..TRIES {
            match fs::hard_link(&self.passing, &self.path) {
                Ok(()) => {
                    let _ = fs::remove_file(&self.passing);
                    self.is_placed = true;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(io_at(&self.path, source)),
            }
            let existing = open(&self.path).map_err(|source| io_at(&self.path, source))?;
            if let Some(holder) = try_lock(&existing).map_err(|source| io_at(&self.path, source))? {
                return Err(Error::Held { path: self.path.clone(), holder });
            }
            // Ours to replace if it is still the one that was locked.
            if existing.is_some_and(|existing| is_at(&existing, &self.path)) {
                return self.take_over();
            }
        }
        Err(io_at(&self.path, io::ErrorKind::ResourceBusy.into()))
    }

    /// The same, whoever holds the file: that server knows.
    pub fn take_over(&mut self) -> Result<(), Error> {
        fs::rename(&self.passing, &self.path).map_err(|source| io_at(&self.path, source))?;
        self.is_placed = true;
        Ok(())
    }

    /// Whether it is still the one that was placed.
    pub fn is_there(&self) -> bool {
        is_at(&self.file, &self.path)
    }

    /// The server ends, or does not come to serve. Leaves the file of a successor alone.
    pub fn remove(&self) {
        let path = if self.is_placed { &self.path } else { &self.passing };
        if is_at(&self.file, path) {
            let _ = fs::remove_file(path); // it is stale, which the next server finds out
        }
    }
}

fn io_at(path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}

/// What is there, if anything.
fn open(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Locks the whole file, for as long as it is open. Who holds it if that is somebody else.
fn try_lock(file: &Option<impl std::os::fd::AsFd>) -> io::Result<Option<i32>> {
    let Some(file) = file else { return Ok(None) };
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_SETLK(&lock)) {
        Ok(_) => Ok(None),
        Err(Errno::EACCES | Errno::EAGAIN) => {
            fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
            Ok(Some(lock.l_pid))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether this is the file of this name.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |file: fs::Metadata| (file.dev(), file.ino());
    file.metadata().ok().map(id).is_some_and(|ours| path.symlink_metadata().ok().map(id) == Some(ours))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    // Locks of one process do not hold it back: what a second server finds is in tests/daemon.rs.
    #[test]
    fn it_appears_whole_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let mut file = PidFile::prepare(&path).unwrap();
        assert!(!path.exists(), "not before it serves");
        file.place().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(files(dir.path()), ["pid"]);
        file.remove();
        assert_eq!(files(dir.path()), [""; 0]);
    }

    #[test]
    fn what_a_server_has_left_behind_makes_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "1\n").unwrap();
        let mut file = PidFile::prepare(&path).unwrap();
        file.place().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_server_that_does_not_come_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        PidFile::prepare(&dir.path().join("pid")).unwrap().remove();
        assert_eq!(files(dir.path()), [""; 0]);
    }

    #[test]
    fn the_file_of_a_successor_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let mut old = PidFile::prepare(&path).unwrap();
        old.place().unwrap();
        let mut new = PidFile::write(&path).unwrap();
        new.take_over().unwrap();
        old.remove();
        assert!(path.exists());
        new.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_link_or_a_place_that_can_not_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("pid");
        std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
        let error = PidFile::prepare(&link).unwrap_err().to_string();
        assert!(error.starts_with(&format!("--pid-file {}: ", link.display())), "{error}");
        assert!(PidFile::prepare("/nowhere/pid".as_ref()).is_err());
        assert!(PidFile::prepare("/".as_ref()).is_err());
    }
}
