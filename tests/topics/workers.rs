//! Topics within one worker, and between several.

use std::collections::BTreeSet;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{self, BINARY, Raw};
use crate::daemon::{Dir, Server, children, is_alive, until};
use crate::fixtures::add_handler;

fn start(handlers: &[&str], args: &[&str]) -> (Dir, Server) {
    crate::start(Dir::new(), handlers, args)
}

/// Connections to this resource, at least one in each of this many workers.
fn in_all_workers(server: &Server, resource: &str, workers: usize) -> Vec<Raw> {
    let (mut all, mut pids) = (Vec::new(), BTreeSet::new());
    until("a connection in each worker", || {
        let mut one = Raw::open(&server.address(), resource);
        pids.insert(one.ask("pid"));
        all.push(one);
        pids.len() == workers
    });
    all
}

/// A connection whose on_open has been called, which may be later than the end of the opening handshake.
fn open_for_handler(server: &Server, resource: &str) -> Raw {
    let mut one = Raw::open(&server.address(), resource);
    one.frame(0x89, b"");
    assert_eq!(one.next().unwrap().first, 0x8a);
    one
}

/// The bus process, once it exists.
fn bus_of(server: &Server) -> Option<i32> {
    let title = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    children(server.pid()).into_iter().find(|pid| title(pid).starts_with("wshd: bus"))
}

#[test]
fn a_message_reaches_each_subscriber_in_each_worker_once() {
    let (_dir, mut server) = start(&["topics"], &["--workers", "4"]);
    assert_eq!(bus_of(&server), None, "it comes when topics are used");
    let mut all = in_all_workers(&server, "/topics", 4);
    let mut stranger = Raw::open(&server.address(), "/topics");
    assert_eq!(stranger.ask("sub other"), "sub 0");
    for one in &mut all {
        assert_eq!(one.ask("sub news"), "sub 0");
    }
    for (index, text) in ["first", "second", "third"].into_iter().enumerate() {
        all[index].text(&format!("quiet news {text}"));
        for one in &mut all {
            assert_eq!(one.next_text(), text);
        }
    }
    assert!(bus_of(&server).is_some());
    // A connection that has unsubscribed gets no more, and the publisher may exclude itself.
    assert_eq!(all[0].ask("unsub news"), "unsub 0");
    assert_eq!(all[0].ask("unsub news"), "unsub -5");
    assert_eq!(all[1].ask("others news fourth"), "others 0");
    all[2].text("quiet news fifth");
    for (index, one) in all.iter_mut().enumerate().skip(1) {
        let expected = if index == 1 { vec!["fifth"] } else { vec!["fourth", "fifth"] };
        assert_eq!(expected.iter().map(|_| one.next_text()).collect::<Vec<_>>(), expected);
    }
    for one in [&mut all[0], &mut stranger] {
        assert_eq!(one.ask("missed"), "missed 0", "nothing has come before");
    }
    until("all are counted", || all[1].ask("count news") == format!("count {}", all.len() - 1));
    drop((all, stranger));
    server.stop();
}

#[test]
fn each_call_has_the_results_of_the_header() {
    let (_dir, mut server) = start(&["topics"], &["--workers", "1"]);
    let mut one = Raw::open(&server.address(), "/topics");
    let long = "x".repeat(256);
    for (command, answer) in [
        ("sub a", "sub 0"),
        ("sub a", "sub 0"),
        ("sub", "sub -5"),
        ("sub \u{1}", "sub -5"),
        (&format!("sub {long}"), "sub -5"),
        (&format!("sub {}", &long[1..]), "sub 0"),
        ("unsub b", "unsub -5"),
        ("pub b nobody", "pub 0"),
        ("flags b 1", "flags -5"),
        ("flags b 4096", "flags -5"),
        ("flags b 2", "flags 0"),
        ("big b 1048576", "big 0"),
        ("big b 1048577", "big -7"),
        ("count a", "count 1"),
        ("count b", "count 0"),
    ] {
        assert_eq!(one.ask(command), answer, "{command}");
    }
    let results: Vec<String> = (0..63).map(|index| one.ask(&format!("sub t{index}"))).collect();
    assert!(results[..62].iter().all(|result| result == "sub 0") && results[62] == "sub -7", "{results:?}");
    drop(one);
    server.stop();
}

