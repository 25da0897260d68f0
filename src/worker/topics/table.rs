//! The subscriptions of this worker. Connections are ids; no socket and no clock.
//!
//! A subscription is live, and gets each message from the bus, or it waits: for earlier messages, requested from the
//! bus by a ticket, or for the end of a fragmented message that its connection is sending. It knows the stamp up to
//! which it has seen everything; that moves with the connection.

use std::collections::HashMap;
use std::ops::Bound;

use crate::config::TopicBounds;
use crate::fleet::sockets::bus_wire::{Form, Request, key_of, split_key};
use crate::worker::connections::broadcasting::Sharing;
use crate::worker::topics::topic::{Group, GroupState, Topic};
use crate::worker::topics::travelling::{Subscription, Traveller, Travelling};

/// A connection with subscriptions.
struct Member {
    /// Identifies it in all workers.
    number: u64,
    topics: Vec<u32>,
    /// Missed messages that its handler has not asked for.
    missed: u64,
}

/// A bound was reached.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// See the module.
pub struct SubscriptionTable {
    bounds: TopicBounds,
    topics: HashMap<u32, Topic>,
    numbers: HashMap<Box<str>, u32>,
    members: HashMap<u64, Member>,
    last_topic: u32,
    last_ticket: u32,
    /// The last number given to a connection.
    last_number: u64,
    /// Topics whose number of subscribers may have changed.
    recount: Vec<u32>,
    /// Topic and connection of each subscription that waits for the end of a fragmented message.
    blocked: Vec<(u32, u64)>,
    subscriptions: usize,
}

impl SubscriptionTable {
    /// An empty one. Numbers of connections follow `last_number`, which is another one in each worker.
    pub fn new(bounds: TopicBounds, last_number: u64) -> Self {
        SubscriptionTable {
            bounds,
            topics: HashMap::new(),
            numbers: HashMap::new(),
            members: HashMap::new(),
            last_topic: 0,
            last_ticket: 0,
            last_number,
            recount: Vec::new(),
            blocked: Vec::new(),
            subscriptions: 0,
        }
    }

    /// Subscriptions of all connections.
    pub fn len(&self) -> usize {
        self.subscriptions
    }

    /// Subscribes a connection to messages after `wanted.from`, or changes the flags of a subscription. `number` is
    /// that of a connection which has one from elsewhere. Requests to the bus are appended to `out`.
    pub fn subscribe(
        &mut self,
        conn: u64,
        key: &str,
        wanted: Subscription,
        number: Option<u64>,
        out: &mut Vec<u8>,
    ) -> Result<(), Full> {
        let known = self.numbers.get(key).copied();
        let member = self.members.get(&conn);
        let is_subscribed =
            known.is_some_and(|known| member.is_some_and(|member| member.topics.contains(&known)));
        if let Some(topic) = known.filter(|_| is_subscribed).and_then(|known| self.topics.get_mut(&known)) {
            let ours = topic.groups.iter_mut().find_map(|group| group.members.get_mut(&conn));
            ours.into_iter().for_each(|ours| ours.flags = wanted.flags);
            return Ok(());
        }
        let count = member.map_or(0, |member| member.topics.len());
        let TopicBounds { per_connection, topics, .. } = self.bounds;
        if count >= per_connection as usize || known.is_none() && self.topics.len() >= topics as usize {
            return Err(Full);
        }
        let topic = known.unwrap_or_else(|| self.add_topic(key));
        let member = || {
            self.last_number = self.last_number.wrapping_add(1).max(1); // 0 is nobody's
            Member { number: number.unwrap_or(self.last_number), topics: Vec::new(), missed: 0 }
        };
        self.members.entry(conn).or_insert_with(member).topics.push(topic);
        self.subscriptions += 1;
        self.recount.push(topic);
        self.place(topic, conn, wanted, out);
        Ok(())
    }

    fn add_topic(&mut self, key: &str) -> u32 {
        loop {
            self.last_topic = self.last_topic.wrapping_add(1);
            if !self.topics.contains_key(&self.last_topic) {
                break;
            }
        }
        let (groups, forms) = (Vec::new(), Vec::new());
        let topic = Topic { key: key.into(), groups, live_from: None, others: 0, reported: 1, forms };
        self.topics.insert(self.last_topic, topic);
        self.numbers.insert(key.into(), self.last_topic);
        self.last_topic
    }

