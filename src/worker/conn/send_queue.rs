//! A connection's send queue: bytes that the kernel has not taken yet.
//!
//! A connection without such bytes has no queue. Empty queues are reused, so that the usual reply needs no allocation.
//!
//! System calls are made with rustix: in a process with threads each send() of the C library enters and leaves a
//! cancellation point.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};
use socket2::Socket;

use crate::ffi::host::OwnedBytes;
use crate::proto::ws::connection::SharedFrame;
use crate::time::Instant;

const SPARE: usize = 64;
/// Largest buffer of a queue that is kept.
const SPARE_BYTES: usize = 64 * 1024;
/// Sent bytes are removed once they exceed this and what waits behind them.
const KEPT: usize = 64 * 1024;
/// Slices of one sendmsg(2).
const PIECES: usize = 16;

enum Chunk {
    Copied(Vec<u8>),
    Owned(OwnedBytes),
    /// Of many queues.
    Shared(Rc<SharedFrame>),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Copied(bytes) => bytes,
            Chunk::Owned(bytes) => bytes.as_ref(),
            Chunk::Shared(frame) => frame,
        }
    }

    /// Its bytes, if other queues have them too.
    fn shared(&self) -> usize {
        if matches!(self, Chunk::Shared(_)) { self.bytes().len() } else { 0 }
    }
}

/// The bytes to send, in order: `before`, then `tail`.
#[derive(Default)]
pub struct SendQueue {
    before: VecDeque<Chunk>,
    /// Bytes in `before`.
    before_size: usize,
    tail: Vec<u8>,
    /// Bytes of shared chunks in `before`.
    shared: usize,
    /// Bytes of the first chunk that were sent.
    sent: usize,
    /// The last write was partial: what waits may begin within a frame.
    torn: bool,
    /// Since when it waits without progress.
    pub stalled: Option<Instant>,
    /// Its size as it is counted.
    pub counted: Size,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub all: u32,
    /// Those of them that no other queue has: `own <= all`.
    pub own: u32,
}

impl SendQueue {
    #[inline]
    pub fn len(&self) -> usize {
        self.before_size + self.tail.len() - self.sent
    }

    /// The same, as it is to be counted.
    pub fn size(&self) -> Size {
        let is_shared = matches!(self.before.front(), Some(Chunk::Shared(_)));
        let shared = self.shared - if is_shared { self.sent } else { 0 };
        let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Size { all: size(self.len()), own: size(self.len() - shared) }
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nothing of what waits was sent, so that it begins with a frame.
    #[inline]
    pub fn is_at_start(&self) -> bool {
        !self.torn
    }

    /// What waits, if that is whole frames in one piece, and no more than `most`.
    #[inline]
    pub fn as_frames(&self, most: usize) -> Option<&[u8]> {
        let is_whole = self.before.is_empty() && !self.torn && self.sent == 0;
        (is_whole && !self.tail.is_empty() && self.tail.len() <= most).then_some(&self.tail)
    }

    /// The buffer at the end, to append to.
    #[inline]
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Appends bytes of the handler's own, without a copy.
    pub fn push_owned(&mut self, bytes: OwnedBytes) {
        self.push_behind_tail(Chunk::Owned(bytes));
    }

    /// Appends whole frames that other queues have too.
    pub fn push_shared(&mut self, frame: Rc<SharedFrame>) {
        self.push_behind_tail(Chunk::Shared(frame));
    }

    /// The same where the queue is empty and the kernel has taken the first `sent` bytes, not all of them.
    pub fn push_rest(&mut self, frame: Rc<SharedFrame>, sent: usize) {
        debug_assert!(self.is_empty() && sent < frame.len());
        self.push(Chunk::Shared(frame));
        (self.sent, self.torn) = (sent, sent > 0);
    }

    fn push_behind_tail(&mut self, chunk: Chunk) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.push(Chunk::Copied(tail));
        }
        self.push(chunk);
    }

    fn push(&mut self, chunk: Chunk) {
        self.before_size += chunk.bytes().len();
        self.shared += chunk.shared();
        self.before.push_back(chunk);
    }

    /// Gives the kernel what it takes; `Ok` even if that is nothing.
    pub fn write_to(&mut self, socket: &Socket) -> io::Result<()> {
        self.write_before(socket, &[]).map(|_| ())
    }

    /// The same with bytes that follow the queue; returns how many of those were taken.
    pub fn write_before(&mut self, socket: &Socket, after: &[u8]) -> io::Result<usize> {
        loop {
            let waiting = self.len();
            if waiting + after.len() == 0 {
                return Ok(0);
            }
            let (written, given) = if self.before.is_empty() && after.is_empty() {
                (send(socket, self.tail.get(self.sent..).unwrap_or_default(), SendFlags::NOSIGNAL), waiting)
            } else {
                let (slices, used, given) = self.slices(after);
                let mut nothing = SendAncillaryBuffer::default();
                let slices = slices.get(..used).unwrap_or_default();
                (sendmsg(socket, slices, &mut nothing, SendFlags::NOSIGNAL), given)
            };
            let written = match written {
                Ok(written) => written,
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            self.advance(written.min(waiting));
            // A write ends at a frame boundary only if it took everything.
            self.torn = (self.torn || written > 0) && written < waiting + after.len();
            if written < given || given == waiting + after.len() {
                return Ok(written.saturating_sub(waiting));
            }
        }
    }

    /// What waits, and `after` it, as far as it fits into so many slices: the slices, how many are used, their bytes.
    fn slices<'a>(&'a self, after: &'a [u8]) -> ([IoSlice<'a>; PIECES], usize, usize) {
        let mut slices = [IoSlice::new(&[]); PIECES];
        let chunks = self.before.iter().map(Chunk::bytes).chain([self.tail.as_slice(), after]);
        let (mut used, mut given, mut skip) = (0, 0, self.sent);
        for (slice, chunk) in slices.iter_mut().zip(chunks) {
            let bytes = chunk.get(skip..).unwrap_or_default();
            *slice = IoSlice::new(bytes);
            (used, given, skip) = (used + 1, given + bytes.len(), 0);
        }
        (slices, used, given)
    }

    /// So many bytes more have been taken.
    fn advance(&mut self, written: usize) {
        self.sent += written;
        while let Some(chunk) = self.before.pop_front_if(|chunk| chunk.bytes().len() <= self.sent) {
            let size = chunk.bytes().len();
            (self.before_size, self.sent) = (self.before_size - size, self.sent - size);
            self.shared -= chunk.shared();
        }
        if !self.before.is_empty() {
            return;
        }
        let waiting = self.tail.len().saturating_sub(self.sent);
        if waiting == 0 {
            // The buffer stays, empty, for the next message.
            self.tail.clear();
            self.sent = 0;
        } else if self.sent >= waiting.max(KEPT) {
            // The queue may never be empty: remove sent bytes so that each byte moves once at most.
            self.tail.drain(..self.sent);
            self.tail.shrink_to(2 * waiting);
            self.sent = 0;
        }
    }
}

