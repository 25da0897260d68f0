//! A connection's send queue: bytes that the kernel has not taken yet.
//!
//! A connection without such bytes has no queue. Empty queues are kept for
//! reuse, so that the usual answer costs no allocation.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use socket2::Socket;

use crate::ffi::host::OwnedBytes;

/// Queues kept for reuse in a worker.
const SPARE: usize = 64;
/// A kept queue's buffer is at most this large.
const SPARE_BYTES: usize = 64 * 1024;
/// Pieces given to the kernel in one call.
const PIECES: usize = 16;

enum Chunk {
    Copied(Vec<u8>),
    Owned(OwnedBytes),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Copied(bytes) => bytes,
            Chunk::Owned(bytes) => bytes.as_ref(),
        }
    }
}

/// The bytes to send, in order.
#[derive(Default)]
pub struct Queue {
    chunks: VecDeque<Chunk>,
    /// Of the first chunk, the kernel has taken so much.
    sent: usize,
    /// What waits begins in the middle of what was sent, not at its start.
    torn: bool,
}

impl Queue {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes().len()).sum::<usize>() - self.sent
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nothing of what waits was sent, so that it begins with a frame.
    pub fn is_at_start(&self) -> bool {
        !self.torn
    }

    /// The buffer at the end, to append to.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        if !matches!(self.chunks.back(), Some(Chunk::Copied(_))) {
            self.chunks.push_back(Chunk::Copied(Vec::new()));
        }
        match self.chunks.back_mut() {
            Some(Chunk::Copied(bytes)) => bytes,
            _ => unreachable!("a buffer was just put there"),
        }
    }

    /// Appends bytes of the handler's own, without a copy.
    pub fn push_owned(&mut self, bytes: OwnedBytes) {
        self.chunks.push_back(Chunk::Owned(bytes));
    }

    /// Gives the kernel what it takes; `Ok` even if that is nothing.
    pub fn write_to(&mut self, socket: &Socket) -> io::Result<()> {
        self.write_before(socket, &[]).map(|_| ())
    }

    /// The same, with bytes that follow the queue; says how many of those were taken.
    pub fn write_before(&mut self, mut socket: &Socket, after: &[u8]) -> io::Result<usize> {
        loop {
            let waiting = self.len();
            if waiting + after.len() == 0 {
                return Ok(0);
            }
            let mut slices = [IoSlice::new(&[]); PIECES];
            let mut skip = self.sent;
            for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                *slice = IoSlice::new(&chunk.bytes()[skip..]);
                skip = 0;
            }
            let ends_with_after = match slices.get_mut(self.chunks.len()) {
                Some(last) => {
                    *last = IoSlice::new(after);
                    true
                }
                None => false,
            };
            let written = match (self.chunks.front(), after) {
                (Some(chunk), []) if self.chunks.len() == 1 => socket.write(&chunk.bytes()[self.sent..]),
                _ => socket.write_vectored(&slices),
            };
            let given = slices.iter().map(|slice| slice.len()).sum::<usize>();
            let written = match written {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.advance(written.min(waiting));
            // Where a write ends is the end of a frame only if it took everything.
            self.torn = (self.torn || written > 0) && written < waiting + after.len();
            if ends_with_after || written < given {
                return Ok(written.saturating_sub(waiting));
            }
        }
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(chunk) = self.chunks.front() {
            let left = chunk.bytes().len() - self.sent;
            if written < left {
                self.sent += written;
                return;
            }
            written -= left;
            self.sent = 0;
            let is_last = self.chunks.len() == 1;
            match self.chunks.front_mut() {
                // The last buffer stays, empty, for the next message.
                Some(Chunk::Copied(bytes)) if is_last => {
                    bytes.clear();
                    return;
                }
                _ => drop(self.chunks.pop_front()),
            }
        }
    }
}

/// Queues that no connection needs at the moment.
#[derive(Default)]
pub struct Spare {
    // Boxed as connections have them: a queue changes hands without being moved.
    #[allow(clippy::vec_box)]
    queues: Vec<Box<Queue>>,
}

impl Spare {
    /// An empty queue.
    pub fn take(&mut self) -> Box<Queue> {
        self.queues.pop().unwrap_or_default()
    }

    /// Takes an empty queue back.
    pub fn put(&mut self, mut queue: Box<Queue>) {
        let kept = queue.is_empty() && self.queues.len() < SPARE && queue.tail().capacity() <= SPARE_BYTES;
        if kept {
            self.queues.push(queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_arrive_in_order_whatever_the_kernel_takes_at_a_time() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = Socket::from(std::os::fd::OwnedFd::from(ours));
        let mut queue = Queue::default();
        let mut expected = Vec::new();
        let mut received = Vec::new();
        for round in 0..50_u32 {
            let piece: Vec<u8> = (0..round * 997).map(|i| (i ^ round) as u8).collect();
            queue.tail().extend_from_slice(&piece);
            expected.extend_from_slice(&piece);
            let after = [round as u8; 3000];
            let taken = queue.write_before(&ours, &after).unwrap();
            assert!(taken == 0 || queue.is_empty());
            queue.tail().extend_from_slice(&after[taken..]);
            expected.extend_from_slice(&after);
            if round % 7 == 0 {
                let mut some = vec![0; 40_000.min(expected.len() - received.len() - queue.len())];
                theirs.read_exact(&mut some).unwrap();
                received.extend(some);
            }
        }
        while !queue.is_empty() {
            let mut some = vec![0; expected.len() - received.len() - queue.len()];
            theirs.read_exact(&mut some).unwrap();
            received.extend(some);
            queue.write_to(&ours).unwrap();
        }
        drop(ours);
        theirs.read_to_end(&mut received).unwrap();
        assert!(received == expected);
    }

    #[test]
    fn a_drained_queue_is_used_again_and_a_large_one_is_not_kept() {
        let mut spare = Spare::default();
        let mut queue = spare.take();
        queue.tail().reserve(SPARE_BYTES + 1);
        spare.put(queue);
        assert!(spare.queues.is_empty());
        let queue = spare.take();
        spare.put(queue);
        assert_eq!(spare.queues.len(), 1);
    }
}