    /// Makes a subscription live if it has missed nothing, else has it wait.
    fn place(&mut self, number: u32, conn: u64, wanted: Subscription, out: &mut Vec<u8>) {
        let Some(topic) = self.topics.get_mut(&number) else { return };
        if topic.live_from.is_some_and(|stamp| stamp <= wanted.from) {
            return topic.go_live(conn, wanted);
        }
        let is_requested =
            |group: &&mut Group| matches!(group.state, GroupState::Requested(_)) && group.from <= wanted.from;
        if let Some(group) = topic.groups.iter_mut().find(is_requested) {
            group.members.insert(conn, wanted);
            return;
        }
        let mut group =
            Group { state: GroupState::Blocked, from: wanted.from, members: [(conn, wanted)].into() };
        group.request(number, &topic.key, &mut self.last_ticket, out);
        topic.groups.push(group);
    }

    /// Ends a subscription; false if there is none.
    pub fn unsubscribe(&mut self, conn: u64, key: &str, out: &mut Vec<u8>) -> bool {
        let Some(&number) = self.numbers.get(key) else { return false };
        let Some(member) = self.members.get_mut(&conn) else { return false };
        let Some(index) = member.topics.iter().position(|topic| *topic == number) else { return false };
        member.topics.swap_remove(index);
        if member.topics.is_empty() && member.missed == 0 {
            self.members.remove(&conn);
        }
        self.remove(number, conn, out);
        true
    }

    /// A connection has ended, or moved.
    pub fn leave(&mut self, conn: u64, out: &mut Vec<u8>) {
        let Some(member) = self.members.remove(&conn) else { return };
        member.topics.into_iter().for_each(|topic| self.remove(topic, conn, out));
    }

    fn remove(&mut self, number: u32, conn: u64, out: &mut Vec<u8>) {
        let Some(topic) = self.topics.get_mut(&number) else { return };
        self.subscriptions -= usize::from(topic.remove(conn).is_some());
        if topic.len() > 0 {
            return self.recount.push(number);
        }
        if let Some(topic) = self.topics.remove(&number) {
            self.numbers.remove(&topic.key);
        }
        Request::Unsubscribe { topic: number }.append_to(out);
    }

    // ------------------------------------------------------ frames of the bus

    /// Calls `deliver` for each recipient of a message after `position`, in the order of ids. Stops early when
    /// `is_late`.
    pub fn deliver(
        &mut self,
        Recipients { topic: number, ticket, stamp, but }: Recipients,
        position: u64,
        mut deliver: impl FnMut(u64) -> Sharing,
        mut is_late: impl FnMut() -> bool,
    ) -> Delivered {
        let mut delivered = Delivered::default();
        let Self { topics, members, blocked, .. } = self;
        let Some(topic) = topics.get_mut(&number) else { return delivered };
        let state = GroupState::addressed(ticket);
        let is_live = state == GroupState::Live;
        if is_live {
            topic.pass(stamp);
        }
        let Some(group) = topic.group(state) else { return delivered };
        group.from = stamp;
        let mut stopped = Vec::new();
        let after = (Bound::Excluded(position), Bound::Unbounded);
        for (&conn, subscription) in group.members.range_mut(after) {
            let is_author = || but != 0 && members.get(&conn).is_some_and(|member| member.number == but);
            let outcome = (subscription.from < stamp && !is_author()).then(|| deliver(conn));
            match outcome {
                Some(Sharing::Unfinished) => stopped.push(conn),
                Some(Sharing::Full) => {
                    members.get_mut(&conn).into_iter().for_each(|member| member.missed += 1);
                    delivered.slow.push((conn, *subscription));
                }
                Some(Sharing::Sent) if !is_live => delivered.changed.push(conn),
                Some(Sharing::Sent | Sharing::Gone) | None => {}
            }
            if !is_live && outcome != Some(Sharing::Unfinished) {
                subscription.from = subscription.from.max(stamp);
            }
            if is_late() {
                delivered.last = Some(conn);
                break;
            }
        }
        for conn in stopped {
            let Some(subscription) = topic.remove(conn) else { continue };
            let from = stamp - 1; // it has seen everything before this message
            let members = [(conn, Subscription { from, ..subscription })].into();
            topic.groups.push(Group { state: GroupState::Blocked, from, members });
            blocked.push((number, conn));
            delivered.changed.push(conn);
        }
        delivered
    }

