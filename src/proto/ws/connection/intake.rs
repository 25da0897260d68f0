//! Large payloads on a shorter way: from the socket to where the message is gathered, without a copy in between.

use super::{CloseState, Connection, Event, Io, Surroundings};

impl Connection {
    /// Where the caller may put the next octets from the socket itself instead of passing them to `receive`, which
    /// copies them: a buffer, and how many may be appended to it. That is so within a frame of which at least `least`,
    /// or the rest, can come. `taken` is to be told how many they are.
    pub fn intake(&mut self, least: usize) -> Option<(&mut Vec<u8>, usize)> {
        let is_wanted = !self.stream && matches!(self.close_state, CloseState::Open | CloseState::CloseSent);
        self.decoder.intake(least).filter(|_| is_wanted)
    }

    /// So many octets have been appended to what `intake` gave: what comes of them, as from `receive`.
    pub fn taken(&mut self, count: usize, io: &mut Io) -> Event {
        self.last_received = io.now;
        let mut with =
            Surroundings { limits: io.limits, deflate: None, codecs: io.codecs, stream: self.stream };
        let item = self.decoder.taken(count, &mut with);
        self.event(item, &[], io).unwrap_or(Event::NeedMore)
    }
}
