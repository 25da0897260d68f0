//! Subscriptions on their way between workers, as bytes in the record of their connection.

use crate::fleet::bus_wire::MAX_NAME;

/// One connection's subscription to one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// It has seen, or is not to see, what has a stamp up to this; live ones also what the worker has delivered.
    pub from: u64,
    /// As given by the handler: `WS_DROP` or 0.
    pub flags: u8,
}

/// A subscription on its way between workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Travelling<'a> {
    /// Whether `from` is all that it has seen.
    pub waits: bool,
    /// What it is.
    pub subscription: Subscription,
    /// Of the topic, without its scope.
    pub name: &'a str,
}

const WAITS: u8 = 0x80;

impl<'a> Travelling<'a> {
    /// Appends it.
    pub fn append_to(&self, bytes: &mut Vec<u8>) {
        let waits = if self.waits { WAITS } else { 0 };
        bytes.extend_from_slice(&self.subscription.from.to_ne_bytes());
        bytes.extend_from_slice(&[self.subscription.flags & !WAITS | waits, self.name.len() as u8]);
        bytes.extend_from_slice(self.name.as_bytes());
    }

    fn take(bytes: &mut &'a [u8]) -> Option<Self> {
        let (from, rest) = bytes.split_first_chunk::<8>()?;
        let ([flags, size], rest) = rest.split_first_chunk::<2>()?;
        let (name, rest) = rest.split_at_checked(usize::from(*size))?;
        *bytes = rest;
        let subscription = Subscription { from: u64::from_ne_bytes(*from), flags: flags & !WAITS };
        let name = std::str::from_utf8(name).ok().filter(|name| (1..=MAX_NAME).contains(&name.len()))?;
        Some(Travelling { waits: flags & WAITS != 0, subscription, name })
    }
}

/// What the table has exported: the connection's number and its subscriptions. `None` for nothing, or nonsense.
pub fn read_travelling(bytes: &[u8]) -> Option<(u64, Vec<Travelling<'_>>)> {
    let (number, mut rest) = bytes.split_first_chunk::<8>()?;
    let mut all = Vec::new();
    while !rest.is_empty() {
        all.push(Travelling::take(&mut rest)?);
    }
    Some((u64::from_ne_bytes(*number), all))
}

/// The same bytes for a connection that has just arrived: of each subscription it is known what it has seen, where `seen` is
/// what the worker that it comes from had delivered to it.
pub fn settle_travelling(bytes: &[u8], seen: u64) -> Vec<u8> {
    let Some((number, all)) = read_travelling(bytes) else { return Vec::new() };
    let mut settled = number.to_ne_bytes().to_vec();
    for travelling in all {
        let Travelling { waits, subscription, name } = travelling;
        let from = if waits { subscription.from } else { subscription.from.max(seen) };
        let subscription = Subscription { from, ..subscription };
        Travelling { waits: true, subscription, name }.append_to(&mut settled);
    }
    settled
}
