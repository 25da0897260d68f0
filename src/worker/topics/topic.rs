//! One topic, and its subscribers in this worker.

use std::collections::BTreeMap;

use crate::fleet::sockets::bus_wire::{Form, Request};
use crate::worker::topics::travelling::Subscription;

/// Subscriptions that get the same messages.
pub struct Group {
    pub state: GroupState,
    /// The members do not need messages up to this stamp.
    pub from: u64,
    /// By connection.
    pub members: BTreeMap<u64, Subscription>,
}

/// What the members of a group get.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum GroupState {
    /// Each message as it comes.
    Live,
    /// Earlier messages, requested with this ticket.
    Requested(u32),
    /// Nothing: earlier messages are requested once the member, which is alone, has ended its fragmented message.
    Blocked,
}

impl GroupState {
    /// Those that a frame of the bus with this ticket is for; 0: the live ones.
    pub fn addressed(ticket: u32) -> Self {
        if ticket == 0 { GroupState::Live } else { GroupState::Requested(ticket) }
    }
}

impl Group {
    /// Requests the messages that the members have not seen.
    pub fn request(&mut self, topic: u32, key: &str, last_ticket: &mut u32, out: &mut Vec<u8>) {
        *last_ticket = last_ticket.wrapping_add(1).max(1);
        self.state = GroupState::Requested(*last_ticket);
        Request::Subscribe { topic, ticket: *last_ticket, from: self.from, key }.append_to(out);
    }
}

/// A topic of which this worker has subscribers.
pub struct Topic {
    pub key: Box<str>,
    /// At most one for each state but `Blocked`; none is empty.
    pub groups: Vec<Group>,
    /// Stamp of the last message that the bus has sent or dropped; it sends all later ones. `None`: not subscribed yet.
    pub live_from: Option<u64>,
    /// Subscribers in other workers, as last reported by the bus.
    pub others: u32,
    /// Subscribers here, as last reported to the bus.
    pub reported: u32,
    /// Forms requested from the bus, and the shortest message of each; bytes.
    pub forms: Vec<(Form, u32)>,
}

impl Topic {
    pub fn len(&self) -> usize {
        self.groups.iter().map(|group| group.members.len()).sum()
    }

    pub fn group(&mut self, state: GroupState) -> Option<&mut Group> {
        self.groups.iter_mut().find(|group| group.state == state)
    }

    /// A subscription becomes live, which has seen everything up to this stamp.
    pub fn go_live(&mut self, conn: u64, subscription: Subscription) {
        match self.group(GroupState::Live) {
            Some(live) => drop(live.members.insert(conn, subscription)),
            None => self.groups.push(Group {
                state: GroupState::Live,
                from: subscription.from,
                members: [(conn, subscription)].into(),
            }),
        }
    }

    /// Subscriptions that become live later do not get messages up to this stamp.
    pub fn pass(&mut self, stamp: u64) {
        self.live_from = self.live_from.map(|from| from.max(stamp));
    }

    pub fn remove(&mut self, conn: u64) -> Option<Subscription> {
        let found = self.groups.iter_mut().find_map(|group| group.members.remove(&conn));
        // The reply to the ticket of a group that is gone is ignored.
        self.groups.retain(|group| !group.members.is_empty());
        found
    }
}