/// Queues that no connection needs at the moment.
#[derive(Default)]
pub struct QueuePool {
    // Boxed as in connections: a queue changes hands without a copy.
    #[allow(clippy::vec_box)]
    queues: Vec<Box<SendQueue>>,
}

impl QueuePool {
    pub fn take(&mut self) -> Box<SendQueue> {
        self.queues.pop().unwrap_or_default()
    }

    pub fn put(&mut self, mut queue: Box<SendQueue>) {
        (queue.stalled, queue.counted) = (None, Size::default());
        let kept = queue.is_empty() && self.queues.len() < SPARE && queue.tail.capacity() <= SPARE_BYTES;
        if kept {
            self.queues.push(queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::proto::ws::connection::{Broadcast, Connection, Kind};
    use crate::proto::ws::deflate::codec::Codecs;

    /// Our end, which does not block, and the peer's.
    fn pair() -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Socket::from(std::os::fd::OwnedFd::from(ours)), theirs)
    }

    #[test]
    fn bytes_arrive_in_order_whatever_the_kernel_takes_at_a_time() {
        let (ours, mut theirs) = pair();
        let mut queue = SendQueue::default();
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
    fn a_queue_that_is_never_empty_holds_little_more_than_what_waits() {
        let (ours, mut theirs) = pair();
        let mut queue = SendQueue::default();
        let (mut sent, mut received) = (0_u32, 0_u32);
        // More than the socket takes from the beginning.
        let mut fill = |queue: &mut SendQueue, size: usize| {
            while queue.len() < size {
                queue.tail().extend_from_slice(&sent.to_be_bytes());
                sent += 1;
            }
        };
        fill(&mut queue, 1 << 20);
        for round in 0..100 {
            queue.write_to(&ours).unwrap();
            let mut some = vec![0; 40_000];
            theirs.read_exact(&mut some).unwrap();
            for number in some.chunks(4) {
                assert_eq!(number, received.to_be_bytes());
                received += 1;
            }
            fill(&mut queue, if round < 50 { 1 << 20 } else { 100_000 });
            assert!(queue.tail.len() <= 2 * queue.len() + KEPT, "{round}: {}", queue.tail.len());
        }
        assert!(queue.tail.capacity() <= 500_000, "{}", queue.tail.capacity());
    }

    #[test]
    fn a_frame_in_many_queues_is_counted_once() {
        let total = Rc::new(Cell::new(0));
        let mut message = Broadcast::new(Kind::Binary, vec![7; 1000].into(), false, Rc::clone(&total));
        let mut conn = Connection::new(Instant::default(), None, false);
        let frame = conn.share(&mut message, Instant::default(), &mut Codecs::new()).unwrap();
        let mut queues: Vec<SendQueue> = (0..1000).map(|_| SendQueue::default()).collect();
        for (index, queue) in queues.iter_mut().enumerate() {
            if index % 2 == 0 {
                queue.tail().extend_from_slice(b"own");
                queue.push_shared(Rc::clone(&frame));
            } else {
                queue.push_rest(Rc::clone(&frame), 4);
            }
        }
        drop((message, frame));
        assert_eq!(total.get(), 1004);
        assert_eq!(queues[0].size(), Size { all: 1007, own: 3 });
        assert_eq!(queues[1].size(), Size { all: 1000, own: 0 });
        let (ours, _theirs) = pair();
        queues[1].write_to(&ours).unwrap();
        assert_eq!((queues[1].size(), total.get()), (Size::default(), 1004));
        drop(queues);
        assert_eq!(total.get(), 0);
    }

    #[test]
    fn a_drained_queue_is_used_again_and_a_large_one_is_not_kept() {
        let mut queue_pool = QueuePool::default();
        let mut queue = queue_pool.take();
        queue.tail().reserve(SPARE_BYTES + 1);
        queue_pool.put(queue);
        assert!(queue_pool.queues.is_empty());
        let queue = queue_pool.take();
        queue_pool.put(queue);
        assert_eq!(queue_pool.queues.len(), 1);
    }
}
