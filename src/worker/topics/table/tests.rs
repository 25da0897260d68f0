use super::*;
use crate::fleet::sockets::bus_wire::Incoming;

const KEY: &str = "/chat\0room";
const NOBODY: [u64; 0] = [];

struct Worker {
    table: SubscriptionTable,
    out: Vec<u8>,
}

impl Worker {
    fn new() -> Self {
        let bounds = TopicBounds { per_connection: 2, topics: 3, ..TopicBounds::default() };
        Worker { table: SubscriptionTable::new(bounds, 0), out: Vec::new() }
    }

    fn subscribe(&mut self, conn: u64, from: u64) -> Result<(), Full> {
        let wanted = Subscription { from, flags: 0 };
        self.table.subscribe(conn, KEY, wanted, Some(conn + 1000), &mut self.out)
    }

    /// What the bus is told, in short.
    fn said(&mut self) -> String {
        let mut incoming = Incoming::default();
        incoming.room(self.out.len()).copy_from_slice(&self.out);
        incoming.received(self.out.len(), self.out.len());
        self.out.clear();
        let mut said = Vec::new();
        while let Ok(Some(content)) = incoming.next_frame() {
            said.push(match Request::read(content) {
                Some(Request::Subscribe { topic, ticket, from, .. }) => {
                    format!("S{topic}/{ticket}>{from}")
                }
                other => format!("{other:?}"),
            });
        }
        said.join(" ")
    }

    /// Who gets a message with this stamp.
    fn deliver(&mut self, ticket: u32, stamp: u64, but: u64) -> Vec<u64> {
        let mut got = Vec::new();
        let whom = Recipients { topic: 1, ticket, stamp, but };
        let deliver = |conn| {
            got.push(conn);
            Sharing::Sent
        };
        assert_eq!(self.table.deliver(whom, 0, deliver, || false).last, None);
        got
    }
}