#[test]
fn a_slow_subscriber_is_closed_or_gets_its_missed_count() {
    let (_dir, mut server) =
        start(&["topics"], &["--workers", "1", "-o", "send_high=64K", "-o", "send_low=16K"]);
    let mut fast = Raw::open(&server.address(), "/topics");
    let (mut closed, mut dropped) =
        (Raw::open(&server.address(), "/topics"), Raw::open(&server.address(), "/topics"));
    assert_eq!((closed.ask("sub news"), dropped.ask("drop news")), ("sub 0".to_owned(), "drop 0".to_owned()));
    // More than the sockets and the queues hold.
    let mut published = 0;
    until("one is too slow", || {
        let answer = fast.ask("many news 10 100000");
        published += answer.strip_prefix("many ").unwrap().parse::<u64>().unwrap();
        server.log().contains("too slow for the topics it is subscribed to; closed with 1013")
    });
    closed.expect_close(1013);
    let (mut messages, mut missed) = (0, 0);
    while messages + missed < published {
        let frame = dropped.next().unwrap();
        match frame.first & 15 {
            2 => messages += 1,
            1 => {
                missed += String::from_utf8(frame.payload)
                    .unwrap()
                    .strip_prefix("writable ")
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(messages + missed, published);
    assert!(missed > 0);
    assert_eq!(fast.ask("pub news on"), "pub 0");
    assert_eq!(dropped.next_text(), "on");
    drop((fast, closed, dropped));
    server.stop();
}

/// Two subscribers in one worker, the first of which has been sent the beginning of a message.
fn in_the_middle_of_a_message() -> (Dir, Server, Raw, Raw) {
    let (dir, server) = start(&["topics"], &["--workers", "1"]);
    let [mut one, mut other] = [(); 2].map(|()| Raw::open(&server.address(), "/topics"));
    assert_eq!((one.ask("sub news"), other.ask("sub news")), ("sub 0".to_owned(), "sub 0".to_owned()));
    one.text("begin");
    assert_eq!(one.next().unwrap().payload, b"be");
    (dir, server, one, other)
}

#[test]
fn a_message_is_not_inserted_into_a_fragmented_one() {
    let (_dir, mut server, mut one, mut other) = in_the_middle_of_a_message();
    for text in ["x", "y"] {
        other.text(&format!("quiet news {text}"));
        assert_eq!(other.next_text(), text);
    }
    one.text("end");
    assert_eq!(one.next().unwrap().payload, b"gin");
    assert_eq!((one.next_text(), one.next_text()), ("x".to_owned(), "y".to_owned()));
    drop((one, other));
    server.stop();
}

/// Only what a connection sends matters, not what it receives.
#[test]
fn a_message_waits_for_the_end_of_a_fragmented_one_and_not_for_that_of_the_peer() {
    let (_dir, mut server, mut one, mut other) = in_the_middle_of_a_message();
    other.text("quiet news x");
    assert_eq!(other.next_text(), "x");
    // Behind the command is the beginning of a message.
    one.send(&[client::frame(client::TEXT, b"end"), client::frame(0x01, b"half")].concat());
    assert_eq!(one.next().unwrap().payload, b"gin");
    assert_eq!(one.next_text(), "x");
    drop((one, other));
    server.stop();
}

/// Each worker compresses the first message, the bus the next ones; a new bus must be asked again.
#[test]
fn compressed_messages_are_the_same_in_all_workers() {
    let (_dir, mut server) = start(&["topics"], &["--workers", "2"]);
    let (mut all, mut pids) = (Vec::new(), BTreeSet::new());
    until("a connection in each worker", || {
        let mut one = Raw::connect(&server.address());
        one.upgrade("/topics", "Sec-WebSocket-Extensions: permessage-deflate\r\n");
        pids.insert(one.ask("pid"));
        assert_eq!(one.ask("sub news"), "sub 0");
        all.push(one);
        pids.len() == 2
    });
    for round in 0..2 {
        for size in [1000, 2000, 70_000, 3000] {
            let mut publisher = Raw::open(&server.address(), "/topics");
            assert_eq!(publisher.ask(&format!("big news {size}")), "big 0");
            for one in &mut all {
                let frame = one.next().unwrap();
                assert_eq!(frame.first, 0x40 | BINARY, "{size}");
                let (mut inflated, wire) =
                    (Vec::with_capacity(100_000), [&frame.payload[..], b"\0\0\xff\xff"].concat());
                let mut inflater = flate2::Decompress::new(false);
                inflater.decompress_vec(&wire, &mut inflated, flate2::FlushDecompress::Sync).unwrap();
                assert!(inflated == vec![0; size], "{size}: {}", inflated.len());
            }
        }
        if round == 0 {
            let bus = bus_of(&server).unwrap();
            kill(Pid::from_raw(bus), Signal::SIGKILL).unwrap();
            until("another one", || bus_of(&server).is_some_and(|other| other != bus));
            all.iter_mut().for_each(|one| drop(one.ask("pid")));
        }
    }
    drop(all);
    server.stop();
}

#[test]
fn the_bus_is_replaced_when_it_dies_and_topics_continue() {
    let (_dir, mut server) = start(&["topics"], &["--workers", "2"]);
    let mut all = in_all_workers(&server, "/topics", 2);
    for one in &mut all {
        assert_eq!(one.ask("sub news"), "sub 0");
    }
    for round in 0..3 {
        until("a bus", || bus_of(&server).is_some());
        let bus = bus_of(&server).unwrap();
        kill(Pid::from_raw(bus), Signal::SIGKILL).unwrap();
        // Messages in transit to it are lost. Those published from here on wait for its replacement, in whatever order
        // workers connect.
        until("another one", || bus_of(&server).is_some_and(|other| other != bus));
        all.iter_mut().for_each(|one| drop(one.ask("pid")));
        for (index, one) in all.iter_mut().enumerate() {
            one.text(&format!("quiet news {round}-{index}"));
        }
        let count = all.len();
        let expected: BTreeSet<String> = (0..count).map(|index| format!("{round}-{index}")).collect();
        for one in &mut all {
            let heard: BTreeSet<String> = (0..count).map(|_| one.next_text()).collect();
            assert_eq!(heard, expected);
        }
    }
    drop(all);
    server.stop();
}

#[test]
fn a_worker_whose_supervisor_has_died_does_not_look_for_another_bus() {
    let (_dir, mut server) = start(&["topics"], &["--workers", "1", "-o", "close_timeout=500ms"]);
    let mut one = Raw::open(&server.address(), "/topics");
    assert_eq!(one.ask("sub news"), "sub 0");
    until("a bus", || bus_of(&server).is_some());
    let worker = server.worker();
    server.signal(Signal::SIGKILL);
    server.wait();
    one.expect_close(1001);
    // The client does not answer, so the worker stays for a while.
    until("the worker has left", || !is_alive(worker));
    assert!(!server.log().contains("cannot connect to the bus"), "{}", server.log());
}

#[test]
fn messages_published_before_a_death_arrive() {
    let (_dir, mut server) = start(&["topics"], &["--workers", "2"]);
    let mut all = in_all_workers(&server, "/topics", 2);
    for one in &mut all {
        assert_eq!(one.ask("sub news"), "sub 0");
    }
    until("the bus knows all", || all[0].ask("count news") == format!("count {}", all.len()));
    let pid_of = |one: &mut Raw| one.ask("pid").strip_prefix("pid ").unwrap().parse::<i32>().unwrap();
    let doomed = pid_of(&mut all[0]);
    let mut witness =
        all.into_iter().find_map(|mut one| (pid_of(&mut one) != doomed).then_some(one)).unwrap();
    let mut author = Raw::open(&server.address(), "/topics");
    while pid_of(&mut author) != doomed {
        author = Raw::open(&server.address(), "/topics");
    }
    // The bus has more to read than it reads at a time when it notices that the worker has ended.
    let bus = Pid::from_raw(bus_of(&server).unwrap());
    kill(bus, Signal::SIGSTOP).unwrap();
    assert_eq!(author.ask("many news 30 5000"), "many 30");
    kill(Pid::from_raw(doomed), Signal::SIGKILL).unwrap();
    until("the worker is gone", || !server.workers().contains(&doomed));
    kill(bus, Signal::SIGCONT).unwrap();
    for index in 0..30 {
        assert_eq!(witness.next().map(|frame| frame.payload.len()), Some(5000), "message {index}");
    }
    drop((author, witness));
    server.stop();
}

#[test]
fn messages_of_a_publisher_keep_their_order_when_it_moves() {
    let (dir, mut server) = start(&["topics"], &["--workers", "1"]);
    let mut author = Raw::open(&server.address(), "/topics");
    let mut witness = Raw::open(&server.address(), "/topics");
    assert_eq!(witness.ask("sub news"), "sub 0");
    until("there is a bus", || author.ask("count news") == "count 1" && bus_of(&server).is_some());
    let old = author.ask("pid");
    // More than the socket to the bus holds.
    let bus = Pid::from_raw(bus_of(&server).unwrap());
    kill(bus, Signal::SIGSTOP).unwrap();
    assert_eq!(author.ask("many news 100 5000"), "many 100");
    add_handler(dir.path(), "topics", "topics");
    server.signal(Signal::SIGHUP);
    until("the witness has moved", || witness.ask("pid") != old);
    assert_eq!(author.ask("pid"), old, "it waits until its messages are on their way");
    kill(bus, Signal::SIGCONT).unwrap();
    until("the author has moved", || author.ask("pid") != old);
    author.text("quiet news last");
    for index in 0..100 {
        assert_eq!(witness.next().map(|frame| frame.payload.len()), Some(5000), "message {index}");
    }
    assert_eq!(witness.next_text(), "last");
    drop((author, witness));
    server.stop();
}

#[test]
fn unsent_messages_of_a_crashed_worker_are_counted() {
    let (_dir, mut server) = start(&["topics"], &["--workers", "1", "--metrics", "127.0.0.1:0"]);
    let lost = || {
        let log = server.log();
        let address = log.split_once("metrics are served on ").unwrap().1.lines().next().unwrap();
        let mut raw = Raw::connect(address);
        raw.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let body = String::from_utf8(raw.answer().body).unwrap();
        let line = body.lines().find(|line| line.starts_with("wshd_worker_topic_messages_lost")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u32
    };
    let mut author = Raw::open(&server.address(), "/topics");
    assert_eq!(author.ask("sub news"), "sub 0");
    until("there is a bus", || author.ask("count news") == "count 1" && bus_of(&server).is_some());
    let bus = Pid::from_raw(bus_of(&server).unwrap());
    kill(bus, Signal::SIGSTOP).unwrap();
    assert_eq!(author.ask("many news 100 5000"), "many 100");
    assert_eq!(lost(), 0);
    author.text("crash");
    author.expect_close(1011);
    until("it is counted", || lost() > 0);
    let before = lost();
    assert!(before < 100, "the socket to the bus has taken some");
    // A killed worker cannot count them itself.
    let mut author = Raw::open(&server.address(), "/topics");
    assert_eq!(author.ask("many news 100 5000"), "many 100");
    let worker = author.ask("pid").trim_start_matches("pid ").parse().unwrap();
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    until("it is counted", || lost() > before);
    assert!(lost() <= before + 100);
    server.says("published messages had not reached the bus and are lost");
    kill(bus, Signal::SIGCONT).unwrap();
    server.stop();
}

#[test]
fn handlers_share_topics_only_if_configured() {
    for is_joined in [false, true] {
        let dir = Dir::new();
        ["one", "two"].iter().for_each(|path| add_handler(dir.path(), path, "topics"));
        let topics = if is_joined { "topics = \"both\"\n" } else { "" };
        let config = format!(
            "[handler.\"/one\"]\n{topics}[handler.\"/two\"]\nisolation = \"pool\"\n{topics}[pool.two]\nworkers = 2\n"
        );
        let file = dir.path().join("wshd.conf");
        std::fs::write(&file, config).unwrap();
        let mut server = Server::start(&dir, &["--workers", "2", "--config", file.to_str().unwrap()]);
        let mut one = Raw::open(&server.address(), "/one");
        let mut two = Raw::open(&server.address(), "/two");
        assert_eq!((one.ask("sub news"), two.ask("sub news")), ("sub 0".to_owned(), "sub 0".to_owned()));
        one.text("quiet news from one");
        two.text("quiet news from two");
        if is_joined {
            let heard = |client: &mut Raw| BTreeSet::from([client.next_text(), client.next_text()]);
            let both = BTreeSet::from(["from one".to_owned(), "from two".to_owned()]);
            assert_eq!((heard(&mut one), heard(&mut two)), (both.clone(), both));
        } else {
            assert_eq!((one.next_text(), two.next_text()), ("from one".to_owned(), "from two".to_owned()));
            assert_eq!(
                (one.ask("missed"), two.ask("missed")),
                ("missed 0".to_owned(), "missed 0".to_owned())
            );
        }
        drop((one, two)); // they would not answer the Close frame
        server.stop();
    }
}

#[test]
fn the_chat_examples_work() {
    let (_dir, mut server) = start(&["chat", "chat_cpp", "chat_rust"], &["--workers", "2"]);
    for (resource, hears_itself) in [("/chat", true), ("/chat_cpp", false), ("/chat_rust", false)] {
        let room = format!("{resource}?kitchen");
        let mut in_kitchen: Vec<Raw> = (0..6).map(|_| open_for_handler(&server, &room)).collect();
        let mut elsewhere = open_for_handler(&server, resource);
        in_kitchen[0].text("hello");
        for (index, one) in in_kitchen.iter_mut().enumerate() {
            if index > 0 || hears_itself {
                assert_eq!(one.next_text(), "hello", "{room} {index}");
            }
        }
        let mut lobby = Raw::open(&server.address(), resource);
        lobby.text("in the lobby");
        assert_eq!(elsewhere.next_text(), "in the lobby");
    }
    server.stop();
}
