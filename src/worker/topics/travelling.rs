//! Subscriptions that move between workers, as bytes in the record of their connection.

use crate::fleet::sockets::bus_wire::MAX_NAME;

/// One connection's subscription to one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// It gets no message up to this stamp; a live one has also seen what the worker has delivered.
    pub from: u64,
    /// As given by the handler: `WS_DROP` or 0.
    pub flags: u8,
}

/// A subscription that moves between workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Travelling<'a> {
    /// Not live: it has seen nothing after `from`.
    pub waits: bool,
    pub subscription: Subscription,
    /// Of the topic, without its scope.
    pub name: &'a str,
}

const WAITS: u8 = 0x80;

impl<'a> Travelling<'a> {
    fn append_to(&self, bytes: &mut Vec<u8>) {
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

/// What moves with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traveller<'a> {
    /// Identifies the connection in all workers.
    pub number: u64,
    /// Missed messages that its handler has not asked for.
    pub missed: u64,
    pub subscriptions: Vec<Travelling<'a>>,
}

impl<'a> Traveller<'a> {
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = [self.number.to_ne_bytes(), self.missed.to_ne_bytes()].concat();
        self.subscriptions.iter().for_each(|subscription| subscription.append_to(&mut bytes));
        bytes
    }

    /// From bytes; `None` if they are empty or malformed.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (number, rest) = bytes.split_first_chunk()?;
        let (missed, mut rest) = rest.split_first_chunk()?;
        let mut subscriptions = Vec::new();
        while !rest.is_empty() {
            subscriptions.push(Travelling::take(&mut rest)?);
        }
        let (number, missed) = (u64::from_ne_bytes(*number), u64::from_ne_bytes(*missed));
        Some(Traveller { number, missed, subscriptions })
    }

    /// The same on arrival, where all subscriptions wait for what they have not seen. The previous worker had delivered
    /// everything up to `seen` to the live ones.
    pub fn settle(mut self, seen: u64) -> Self {
        for travelling in self.subscriptions.iter_mut().filter(|travelling| !travelling.waits) {
            travelling.subscription.from = travelling.subscription.from.max(seen);
            travelling.waits = true;
        }
        self
    }
}
