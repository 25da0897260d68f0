//! The record of another process, as bytes. Each number is read by itself and checked, also against the others: who has sent
//! them may be the code of a handler. Nothing of them is adopted as memory, least of all a pointer.

use std::mem::offset_of;
use std::net::SocketAddr;

use super::{
    COVERED, HAS_FACTS, HAS_ORIGIN, HAS_PROTOCOL, HAS_PROXY_HEADER, INLINE, Owned, RESUMED, Record, facts_in,
    sum,
};
use crate::fleet::addresses::Mark;
use crate::fleet::facts::Facts;
use crate::fleet::peer::Peer;

/// The highest level of the compressor (zlib).
const MAX_LEVEL: u8 = 9;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Greeting<'a> {
    /// The peer, if it has an IP address.
    pub peer: Option<SocketAddr>,
    pub has_proxy_header: bool,
    /// What a gateway knows of it.
    pub facts: Option<&'a [u8]>,
    /// Where it is counted.
    pub mark: Mark,
}

/// A block of the size of a record, and with its checksum.
struct Block<'a>(&'a [u8]);

impl<'a> Block<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let block = Self(bytes);
        let checksum = u32::from_ne_bytes(block.at(offset_of!(Record, checksum))?);
        (bytes.len() == size_of::<Record>() && checksum == sum(&[bytes.get(COVERED..)?])).then_some(block)
    }

    fn at<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }

    fn half(&self, offset: usize) -> Option<u16> {
        self.at(offset).map(u16::from_ne_bytes)
    }

    fn word(&self, offset: usize) -> Option<u32> {
        self.at(offset).map(u32::from_ne_bytes)
    }

    fn peer(&self) -> Option<Peer> {
        self.at(offset_of!(Record, peer)).map(Peer::from_bytes)
    }

    fn mark(&self) -> Option<Mark> {
        self.at(offset_of!(Record, mark)).map(Mark::from_ne_bytes)
    }
}

impl Record {
    /// What is known of a connection that is still to be greeted, from another process's record of it and what that
    /// has spilled. `None` if the record is damaged.
    pub fn greeting_in<'a>(block: &[u8], spill: &'a [u8]) -> Option<Greeting<'a>> {
        let block = Block::new(block)?;
        let attributes = block.half(offset_of!(Record, attributes))?;
        let facts = facts_in(attributes, spill).filter(|facts| Facts::from_bytes(facts).is_some());
        let has_proxy_header = attributes & HAS_PROXY_HEADER != 0;
        Some(Greeting { peer: block.peer()?.address(), has_proxy_header, facts, mark: block.mark()? })
    }

    /// Takes over what another process knew: its record's own bytes, and the parts. The head is not kept. The
    /// record must be clear. False, and it stays clear, if they are damaged.
    pub fn import(&mut self, block: &[u8], parts: [&[u8]; 3]) -> bool {
        self.try_import(block, parts).is_some()
    }

    fn try_import(&mut self, block: &[u8], parts: [&[u8]; 3]) -> Option<()> {
        let block = Block::new(block)?;
        let [spill, state, _] = parts;
        let [deflate, threshold] =
            [offset_of!(Record, deflate), offset_of!(Record, threshold)].map(|at| block.word(at));
        let [level, user] = [offset_of!(Record, level), offset_of!(Record, user)].map(|at| block.at::<1>(at));
        let ([level], [user]) = (level?, user?);
        let known = RESUMED | HAS_ORIGIN | HAS_PROTOCOL | HAS_PROXY_HEADER | HAS_FACTS;
        let attributes = block.half(offset_of!(Record, attributes))?;
        let strings =
            [offset_of!(Record, resource), offset_of!(Record, origin), offset_of!(Record, protocol)];
        let [resource, origin, protocol] = strings.map(|at| block.half(at));
        let inline: [u8; INLINE] = block.at(offset_of!(Record, inline))?;
        let sizes = Sizes { resource: resource?, origin: origin?, user, protocol: protocol? };
        let text = if spill.is_empty() { &inline[..] } else { text_in(attributes, spill)? };
        let state_ends = state.last().is_none_or(|last| *last == 0);
        if block.word(offset_of!(Record, parts))? != sum(&parts)
            || attributes & !known != 0
            || level > MAX_LEVEL
            || !sizes.are_in(text)
            || !state_ends
        {
            return None;
        }
        (self.peer, self.mark) = (block.peer()?, block.mark()?);
        (self.deflate, self.threshold, self.level) = (deflate?, threshold?, level);
        (self.resource, self.origin, self.user, self.protocol) =
            (sizes.resource, sizes.origin, sizes.user, sizes.protocol);
        (self.attributes, self.inline) = (attributes, inline);
        (self.spill, self.state) = (Owned::new(spill.to_vec()), Owned::new(state.to_vec()));
        Some(())
    }
}

/// The strings in what was spilled, behind the facts, which must be in order.
fn text_in(attributes: u16, spill: &[u8]) -> Option<&[u8]> {
    if attributes & HAS_FACTS == 0 {
        return Some(spill);
    }
    let facts = facts_in(attributes, spill)?;
    Facts::from_bytes(facts)?;
    spill.get(size_of::<u32>() + facts.len()..)
}

/// The sizes of a record's strings.
struct Sizes {
    resource: u16,
    origin: u16,
    user: u8,
    protocol: u16,
}

impl Sizes {
    /// Whether they lie in this text, each with a NUL behind it. A record without strings has nothing but zeros.
    fn are_in(&self, text: &[u8]) -> bool {
        let sizes = [self.resource, self.origin, self.user.into(), self.protocol];
        let present = sizes.iter().zip([true, true, self.user != 0, true]).filter(|(_, is_there)| *is_there);
        let mut end = 0;
        present.into_iter().all(|(size, _)| {
            end += usize::from(*size) + 1;
            text.get(end - 1) == Some(&0)
        })
    }
}