    /// All requested earlier messages have come: their group becomes live, and is returned.
    pub fn replayed(
        &mut self,
        number: u32,
        ticket: u32,
        stamp: u64,
        missed: u32,
    ) -> Vec<(u64, Subscription)> {
        let Some(topic) = self.topics.get_mut(&number) else { return Vec::new() };
        topic.live_from.get_or_insert(stamp);
        let state = GroupState::Requested(ticket);
        let Some(index) = topic.groups.iter().position(|group| group.state == state) else {
            return Vec::new();
        };
        let group = topic.groups.swap_remove(index);
        let mut live = Vec::new();
        for (conn, subscription) in group.members {
            let subscription = Subscription { from: subscription.from.max(stamp), ..subscription };
            topic.go_live(conn, subscription);
            live.push((conn, subscription));
            self.members.get_mut(&conn).into_iter().for_each(|member| member.missed += u64::from(missed));
        }
        live
    }

    /// `count` messages were dropped, the last with this stamp. Returns the recipients: live subscriptions, or those
    /// that wait with this ticket.
    pub fn missed(&mut self, number: u32, ticket: u32, stamp: u64, count: u32) -> Vec<(u64, Subscription)> {
        let Some(topic) = self.topics.get_mut(&number) else { return Vec::new() };
        let state = GroupState::addressed(ticket);
        if state == GroupState::Live {
            topic.pass(stamp);
        }
        let Some(group) = topic.group(state) else { return Vec::new() };
        let lacks = |(_, subscription): &(&u64, &Subscription)| subscription.from < stamp;
        let whom: Vec<(u64, Subscription)> =
            group.members.iter().filter(lacks).map(|(conn, subscription)| (*conn, *subscription)).collect();
        for (conn, _) in &whom {
            self.members.get_mut(conn).into_iter().for_each(|member| member.missed += u64::from(count));
        }
        whom
    }

    pub fn set_others(&mut self, number: u32, count: u32) {
        self.topics.get_mut(&number).into_iter().for_each(|topic| topic.others = count);
    }

    /// Subscribes to everything at a new bus. All subscriptions wait for messages that they have not seen; live ones
    /// have seen those up to `delivered`.
    pub fn subscribe_anew(&mut self, delivered: u64, out: &mut Vec<u8>) {
        for (&number, topic) in &mut self.topics {
            (topic.live_from, topic.others, topic.reported) = (None, 0, 1);
            topic.forms.clear();
            if let Some(live) = topic.group(GroupState::Live) {
                live.members.values_mut().for_each(|ours| ours.from = ours.from.max(delivered));
            }
            for group in topic.groups.iter_mut().filter(|group| group.state != GroupState::Blocked) {
                group.from = group.members.values().map(|ours| ours.from).min().unwrap_or(group.from);
                group.request(number, &topic.key, &mut self.last_ticket, out);
            }
            self.recount.push(number);
        }
    }

    /// Requests messages in this form, after one of `least` bytes had to be compressed here.
    pub fn want_compressed(&mut self, number: u32, form: Form, least: u32, out: &mut Vec<u8>) {
        let Some(topic) = self.topics.get_mut(&number) else { return };
        match topic.forms.iter_mut().find(|(known, _)| *known == form) {
            Some((_, known)) if *known <= least => return,
            Some((_, known)) => *known = least,
            None => topic.forms.push((form, least)),
        }
        Request::Compress { topic: number, form, least }.append_to(out);
    }

    // -------------------------------------------------------- once in a turn

    /// Whether [`tell_counts`](Self::tell_counts) or [`unblock`](Self::unblock) have anything to do.
    pub fn has_chores(&self) -> bool {
        !self.recount.is_empty() || !self.blocked.is_empty()
    }

    /// Reports to the bus how many subscribers there are, where that has changed.
    pub fn tell_counts(&mut self, out: &mut Vec<u8>) {
        for number in std::mem::take(&mut self.recount) {
            let Some(topic) = self.topics.get_mut(&number) else { continue };
            let count = u32::try_from(topic.len()).unwrap_or(u32::MAX);
            if topic.reported != count {
                topic.reported = count;
                Request::Count { topic: number, count }.append_to(out);
            }
        }
    }

