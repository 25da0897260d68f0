//! Passes a request from a worker to the process that runs CGI programs: one datagram with the socket, facts, and the
//! bytes read so far.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::fleet::sockets::datagram;

/// Maximum bytes of a datagram.
pub const MAX_BYTES: usize = 160 * 1024;

/// What the worker knows about a request besides its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFacts {
    /// The client's address; none on a Unix socket.
    pub peer: Option<SocketAddr>,
    /// The authenticated user, if authentication is required.
    pub user: Option<String>,
    /// Path and query without the token, if the query has one.
    pub resource: Option<String>,
    /// When it was sent; ns of the monotonic clock.
    pub at: u64,
    /// Whether the client speaks TLS, with a gateway.
    pub is_tls: bool,
    /// The server's end of the client's connection, if a gateway has that.
    pub local: Option<SocketAddr>,
    /// The value of Strict-Transport-Security for the response.
    pub hsts: Option<String>,
}

/// A received request.
pub struct Handover {
    /// The connection; non-blocking.
    pub socket: OwnedFd,
    /// Facts about the request.
    pub facts: RequestFacts,
    /// The request from its first byte on: the head, and perhaps more.
    pub read: Vec<u8>,
}

/// Sends a request. `WouldBlock`: the queue is full. [worker]
pub fn send(to: BorrowedFd<'_>, socket: BorrowedFd<'_>, facts: &RequestFacts, read: &[u8]) -> io::Result<()> {
    let facts = serde_json::to_vec(facts)?;
    let size = u32::try_from(facts.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let message = [&size.to_ne_bytes(), &facts[..], read].concat();
    if message.len() > MAX_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    datagram::send(to, &message, &[socket])
}

/// Receives the next request. `WouldBlock`: there is none; `InvalidData`: it was malformed, and is dropped.
pub fn receive(from: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Handover> {
    let (size, socket) = datagram::receive(from, buffer)?;
    let parse = || {
        let (size, rest) = buffer.get(..size)?.split_first_chunk()?;
        let (facts, read) = rest.split_at_checked(u32::from_ne_bytes(*size) as usize)?;
        Some((serde_json::from_slice(facts).ok()?, read.to_vec()))
    };
    match (parse(), socket) {
        (Some((facts, read)), Some(socket)) => Ok(Handover { socket, facts, read }),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    #[test]
    fn a_request_arrives_as_it_was_sent_and_a_malformed_one_is_dropped() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let (client, _other) = UnixStream::pair().unwrap();
        let mut buffer = vec![0; MAX_BYTES];
        for peer in [Some("[2001:db8::1]:443".parse().unwrap()), None] {
            let facts = RequestFacts { peer, user: Some("ann".to_owned()), at: 7, ..RequestFacts::default() };
            send(ours.as_fd(), client.as_fd(), &facts, b"GET / HTTP/1.1").unwrap();
            let received = receive(theirs.as_fd(), &mut buffer).unwrap();
            assert_eq!((received.facts, &received.read[..]), (facts, &b"GET / HTTP/1.1"[..]));
        }
        for malformed in [&b""[..], b"abc", &[255; 40], b"\x02\0\0\0{}GET"] {
            ours.send(malformed).unwrap();
            let error = receive(theirs.as_fd(), &mut buffer).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        assert_eq!(receive(theirs.as_fd(), &mut buffer).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        let facts = RequestFacts { resource: Some("/a".to_owned()), ..RequestFacts::default() };
        assert!(send(ours.as_fd(), client.as_fd(), &facts, &[0; MAX_BYTES]).is_err());
    }
}
