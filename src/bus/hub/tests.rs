use super::*;
use crate::fleet::sockets::bus_wire::Incoming;

const LIMITS: Limits = Limits { queue: 1000, history: 2000, age: Duration::from_secs(10), topics: 2 };
const KEY: &str = "/chat\0room";

fn hub(workers: u64) -> Hub {
    let mut hub = Hub::new(LIMITS, vec![(0, "/chat".to_owned()), (1, "shared".to_owned())]);
    (1..=workers).for_each(|token| hub.connect(token, 0));
    hub
}

fn send(hub: &mut Hub, token: u64, request: Request<'_>, now: u64) -> Result<(), Breach> {
    let mut bytes = Vec::new();
    request.append_to(&mut bytes);
    hub.take_in(token, &bytes[4..], Instant::from_nanos(now)).map(drop)
}

fn subscribe(hub: &mut Hub, token: u64, ticket: u32, from: u64) {
    send(hub, token, Request::Subscribe { topic: 5, ticket, from, key: KEY }, 0).unwrap();
}

fn publish(hub: &mut Hub, token: u64, payload: &[u8], now: u64) {
    let message = Publication { but: 0, kind: 1, compress: true, payload };
    send(hub, token, Request::Publish { time: now, key: KEY, message }, now).unwrap();
}

/// What a worker was sent, in short.
fn sent(hub: &mut Hub, token: u64) -> String {
    let out = hub.out(token).unwrap();
    let bytes = out.unsent().to_vec();
    out.advance(bytes.len());
    let mut incoming = Incoming::default();
    incoming.room(bytes.len()).copy_from_slice(&bytes);
    incoming.received(bytes.len(), bytes.len());
    let mut all = Vec::new();
    while let Some(content) = incoming.next_frame().unwrap() {
        all.push(match Notice::read(content).unwrap() {
            Notice::Message { ticket, stamp, message, .. } => {
                format!("{}@{stamp}/{ticket}", message.payload.escape_ascii())
            }
            Notice::Replayed { ticket, stamp, missed, .. } => {
                format!("replayed@{stamp}/{ticket}-{missed}")
            }
            Notice::Compressed { form, payload } => format!("{form:?}:{}", payload.len()),
            other => format!("{other:?}"),
        });
    }
    all.join(" ")
}

#[test]
fn a_message_goes_to_each_worker_that_has_subscribed_with_rising_stamps() {
    let mut hub = hub(3);
    subscribe(&mut hub, 1, 1, 0);
    subscribe(&mut hub, 2, 1, 0);
    publish(&mut hub, 3, b"a", 100);
    publish(&mut hub, 1, b"b", 100);
    for token in [1, 2] {
        assert_eq!(sent(&mut hub, token), "replayed@0/1-0 a@100/0 b@101/0");
    }
    assert_eq!(sent(&mut hub, 3), "");
    hub.end_turn();
    assert_eq!(sent(&mut hub, 3), "Taken { count: 1 }");
    send(&mut hub, 2, Request::Unsubscribe { topic: 5 }, 0).unwrap();
    hub.disconnect(1);
    publish(&mut hub, 3, b"c", 200);
    assert_eq!(sent(&mut hub, 2), "");
    assert_eq!(hub.topics().count(), 0);
}

#[test]
fn a_late_subscriber_gets_the_messages_after_the_stamp_it_names() {
    let mut hub = hub(2);
    subscribe(&mut hub, 1, 1, 0);
    for (payload, now) in [(b"a", 10), (b"b", 20), (b"c", 30)] {
        publish(&mut hub, 1, payload, now);
    }
    subscribe(&mut hub, 2, 7, 10);
    publish(&mut hub, 1, b"d", 40);
    assert_eq!(sent(&mut hub, 2), "b@20/7 c@30/7 replayed@30/7-0 d@40/0");
    subscribe(&mut hub, 2, 8, 30);
    assert_eq!(sent(&mut hub, 2), "d@40/8 replayed@40/8-0");
}

#[test]
fn the_next_bus_takes_over_the_history() {
    let mut old = hub(1);
    subscribe(&mut old, 1, 1, 0);
    (10..13).for_each(|now| publish(&mut old, 1, b"m", now));
    let mut new = hub(1);
    new.take_over(old.history());
    subscribe(&mut new, 1, 7, 10);
    publish(&mut new, 1, b"n", 5);
    assert_eq!(sent(&mut new, 1), "m@11/7 m@12/7 replayed@12/7-0 n@13/0");
    new.expire(Instant::from_nanos(20_000_000_000));
    assert!(new.order.is_empty() && new.kept == 0);
}