    /// Requests what could not be sent between fragments, for connections that have ended their message; returns those.
    pub fn unblock(&mut self, is_free: impl Fn(u64) -> bool, out: &mut Vec<u8>) -> Vec<u64> {
        let mut free = Vec::new();
        for (number, conn) in std::mem::take(&mut self.blocked) {
            let Some(topic) = self.topics.get_mut(&number) else { continue };
            let is_it =
                |group: &&mut Group| group.state == GroupState::Blocked && group.members.contains_key(&conn);
            let Some(group) = topic.groups.iter_mut().find(is_it) else { continue };
            if !is_free(conn) {
                self.blocked.push((number, conn));
                continue;
            }
            group.request(number, &topic.key, &mut self.last_ticket, out);
            free.push(conn);
        }
        free
    }

    // -------------------------------------------------------------- questions

    /// Subscribers of a topic, here and elsewhere.
    pub fn subscribers(&self, key: &str) -> u64 {
        let topic = self.numbers.get(key).and_then(|number| self.topics.get(number));
        topic.map_or(0, |topic| topic.len() as u64 + u64::from(topic.others))
    }

    /// The number that identifies a connection in all workers; 0 without subscriptions.
    pub fn number_of(&self, conn: u64) -> u64 {
        self.members.get(&conn).map_or(0, |member| member.number)
    }

    /// Connections with subscriptions or unreported missed messages.
    pub fn members(&self) -> Vec<u64> {
        self.members.keys().copied().collect()
    }

    /// How many messages a connection has missed since the last call.
    pub fn take_missed(&mut self, conn: u64) -> u64 {
        let Some(member) = self.members.get_mut(&conn) else { return 0 };
        let missed = std::mem::take(&mut member.missed);
        if member.topics.is_empty() {
            self.members.remove(&conn);
        }
        missed
    }

    // ---------------------------------------------------------------- travelling

    /// What moves with a connection; empty without subscriptions and unreported missed messages.
    pub fn export(&self, conn: u64) -> Vec<u8> {
        let Some(Member { number, missed, topics }) = self.members.get(&conn) else { return Vec::new() };
        let travelling = |topic: &u32| {
            let topic = self.topics.get(topic)?;
            let name = split_key(&topic.key)?.1;
            let ours = |group: &Group| Some((group.state != GroupState::Live, *group.members.get(&conn)?));
            let (waits, subscription) = topic.groups.iter().find_map(ours)?;
            Some(Travelling { waits, subscription, name })
        };
        let subscriptions = topics.iter().filter_map(travelling).collect();
        Traveller { number: *number, missed: *missed, subscriptions }.write()
    }

    /// A connection has come with subscriptions to topics of this scope. Returns the number of those beyond the bounds,
    /// which are dropped.
    pub fn arrive(&mut self, conn: u64, scope: &str, traveller: &Traveller<'_>, out: &mut Vec<u8>) -> usize {
        let mut left_out = 0;
        for Travelling { subscription, name, .. } in &traveller.subscriptions {
            let key = key_of(scope, name);
            let result = self.subscribe(conn, &key, *subscription, Some(traveller.number), out);
            left_out += usize::from(result.is_err());
        }
        if traveller.missed > 0 {
            let member = || Member { number: traveller.number, topics: Vec::new(), missed: 0 };
            self.members.entry(conn).or_insert_with(member).missed += traveller.missed;
        }
        left_out
    }
}

/// The recipients of a message.
#[derive(Clone, Copy, Debug)]
pub struct Recipients {
    /// This worker's number for it.
    pub topic: u32,
    /// 0: all live ones; else those that were requested with this ticket.
    pub ticket: u32,
    /// Of the message.
    pub stamp: u64,
    /// The number of the connection to leave out; 0: none.
    pub but: u64,
}

/// What became of a message that was delivered.
#[derive(Debug, Default)]
pub struct Delivered {
    /// Some are left, after this one.
    pub last: Option<u64>,
    /// What moves with these connections has changed.
    pub changed: Vec<u64>,
    /// These have missed it, as their send queues are full.
    pub slow: Vec<(u64, Subscription)>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
