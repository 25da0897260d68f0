//! Frames on a stream, in both directions.

use std::ops::Range;

use super::{LENGTH, MAX_FRAME};

/// What has come on a stream, cut into frames.
#[derive(Default)]
pub struct Incoming {
    /// What has come up to `end`, and room behind it.
    bytes: Vec<u8>,
    /// Bytes that were cut off: at most `end`.
    used: usize,
    /// At most `bytes.len()`.
    end: usize,
}

/// The other side does not speak this protocol.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

impl Incoming {
    /// What has come already.
    pub fn of(bytes: Vec<u8>) -> Self {
        Incoming { used: 0, end: bytes.len(), bytes }
    }

    /// Room to receive into: so many bytes. What came is told by [`received`](Self::received).
    pub fn room(&mut self, least: usize) -> &mut [u8] {
        self.bytes.copy_within(self.used..self.end, 0);
        self.end -= std::mem::take(&mut self.used);
        if self.end == 0 && self.bytes.len() > KEPT.max(least) {
            self.bytes.truncate(KEPT.max(least));
            self.bytes.shrink_to_fit();
        }
        let end = self.end + least;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.get_mut(self.end..end).unwrap_or_default()
    }

    /// So many of the bytes of [`room`](Self::room), which were `least`, were filled.
    pub fn received(&mut self, count: usize, least: usize) {
        self.end = (self.end + count.min(least)).min(self.bytes.len());
    }

    /// The content of the next frame; `None` until more has come.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let Some(content) = self.place_of_next()? else { return Ok(None) };
        self.used = content.end;
        Ok(self.bytes.get(content))
    }

    /// The same, which stays the next one.
    pub fn peek_frame(&self) -> Result<Option<&[u8]>, TooLong> {
        Ok(self.place_of_next()?.and_then(|content| self.bytes.get(content)))
    }

    fn place_of_next(&self) -> Result<Option<Range<usize>>, TooLong> {
        let rest = self.bytes.get(self.used..self.end).unwrap_or_default();
        let Some((length, content)) = rest.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_ne_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(TooLong);
        }
        let start = self.used + LENGTH;
        Ok((content.len() >= length).then_some(start..start + length))
    }
}

/// Memory of an empty buffer that is kept.
const KEPT: usize = 64 * 1024;

/// What is to be written on a stream: whole frames, of the first of which the start may have been written.
#[derive(Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    /// Where the first frame begins that was not wholly written.
    first: usize,
    /// Bytes that were written: `first <= sent <= bytes.len()`.
    sent: usize,
}

impl Outgoing {
    /// Where frames are appended.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What is still to be written.
    pub fn unsent(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    /// So many bytes of that were written.
    pub fn advance(&mut self, count: usize) {
        self.sent = (self.sent + count).min(self.bytes.len());
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
            (self.first, self.sent) = (0, 0);
            return;
        }
        while let Some(length) = self.bytes.get(self.first..).and_then(|rest| rest.first_chunk::<LENGTH>()) {
            let end = self.first + LENGTH + u32::from_ne_bytes(*length) as usize;
            if end > self.sent {
                break;
            }
            self.first = end;
        }
        // Each byte is moved once at most.
        if self.first >= KEPT.max(self.bytes.len() / 2) {
            self.bytes.drain(..self.first);
            self.sent -= std::mem::take(&mut self.first);
        }
    }

    /// Takes all frames of which nothing or not all was written: they can be written anew, to somebody else.
    pub fn take(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.drain(..std::mem::take(&mut self.first));
        self.sent = 0;
        bytes
    }

    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