#[test]
fn the_history_is_bounded_and_a_gap_is_reported() {
    let mut hub = hub(2);
    subscribe(&mut hub, 1, 1, 0);
    (1..=3).for_each(|now| publish(&mut hub, 1, &[b'x'; 600], now));
    subscribe(&mut hub, 2, 7, 0);
    let all = sent(&mut hub, 2);
    assert!(
        all.starts_with("Missed { topic: 5, ticket: 7, stamp: 1, count: 1 }")
            && all.ends_with("replayed@3/7-0")
    );
    hub.expire(Instant::from_nanos(3 + 10_000_000_000));
    subscribe(&mut hub, 2, 8, 2);
    assert_eq!(sent(&mut hub, 2), "Missed { topic: 5, ticket: 8, stamp: 3, count: 1 } replayed@3/8-0");
    subscribe(&mut hub, 2, 9, 3);
    assert_eq!(sent(&mut hub, 2), "replayed@3/9-0");
    assert!(hub.order.is_empty() && hub.kept == 0);
    hub.disconnect(1);
    hub.disconnect(2);
    hub.expire(Instant::from_nanos(3 + 60_000_000_000));
    assert!(hub.topics.is_empty() && hub.unused.is_empty());
}

#[test]
fn a_gap_is_remembered_without_subscribers_and_by_the_next_bus() {
    let mut hub = hub(2);
    publish(&mut hub, 1, b"a", 1_000);
    hub.expire(Instant::from_nanos(11_000_000_000));
    let mut following = Hub::new(LIMITS, vec![(0, "/chat".to_owned())]);
    following.take_over(hub.history());
    following.connect(1, 0);
    for hub in [&mut hub, &mut following] {
        subscribe(hub, 1, 7, 999);
        assert_eq!(sent(hub, 1), "Missed { topic: 5, ticket: 7, stamp: 1000, count: 1 } replayed@1000/7-0");
        subscribe(hub, 1, 8, 1_000);
        assert_eq!(sent(hub, 1), "replayed@1000/8-0");
        hub.disconnect(1);
        hub.connect(1, 0);
        // Later, the gap is assumed in every topic.
        hub.expire(Instant::from_nanos(61_000_000_000));
        assert!(hub.topics.is_empty());
        subscribe(hub, 1, 7, 999);
        assert!(sent(hub, 1).starts_with("Missed"));
        subscribe(hub, 1, 8, 1_000);
        assert_eq!(sent(hub, 1), "replayed@1000/8-0");
    }
}

#[test]
fn a_slow_worker_learns_how_many_messages_it_missed() {
    let mut hub = hub(2);
    subscribe(&mut hub, 1, 1, 0);
    (1..=5).for_each(|now| publish(&mut hub, 2, &[b'x'; 600], now));
    hub.end_turn();
    let got = sent(&mut hub, 1);
    assert_eq!((got.matches("/0").count(), got.matches("Missed").count()), (2, 0), "{got}");
    publish(&mut hub, 2, b"y", 6);
    assert_eq!(sent(&mut hub, 1), "Missed { topic: 5, ticket: 0, stamp: 5, count: 3 } y@6/0");
}

#[test]
fn a_worker_without_messages_learns_the_last_stamp() {
    let mut hub = hub(2);
    send(&mut hub, 1, Request::Subscribe { topic: 5, ticket: 1, from: 0, key: "/chat\0quiet" }, 0).unwrap();
    subscribe(&mut hub, 2, 1, 0);
    publish(&mut hub, 2, b"a", 10);
    hub.report_passed();
    hub.report_passed();
    assert_eq!(sent(&mut hub, 1), "replayed@0/1-0 Passed { stamp: 10 }");
    assert_eq!(sent(&mut hub, 2), "replayed@0/1-0 a@10/0");
    // Not before the missed messages were reported.
    (11..=15).for_each(|now| publish(&mut hub, 1, &[b'x'; 600], now));
    hub.report_passed();
    assert_eq!(sent(&mut hub, 2).matches("Passed").count(), 0);
    hub.report_passed();
    assert_eq!(sent(&mut hub, 2), "Missed { topic: 5, ticket: 0, stamp: 15, count: 3 } Passed { stamp: 15 }");
}

