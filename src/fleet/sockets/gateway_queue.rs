//! The queue in which gateways leave connections for the workers of the default pool. A datagram is one connection: a
//! preamble, and the descriptor that the worker is to serve. The workers share the receiving end as they share a
//! listening socket, so what waits in it outlives a worker that dies; the gateways have the sending end, and nobody
//! else could write a preamble.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::datagram;
use super::facts::{GatewayFacts, MAX_FACTS};
use super::queue::SocketQueue;

/// The form of a preamble: another number whenever it changes, so that different versions of the server do not misread
/// each other.
pub const FORMAT: u32 = 0x7773_6701;
/// Wanted for the send buffer; the kernel may give less, but its default holds two of the largest preambles.
const SEND_BUFFER: usize = 1024 * 1024;
/// Bytes of a preamble: its fixed part, an address as text and the facts.
pub const MAX_PREAMBLE: usize = 12 + 64 + MAX_FACTS;

/// Random bytes that the gateways of a server share; no secret on their own.
pub type Salt = [u8; 32];

/// A new, empty one. [supervisor]
pub fn create() -> io::Result<SocketQueue> {
    SocketQueue::with_room(SEND_BUFFER)
}

/// What a worker is told of a connection before its first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preamble<'a> {
    /// The peer, or whom a trusted proxy has named.
    pub peer: Option<SocketAddr>,
    /// [`GatewayFacts`] as bytes.
    pub facts: &'a [u8],
}

impl<'a> Preamble<'a> {
    /// Leaves a connection for a worker. `WouldBlock`: the queue is full. [gateway]
    pub fn send(&self, tx: BorrowedFd<'_>, connection: BorrowedFd<'_>) -> io::Result<()> {
        let peer = self.peer.map(|peer| peer.to_string()).unwrap_or_default();
        let sizes = [FORMAT, peer.len() as u32, self.facts.len() as u32];
        let mut bytes: Vec<u8> = sizes.into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.extend_from_slice(peer.as_bytes());
        bytes.extend_from_slice(self.facts);
        datagram::send(tx, &bytes, &[connection])
    }

    /// The next connection. `WouldBlock` when there is none; `InvalidData`: something else was in the queue, and is not
    /// any more; `UnexpectedEof`: nobody has the other end. [worker]
    pub fn receive(rx: impl AsFd, bytes: &'a mut [u8]) -> io::Result<(Self, OwnedFd)> {
        let (size, connection) = datagram::receive(rx.as_fd(), bytes)?;
        if size == 0 && connection.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let preamble = bytes.get(..size).and_then(Self::read);
        preamble.zip(connection).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_first_chunk::<12>()?;
        let [format, peer, facts] = fixed.as_chunks().0 else { return None };
        let [format, peer, facts] = [format, peer, facts].map(|word| u32::from_ne_bytes(*word));
        let (peer, rest) = rest.split_at_checked(peer as usize)?;
        let peer = match peer {
            b"" => None,
            peer => Some(str::from_utf8(peer).ok()?.parse().ok()?),
        };
        let is_whole = format == FORMAT && rest.len() == facts as usize;
        (is_whole && GatewayFacts::from_bytes(rest).is_some()).then_some(Self { peer, facts: rest })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_connection_arrives_with_its_preamble() {
        let queue = create().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let facts = GatewayFacts { chain: Some(&[7; 65_000]), ..GatewayFacts::default() }.to_bytes().unwrap();
        let peer = Some("[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap());
        let sent = Preamble { peer, facts: &facts };
        sent.send(queue.tx.as_fd(), theirs.as_fd()).unwrap();
        drop(theirs); // it is in flight
        let mut bytes = vec![0; MAX_PREAMBLE];
        let (received, connection) = Preamble::receive(&queue.rx, &mut bytes).unwrap();
        assert_eq!(received, sent);
        UnixStream::from(connection).write_all(b"x").unwrap();
        ours.read_exact(&mut [0]).unwrap();
        let none = Preamble::receive(&queue.rx, &mut bytes).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_no_preamble_is_passed_over() {
        let queue = create().unwrap();
        let (_, theirs) = UnixStream::pair().unwrap();
        let facts = GatewayFacts::default().to_bytes().unwrap();
        datagram::send(queue.tx.as_fd(), b"GET / HTTP/1.1", &[theirs.as_fd()]).unwrap();
        Preamble { facts: &facts[1..], ..Preamble::default() }
            .send(queue.tx.as_fd(), theirs.as_fd())
            .unwrap();
        Preamble { facts: &facts, ..Preamble::default() }.send(queue.tx.as_fd(), theirs.as_fd()).unwrap();
        let mut bytes = vec![0; MAX_PREAMBLE];
        for _ in 0..2 {
            let error = Preamble::receive(&queue.rx, &mut bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        assert!(Preamble::receive(&queue.rx, &mut bytes).is_ok());
    }

    #[test]
    fn a_full_queue_says_so() {
        let queue = create().unwrap();
        let (_, theirs) = UnixStream::pair().unwrap();
        let facts = GatewayFacts { chain: Some(&[7; 65_000]), ..GatewayFacts::default() }.to_bytes().unwrap();
        let preamble = Preamble { facts: &facts, ..Preamble::default() };
        let full = (0..1000).find_map(|_| preamble.send(queue.tx.as_fd(), theirs.as_fd()).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