#[test]
fn a_subscription_waits_for_the_bus_and_then_gets_each_message_once() {
    let mut worker = Worker::new();
    worker.subscribe(1, 10).unwrap();
    worker.subscribe(2, 12).unwrap();
    assert_eq!(worker.said(), "S1/1>10", "one request serves both");
    assert_eq!(worker.deliver(0, 11, 0), NOBODY);
    assert_eq!(worker.deliver(1, 11, 0), [1]);
    assert_eq!(worker.deliver(1, 13, 0), [1, 2]);
    assert_eq!(worker.deliver(1, 13, 0), NOBODY, "the same again");
    let live = worker.table.replayed(1, 1, 13, 0);
    assert_eq!(live.iter().map(|(conn, _)| *conn).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(worker.deliver(0, 13, 0), NOBODY);
    assert_eq!(worker.deliver(0, 14, 1001), [2], "not to its author");
    // The next one is live at once.
    worker.subscribe(3, 20).unwrap();
    assert_eq!(worker.said(), "");
    assert_eq!((worker.deliver(0, 19, 0), worker.deliver(0, 21, 0)), (vec![1, 2], vec![1, 2, 3]));
}

#[test]
fn one_that_has_moved_gets_what_it_has_not_seen_elsewhere() {
    let (mut from, mut to) = (Worker::new(), Worker::new());
    from.subscribe(1, 10).unwrap();
    from.table.replayed(1, 1, 10, 0);
    from.table.missed(1, 0, 11, 3);
    let bytes = from.table.export(1);
    let traveller = Traveller::read(&bytes).unwrap().settle(50);
    assert_eq!((traveller.number, traveller.missed), (1001, 3));
    let [Travelling { subscription, name: "room", .. }] = traveller.subscriptions[..] else { panic!() };
    assert_eq!(subscription.from, 50);

    to.subscribe(7, 5).unwrap();
    to.table.replayed(1, 1, 5, 0);
    to.said();
    // The other worker is ahead.
    assert_eq!(to.deliver(0, 60, 0), [7]);
    assert_eq!(to.table.arrive(8, "/chat", &traveller, &mut to.out), 0);
    assert_eq!(to.said(), "S1/2>50");
    assert_eq!(to.deliver(0, 61, 0), [7]);
    assert_eq!((to.deliver(2, 55, 0), to.deliver(2, 61, 0)), (vec![8], vec![8]));
    // It goes on, in the middle of that.
    let bytes = to.table.export(8);
    let again = Traveller::read(&bytes).unwrap().settle(99);
    assert_eq!((again.subscriptions[0].subscription.from, again.missed), (61, 3));
    assert_eq!((to.table.take_missed(8), to.table.take_missed(8)), (3, 0));
    to.table.replayed(1, 2, 61, 0);
    assert_eq!(to.deliver(0, 62, 1001), [7], "it is the same subscriber");
    // The other worker is behind.
    let mut behind = Worker::new();
    behind.subscribe(7, 5).unwrap();
    behind.table.replayed(1, 1, 5, 0);
    behind.table.arrive(8, "/chat", &traveller, &mut behind.out);
    assert_eq!((behind.deliver(0, 45, 0), behind.deliver(0, 51, 0)), (vec![7], vec![7, 8]));
}

#[test]
fn whoever_comes_in_the_middle_of_a_replay_asks_for_what_has_gone_by() {
    let mut worker = Worker::new();
    worker.subscribe(1, 10).unwrap();
    assert_eq!(worker.deliver(1, 15, 0), [1]);
    worker.said();
    worker.subscribe(2, 12).unwrap();
    assert_eq!(worker.said(), "S1/2>12");
    worker.subscribe(3, 15).unwrap();
    assert_eq!(worker.said(), "", "all that it waits for is still to come");
    assert_eq!(worker.deliver(1, 20, 0), [1, 3]);
    worker.table.replayed(1, 1, 20, 0);
    assert_eq!(worker.deliver(0, 21, 0), [1, 3]);
    assert_eq!([15, 20, 21].map(|stamp| worker.deliver(2, stamp, 0)), [[2], [2], [2]]);
}

#[test]
fn whoever_comes_after_a_message_was_dropped_here_asks_for_it() {
    let mut worker = Worker::new();
    worker.subscribe(1, 10).unwrap();
    worker.table.replayed(1, 1, 10, 0);
    worker.said();
    assert_eq!(worker.table.missed(1, 0, 20, 2), [(1, Subscription { from: 10, flags: 0 })]);
    worker.subscribe(2, 20).unwrap();
    assert_eq!(worker.said(), "");
    worker.subscribe(3, 19).unwrap();
    assert_eq!(worker.said(), "S1/2>19");
    assert_eq!(worker.table.missed(1, 2, 18, 1), []);
}

#[test]
fn a_message_in_fragments_is_waited_for() {
    let mut worker = Worker::new();
    worker.subscribe(1, 10).unwrap();
    worker.subscribe(2, 10).unwrap();
    worker.table.replayed(1, 1, 10, 0);
    worker.said();
    let whom = |stamp| Recipients { topic: 1, ticket: 0, stamp, but: 0 };
    let deliver = |conn| if conn == 1 { Sharing::Unfinished } else { Sharing::Sent };
    assert_eq!(worker.table.deliver(whom(20), 0, deliver, || false).changed, [1]);
    assert_eq!(worker.deliver(0, 21, 0), [2]);
    assert!(worker.table.unblock(|_| false, &mut worker.out).is_empty() && worker.table.has_chores());
    assert_eq!(worker.table.unblock(|_| true, &mut worker.out), [1]);
    assert_eq!(worker.said(), "S1/2>19");
    assert_eq!((worker.deliver(2, 20, 0), worker.deliver(2, 21, 0)), (vec![1], vec![1]));
    worker.table.replayed(1, 2, 21, 0);
    assert_eq!(worker.deliver(0, 22, 0), [1, 2]);
}

#[test]
fn a_new_bus_is_told_all_and_asked_for_what_came_meanwhile() {
    let mut worker = Worker::new();
    worker.subscribe(1, 10).unwrap();
    worker.table.replayed(1, 1, 10, 0);
    worker.subscribe(2, 5).unwrap();
    worker.said();
    worker.table.subscribe_anew(30, &mut worker.out);
    assert_eq!(worker.said(), "S1/3>30 S1/4>5");
    assert_eq!(worker.deliver(0, 31, 0), NOBODY);
    assert_eq!((worker.deliver(3, 31, 0), worker.deliver(4, 31, 0)), (vec![1], vec![2]));
}

#[test]
fn a_broadcast_goes_on_where_it_was_interrupted() {
    let mut worker = Worker::new();
    (1..=5).for_each(|conn| worker.subscribe(conn, 10).unwrap());
    worker.table.replayed(1, 1, 10, 0);
    let (mut got, mut position) = (Vec::new(), Some(0));
    while let Some(at) = position {
        let whom = Recipients { topic: 1, ticket: 0, stamp: 20, but: 0 };
        let mut count = 0;
        let deliver = |conn| {
            got.push(conn);
            Sharing::Sent
        };
        let is_late = || {
            count += 1;
            count == 2
        };
        position = worker.table.deliver(whom, at, deliver, is_late).last;
        worker.table.leave(3, &mut worker.out);
    }
    assert_eq!(got, [1, 2, 4, 5]);
}

#[test]
fn counts_and_bounds() {
    let mut worker = Worker::new();
    worker.subscribe(1, 0).unwrap();
    worker.subscribe(1, 0).unwrap();
    worker.subscribe(2, 0).unwrap();
    assert_eq!((worker.table.len(), worker.table.subscribers(KEY)), (2, 2));
    worker.said();
    worker.table.tell_counts(&mut worker.out);
    assert_eq!(worker.said(), "Some(Count { topic: 1, count: 2 })");
    worker.table.set_others(1, 5);
    assert_eq!(worker.table.subscribers(KEY), 7);
    worker.table.replayed(1, 1, 0, 3);
    assert_eq!((worker.table.take_missed(1), worker.table.take_missed(1)), (3, 0));
    assert!(worker.table.unsubscribe(1, KEY, &mut worker.out));
    assert!(!worker.table.unsubscribe(1, KEY, &mut worker.out));
    worker.table.leave(2, &mut worker.out);
    assert!(worker.said().ends_with("Some(Unsubscribe { topic: 1 })"));
    assert_eq!((worker.table.len(), worker.table.topics.len(), worker.table.members.len()), (0, 0, 0));
    let mut subscribe = |conn, key| {
        let wanted = Subscription { from: 0, flags: 0 };
        worker.table.subscribe(conn, key, wanted, Some(conn), &mut worker.out)
    };
    assert_eq!(
        [subscribe(1, "s\0a"), subscribe(1, "s\0b"), subscribe(1, "s\0c")],
        [Ok(()), Ok(()), Err(Full)]
    );
    assert_eq!(
        [subscribe(2, "s\0c"), subscribe(2, "s\0d"), subscribe(2, "s\0a")],
        [Ok(()), Err(Full), Ok(())]
    );
}

#[test]
fn a_connection_takes_along_what_it_has_missed_without_a_subscription() {
    let (mut from, mut to) = (Worker::new(), Worker::new());
    from.subscribe(1, 10).unwrap();
    from.table.replayed(1, 1, 10, 2);
    from.table.unsubscribe(1, KEY, &mut from.out);
    let bytes = from.table.export(1);
    to.table.arrive(8, "/chat", &Traveller::read(&bytes).unwrap(), &mut to.out);
    assert_eq!((to.table.take_missed(8), to.table.len()), (2, 0));
    to.table.leave(8, &mut to.out);
    assert!(to.table.members().is_empty() && to.table.export(8).is_empty());
}

#[test]
fn malformed_bytes_are_no_traveller() {
    let traveller = Traveller { number: u64::from_ne_bytes([1; 8]), missed: 0, subscriptions: vec![] };
    assert_eq!(Traveller::read(&[[1; 8], [0; 8]].concat()), Some(traveller));
    for junk in [&[0; 3][..], &[0; 17], &[1; 26], &[255; 48]] {
        assert_eq!(Traveller::read(junk), None);
    }
}

#[test]
fn a_bus_is_asked_once_to_compress_and_again_for_shorter_messages() {
    let mut worker = Worker::new();
    worker.subscribe(1, 10).unwrap();
    let said = |worker: &mut Worker, size| {
        worker.table.want_compressed(1, (12, 2), size, &mut worker.out);
        worker.said()
    };
    assert_eq!(worker.said(), "S1/1>10");
    assert_eq!(said(&mut worker, 500), "Some(Compress { topic: 1, form: (12, 2), least: 500 })");
    assert_eq!([said(&mut worker, 500), said(&mut worker, 900)], ["", ""]);
    assert!(said(&mut worker, 90).ends_with("least: 90 })"));
    worker.table.subscribe_anew(0, &mut worker.out);
    worker.said();
    assert!(said(&mut worker, 500).ends_with("least: 500 })"), "another bus");
}