#[test]
fn breaches_of_the_protocol_are_detected() {
    let mut hub = hub(1);
    let subscribe = |topic, key| Request::Subscribe { topic, ticket: 1, from: 0, key };
    assert_eq!(send(&mut hub, 1, subscribe(1, "shared\0a"), 0), Err(Breach::Scope));
    assert_eq!(send(&mut hub, 1, subscribe(1, "/chat\0a"), 0), Ok(()));
    assert_eq!(send(&mut hub, 1, subscribe(1, "/chat\0b"), 0), Err(Breach::Malformed));
    assert_eq!(send(&mut hub, 1, subscribe(2, "/chat\0a"), 0), Err(Breach::Malformed));
    assert_eq!(send(&mut hub, 1, subscribe(2, "/chat\0b"), 0), Ok(()));
    assert_eq!(send(&mut hub, 1, subscribe(3, "/chat\0c"), 0), Err(Breach::Topics));
    let message = Publication { but: 0, kind: 1, compress: false, payload: b"\xff" };
    assert_eq!(send(&mut hub, 1, Request::Publish { time: 0, key: KEY, message }, 0), Err(Breach::NotUtf8));
    assert_eq!(
        send(&mut hub, 1, Request::Publish { time: 0, key: "shared\0a", message }, 0),
        Err(Breach::Scope)
    );
    assert_eq!(hub.take_in(1, b"?", Instant::default()), Err(Breach::Malformed));
}

#[test]
fn workers_learn_the_number_of_subscribers_of_other_workers() {
    let mut hub = hub(2);
    subscribe(&mut hub, 1, 1, 0);
    subscribe(&mut hub, 2, 1, 0);
    send(&mut hub, 1, Request::Count { topic: 5, count: 30 }, 0).unwrap();
    hub.report_counts();
    assert!(sent(&mut hub, 2).ends_with("Others { topic: 5, count: 30 }"));
    assert!(!hub.has_changed_counts());
    hub.disconnect(1);
    hub.report_counts();
    assert_eq!(sent(&mut hub, 2), "Others { topic: 5, count: 0 }");
}

#[test]
fn the_queue_of_a_worker_that_reads_nothing_is_bounded() {
    let mut hub = hub(2);
    subscribe(&mut hub, 1, 1, 0);
    subscribe(&mut hub, 2, 1, 0);
    while hub.out(2).unwrap().len() <= LIMITS.queue {
        publish(&mut hub, 1, &[b'x'; 100], 0);
    }
    let before = hub.out(2).unwrap().len();
    for count in 0..100 {
        send(&mut hub, 1, Request::Count { topic: 5, count }, 0).unwrap();
        publish(&mut hub, 2, b"y", 0);
        hub.report_counts();
        hub.end_turn();
    }
    assert_eq!(hub.out(2).unwrap().len(), before);
    sent(&mut hub, 2);
    hub.end_turn();
    hub.report_counts();
    let late = sent(&mut hub, 2);
    assert!(
        late.contains("Taken { count: 100 }") && late.ends_with("Others { topic: 5, count: 99 }"),
        "{late}"
    );
    let again = Request::Subscribe { topic: 5, ticket: 1, from: 0, key: KEY };
    let refused = (0..REPLIES).find_map(|_| send(&mut hub, 2, again, 0).err());
    assert_eq!(refused, Some(Breach::Unread));
}

#[test]
fn a_message_is_compressed_once_for_all_workers_that_want_the_same_form() {
    const TEA: &[u8] = &[b't'; 100];
    let mut hub = hub(4);
    (1..=3).for_each(|token| subscribe(&mut hub, token, 1, 0));
    let mut ask = |token, form, least| {
        send(&mut hub, token, Request::Compress { topic: 5, form, least }, 0).unwrap();
    };
    ask(1, (12, 2), 64);
    ask(1, (12, 9), 0);
    ask(2, (12, 9), 0);
    ask(2, (15, 2), 0);
    ask(3, (15, 2), 200);
    for token in 1..=3 {
        assert_eq!(sent(&mut hub, token), "replayed@0/1-0");
    }
    let tea = String::from_utf8_lossy(TEA);
    let check = |hub: &mut Hub, expected: [&str; 3]| {
        for (token, before) in (1..).zip(expected) {
            let sent = sent(hub, token);
            assert!(sent.starts_with(&format!("{before}{tea}")), "{token}: {sent}");
        }
    };
    publish(&mut hub, 4, TEA, 10);
    check(&mut hub, ["", "", ""]); // each form is wanted by one worker, or takes too long
    send(&mut hub, 3, Request::Compress { topic: 5, form: (12, 2), least: 100 }, 0).unwrap();
    publish(&mut hub, 4, TEA, 20);
    check(&mut hub, ["(12, 2):6 ", "", "(12, 2):6 "]);
    publish(&mut hub, 4, &TEA[1..], 30);
    assert!(!sent(&mut hub, 1).contains(':'), "another worker finds it too short");
    publish(&mut hub, 4, &[b't'; 65537], 40);
    assert!(!sent(&mut hub, 2).contains(':'), "too long for the bus");
}
