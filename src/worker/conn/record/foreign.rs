//! The record of another process, as bytes. The sender may be a handler's code, so its numbers are checked, also
//! against each other, and its pointers are never used.

use std::mem::ManuallyDrop;
use std::net::SocketAddr;

use super::{
    COVERED, HAS_FACTS, HAS_ORIGIN, HAS_PROTOCOL, HAS_PROXY_HEADER, Owned, RESUMED, Record, facts_in, sum,
};
use crate::fleet::memory::addresses::Mark;
use crate::fleet::sockets::facts::GatewayFacts;

/// The highest level of the compressor (zlib).
const MAX_LEVEL: u8 = 9;
/// The attributes that there are.
const ATTRIBUTES: u16 = RESUMED | HAS_ORIGIN | HAS_PROTOCOL | HAS_PROXY_HEADER | HAS_FACTS;

/// What is known of a connection before its first byte is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival<'a> {
    /// The peer, if it has an IP address.
    pub peer: Option<SocketAddr>,
    pub has_proxy_header: bool,
    /// What a gateway knows of it.
    pub facts: Option<&'a [u8]>,
    /// Where it is counted.
    pub mark: Mark,
}

impl Record {
    /// What is known of a connection whose handshake has not begun, from another process's record of it and what that
    /// has spilled. `None` if the record is damaged.
    pub fn arrival_in<'a>(block: &[u8], spill: &'a [u8]) -> Option<Arrival<'a>> {
        let known = numbers_of(block)?;
        let facts =
            facts_in(known.attributes, spill).filter(|facts| GatewayFacts::from_bytes(facts).is_some());
        let (peer, has_proxy_header) = (known.peer.address(), known.has_proxy_header());
        Some(Arrival { peer, has_proxy_header, facts, mark: known.mark })
    }

    /// Takes over what another process knew: its record's own bytes, and the parts. The head is not kept. The
    /// record must be clear. False, and it stays clear, if they are damaged.
    pub fn import(&mut self, block: &[u8], parts: [&[u8]; 3]) -> bool {
        let Some(known) = numbers_of(block) else { return false };
        let [spill, state, _] = parts;
        let text = if spill.is_empty() { Some(&known.inline[..]) } else { text_in(known.attributes, spill) };
        let is_sound = known.parts == sum(&parts)
            && known.attributes & !ATTRIBUTES == 0
            && known.level <= MAX_LEVEL
            && text.is_some_and(|text| known.has_strings_in(text))
            && state.last().is_none_or(|last| *last == 0);
        if is_sound {
            (self.peer, self.mark) = (known.peer, known.mark);
            (self.deflate, self.threshold, self.level) = (known.deflate, known.threshold, known.level);
            (self.resource, self.origin) = (known.resource, known.origin);
            (self.user, self.protocol) = (known.user, known.protocol);
            (self.attributes, self.inline) = (known.attributes, known.inline);
            (self.spill, self.state) = (Owned::new(spill.to_vec()), Owned::new(state.to_vec()));
        }
        is_sound
    }

    /// Whether its strings lie in this text, each with a NUL behind it. Without strings there are nothing but zeros.
    fn has_strings_in(&self, text: &[u8]) -> bool {
        let user = (self.user != 0).then_some(self.user.into());
        let sizes = [Some(self.resource), Some(self.origin), user, Some(self.protocol)];
        let mut end = 0;
        sizes.into_iter().flatten().all(|size| {
            end += usize::from(size) + 1;
            text.get(end - 1) == Some(&0)
        })
    }
}

/// The record in a block of its size, and with its checksum. Its pointers lead nowhere, and it owns nothing.
fn numbers_of(block: &[u8]) -> Option<ManuallyDrop<Record>> {
    let bytes: &[u8; size_of::<Record>()] = block.try_into().ok()?;
    // SAFETY: a record consists of numbers and raw pointers, for which all bytes are valid, and this one is not
    // dropped.
    let record = unsafe { bytes.as_ptr().cast::<ManuallyDrop<Record>>().read_unaligned() };
    (record.checksum == sum(&[block.get(COVERED..)?])).then_some(record)
}

/// The strings in what was spilled, behind the facts, which must be in order.
fn text_in(attributes: u16, spill: &[u8]) -> Option<&[u8]> {
    if attributes & HAS_FACTS == 0 {
        return Some(spill);
    }
    let facts = facts_in(attributes, spill)?;
    GatewayFacts::from_bytes(facts)?;
    spill.get(size_of::<u32>() + facts.len()..)
}
