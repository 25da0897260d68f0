//! Handlers driven through their table, as a host drives them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::Cell;
use std::net::IpAddr;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::export::Table;
use crate::fake::{GONE, HOST, fake, release_user, reset};
use crate::*;

/// Does what the message says.
struct Obedient {
    open: Rc<Cell<u32>>,
}

thread_local! {
    static OPEN: Rc<Cell<u32>> = Rc::default();
    static IN_HANDSHAKE: Cell<fn(&Current, &Handshake) -> Outcome<Reply>> =
        const { Cell::new(|_, _| Ok(Reply::ACCEPT)) };
}

impl Handler for Obedient {
    fn on_open(conn: &Current) -> Outcome<Self> {
        if fake(|fake| fake.results.contains_key("panic in on_open")) {
            panic!("cannot open {:?}", conn.conn());
        }
        let open = OPEN.with(Rc::clone);
        open.set(open.get() + 1);
        Ok(Obedient { open })
    }

    fn on_message(&mut self, conn: &Current, msg: Message) -> Outcome {
        match msg.text() {
            Some("panic") => panic!("told to"),
            Some("panic any") => std::panic::panic_any(7),
            Some("fail") => Err("told to fail")?,
            Some("gone") => Err(Error::Gone)?,
            Some("timer") => {
                let held = Rc::clone(&self.open);
                conn.set_timer(Duration::from_millis(5), move |conn| {
                    let open = conn.with_handler(|own: &mut Obedient| own.open.get());
                    conn.send(format!("timer {open:?} {}", held.get())).unwrap();
                })?;
            }
            Some("timer panic") => {
                conn.set_timer(Duration::ZERO, |_| panic!("in a timer"))?;
            }
            Some("post") => conn.post(|conn| conn.send("posted").unwrap())?,
            Some("inside") => assert_eq!(conn.with_handler(|_: &mut Obedient| ()), None),
            _ => conn.send(msg)?,
        }
        Ok(())
    }

    fn do_extra_handshake(conn: &Current, handshake: &Handshake) -> Outcome<Reply> {
        IN_HANDSHAKE.get()(conn, handshake)
    }

    fn on_close(self, conn: &Current, by: By, code: u32) {
        conn.log(Level::Info, format_args!("closed {by:?} {code}"));
    }

    fn on_pong(&mut self, conn: &Current, data: Bytes, rtt: Duration) -> Outcome {
        Ok(conn.send(format!("pong {data} {rtt:?}"))?)
    }
}

impl Drop for Obedient {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
    }
}

static EVENT: Table = Table::event::<Obedient>().name(c"obedient").flags(WS_KEEP_REQUEST);

/// What has been called, without the lines of this file that panics name.
fn calls() -> Vec<String> {
    let without_line = |call: String| match call
        .split_once(" at include/rust/src/tests.rs:")
        .or(call.split_once(" at src/tests.rs:"))
    {
        Some((before, after)) => before.to_owned() + after.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => call,
    };
    crate::fake::calls().into_iter().map(without_line).collect()
}

/// Loads the crate into a fresh host.
fn load() {
    reset();
    // SAFETY: a table that is complete and static.
    assert!(unsafe { crate::host::set_host(&HOST) });
}

/// The table, with a fresh host.
fn table() -> &'static raw::ws_handler {
    load();
    OPEN.with(|open| open.set(0));
    // SAFETY: the fake host's table is static, and so is the handler's.
    unsafe { &*EVENT.enter(&HOST) }
}

fn open(table: &raw::ws_handler) -> i32 {
    // SAFETY: as a host does.
    unsafe { table.on_open.unwrap()(1) }
}

fn message(table: &raw::ws_handler, text: &str) -> Vec<String> {
    let msg = raw::ws_message {
        type_: raw::WS_TEXT,
        flags: raw::WS_FIRST | raw::WS_LAST,
        data: text.as_ptr().cast(),
        size: text.len(),
    };
    calls();
    // SAFETY: as a host does.
    unsafe { table.on_message.unwrap()(1, &msg) };
    calls()
}

fn close(table: &raw::ws_handler) -> Vec<String> {
    calls();
    // SAFETY: as a host does.
    unsafe { table.on_close.unwrap()(1, raw::WS_BY_PEER, 1001) };
    release_user(1);
    calls()
}

fn handshake(table: &raw::ws_handler, body: fn(&Current, &Handshake) -> Outcome<Reply>) -> i32 {
    IN_HANDSHAKE.set(body);
    // SAFETY: as a host does; the handle is never dereferenced.
    unsafe { table.do_extra_handshake.unwrap()(1, ptr::null_mut()) }
}

#[test]
fn the_table_says_what_it_is() {
    let table = table();
    let expected = (size_of::<raw::ws_handler>(), raw::WS_ABI, raw::WS_KEEP_REQUEST);
    assert_eq!((table.size, table.abi, table.flags), expected);
    assert!(table.on_message.is_some() && table.transfer_data.is_none());
}

#[test]
fn a_connection_has_a_value_from_open_to_close() {
    let table = table();
    assert_eq!(open(table), raw::WS_OK);
    assert_eq!(OPEN.with(|open| open.get()), 1);
    assert_eq!(message(table, "hello"), ["send 1 1 0 hello"]);
    assert_eq!(close(table), ["log 1 30 closed Peer 1001"]);
    assert_eq!(OPEN.with(|open| open.get()), 0);
    assert_eq!(close(table), [""; 0], "there is nothing left to close");
}

#[test]
fn a_panic_is_logged_and_closes_with_1011() {
    let table = table();
    open(table);
    assert_eq!(message(table, "panic"), ["log 1 50 panic in on_message: told to", "close 1 1011 "]);
    assert_eq!(
        message(table, "panic any"),
        ["log 1 50 panic in on_message: of an unknown type", "close 1 1011 "]
    );
    assert_eq!(message(table, "still here"), ["send 1 1 0 still here"]);
    close(table);
}

#[test]
fn a_panic_in_on_open_is_a_failure_and_leaves_nothing_to_close() {
    let table = table();
    fake(|fake| fake.results.insert("panic in on_open", 1));
    assert_eq!(open(table), raw::WS_E_FAILED);
    assert_eq!(calls(), ["log 1 50 panic in on_open: cannot open Conn(0x1)"]);
    assert_eq!(close(table), [""; 0]);
}

#[test]
fn an_error_closes_with_1011_but_gone_is_no_failure() {
    let table = table();
    open(table);
    assert_eq!(message(table, "fail"), ["log 1 50 error in on_message: told to fail", "close 1 1011 "]);
    assert_eq!(message(table, "gone"), [""; 0]);
    close(table);
}

#[test]
fn the_session_is_dropped_when_the_host_does_not_take_it() {
    let table = table();
    fake(|fake| fake.results.insert("set_user", raw::WS_E_GONE));
    assert_eq!(open(table), raw::WS_E_GONE);
    assert_eq!(OPEN.with(|open| open.get()), 0);
}

#[test]
fn timers_run_once_with_the_handler_in_reach() {
    let table = table();
    open(table);
    assert_eq!(message(table, "timer"), ["set_timer 5"]);
    assert_eq!(message(table, "timer panic"), ["set_timer 0"]);
    let timers = fake(|fake| std::mem::take(&mut fake.timers));
    for (_, task, arg) in timers {
        // SAFETY: as a host does, once.
        unsafe { task.unwrap()(1, arg) };
    }
    assert_eq!(
        calls(),
        ["send 1 1 0 timer Some(1) 1", "log 1 50 panic in a timer: in a timer", "close 1 1011 "]
    );
    close(table);
}

#[test]
fn a_timer_that_never_runs_is_dropped_with_the_connection() {
    let table = table();
    open(table);
    message(table, "timer");
    let held = OPEN.with(Rc::strong_count);
    close(table);
    // The value and its timer held one each.
    assert_eq!(OPEN.with(Rc::strong_count), held - 2);
}

#[test]
fn a_timer_can_be_refused_and_cleared() {
    let table = table();
    open(table);
    // SAFETY: as in a callback.
    let current = unsafe { Current::new(1) };
    let held = Rc::new(());
    let keep = Rc::clone(&held);
    let timer = current.set_timer(Duration::from_secs(1), move |_| drop(keep)).unwrap();
    assert_eq!(current.clear_timer(timer), Ok(()));
    assert_eq!(Rc::strong_count(&held), 1);

    fake(|fake| fake.results.insert("set_timer", raw::WS_E_LIMIT));
    let keep = Rc::clone(&held);
    assert_eq!(current.set_timer(Duration::ZERO, move |_| drop(keep)), Err(Error::Limit));
    assert_eq!(Rc::strong_count(&held), 1);
    close(table);
}

#[test]
fn a_posted_task_runs_unless_the_connection_is_gone() {
    let table = table();
    open(table);
    message(table, "post");
    let held = Arc::new(());
    let keep = Arc::clone(&held);
    Conn(GONE).post(move |conn| conn.send(format!("{keep:?}")).unwrap()).unwrap();
    calls();
    for (conn, task, arg) in fake(|fake| std::mem::take(&mut fake.posts)) {
        // SAFETY: as a host does, exactly once.
        unsafe { task.unwrap()(conn, arg) };
    }
    assert_eq!(calls(), ["send 1 1 0 posted"]);
    assert_eq!(Arc::strong_count(&held), 1);

    fake(|fake| fake.results.insert("post", raw::WS_E_LIMIT));
    let keep = Arc::clone(&held);
    assert_eq!(Conn(1).post(move |_| drop(keep)), Err(Error::Limit));
    assert_eq!(Arc::strong_count(&held), 1);
    close(table);
}

#[test]
fn the_handler_is_not_in_reach_while_it_runs() {
    let table = table();
    open(table);
    assert_eq!(message(table, "inside"), [""; 0]);
    close(table);
}

#[test]
fn pongs_bring_payload_and_time() {
    let table = table();
    open(table);
    calls();
    // SAFETY: as a host does.
    unsafe { table.on_pong.unwrap()(1, c"hi".as_ptr(), 2, 1_500_000) };
    assert_eq!(calls(), ["send 1 1 0 pong hi 1.5ms"]);
    close(table);
}

#[test]
fn the_handshake_is_answered_as_the_handler_says() {
    let table = table();
    assert_eq!(handshake(table, |_, _| Ok(Reply::ACCEPT)), raw::WS_OK);
    assert_eq!(handshake(table, |_, hs| Ok(hs.reject(403)?)), raw::WS_REJECTED);
    assert_eq!(handshake(table, |_, hs| Ok(hs.reject_body(404, "text/plain", b"no")?)), raw::WS_REJECTED);
    assert_eq!(handshake(table, |_, hs| Ok(hs.abort()?)), raw::WS_ABORTED);
    assert_eq!(handshake(table, |_, hs| Ok(hs.accept_and_close(4000, "why")?)), raw::WS_OK);
    assert_eq!(
        calls(),
        ["reject 403  ", "reject 404 text/plain no", "abort_handshake", "accept_and_close 4000 why"]
    );
    assert_eq!(handshake(table, |_, _| panic!("no")), raw::WS_E_FAILED);
    fake(|fake| fake.results.insert("reject", raw::WS_E_INVALID));
    assert_eq!(handshake(table, |_, hs| Ok(hs.reject(200)?)), raw::WS_E_INVALID);
}

#[test]
fn the_reply_can_be_furnished() {
    let table = table();
    let result = handshake(table, |conn, hs| {
        let offered: Vec<Bytes> = list(conn.requested_protocols().unwrap()).collect();
        assert_eq!(offered, [Bytes(b"a"), Bytes(b"b")]);
        hs.set_protocol("b")?;
        hs.add_header("X-A", "1")?;
        hs.configure_deflate(DeflateOptions { threshold: 9, ..DeflateOptions::default() })?;
        hs.refuse_extensions()?;
        Ok(Reply::ACCEPT)
    });
    assert_eq!(result, raw::WS_OK);
    // The numbers are those of WS_DEFLATE_DEFAULTS, but the threshold.
    assert_eq!(
        calls(),
        ["set_protocol b", "add_header X-A: 1", "configure_deflate 15,15,0,1,9,1", "refuse_extensions"]
    );
}

#[test]
fn a_late_handshake_is_finished_once_or_rejected() {
    let table = table();
    thread_local! { static LATE: Cell<Option<LateHandshake>> = const { Cell::new(None) }; }
    let keep: fn(&Current, &Handshake) -> Outcome<Reply> = |_, hs| {
        let (reply, late) = hs.later()?;
        LATE.set(Some(late));
        Ok(reply)
    };
    assert_eq!(handshake(table, keep), raw::WS_LATER);
    LATE.take().unwrap().accept().unwrap();
    assert_eq!(calls(), ["accept"]);

    handshake(table, keep);
    LATE.take().unwrap().reject(403).unwrap();
    assert_eq!(calls(), ["reject 403  "]);

    handshake(table, keep);
    drop(LATE.take());
    assert_eq!(calls(), ["reject 503  "]);
    assert!(release_user(1), "the connection never opens");
}

#[test]
fn facts_are_lent_as_the_host_tells_them() {
    table();
    // SAFETY: as in a callback.
    let conn = unsafe { Current::new(1) };
    assert_eq!(conn.resource().unwrap(), "/chat?room=1");
    assert_eq!(conn.path().unwrap(), "/chat");
    assert_eq!(conn.query().unwrap().to_str(), Ok("room=1"));
    assert_eq!(conn.origin().unwrap().to_string(), "https://example.com");
    assert_eq!(conn.remote_user().unwrap().to_string(), "ann");
    assert_eq!(conn.requested_extensions(), None);
    assert_eq!(conn.header("Host").unwrap(), "example.com");
    assert_eq!(conn.header("Absent"), None);
    assert_eq!(conn.headers().count(), 2);
    assert_eq!(conn.remote_address(), Some((IpAddr::from([192, 0, 2, 1]), 4711)));
    assert_eq!(conn.tls_fact(raw::WS_TLS_VERSION).unwrap(), "TLSv1.3");
    assert_eq!(conn.last_opcode(), Some(Kind::Binary));
    assert_eq!((conn.version(), conn.close_code(), conn.buffered()), (13, 1000, 7));
    assert!(conn.deflate() && conn.is_resumed());
    assert_eq!(conn.set_state(b"kept"), Ok(()));
    assert_eq!(conn.state().as_deref(), Some(&b"kept"[..]));
    assert_eq!(conn.set_state(&[0; 4097]), Err(Error::Limit));
    assert_eq!(config("key").unwrap(), "value");
    assert_eq!(config("other"), None);
    assert_eq!(settings().count(), 1);
    assert_eq!((now(), worker()), (Duration::from_nanos(1_500), 3));
}

#[test]
fn sending_says_what_became_of_it() {
    table();
    let conn = Conn(1);
    conn.send("text").unwrap();
    conn.send(&b"bytes"[..]).unwrap();
    conn.send(*b"four").unwrap();
    conn.send([7_u8; 0]).unwrap();
    conn.send(vec![b'v']).unwrap();
    conn.send(String::from("string")).unwrap();
    conn.send(Message { last: false, ..Message::from("frag") }).unwrap();
    conn.send_flags(Kind::Binary, b"plain", WS_UNCOMPRESSED).unwrap();
    assert_eq!(
        calls(),
        [
            "send 1 1 0 text",
            "send 1 2 0 bytes",
            "send 1 2 0 four",
            "send 1 2 0 ",
            "send 1 2 0 v",
            "send 1 1 0 string",
            "send 1 1 1 frag",
            "send 1 2 2 plain"
        ]
    );
    for error in [
        Error::Gone,
        Error::Full,
        Error::Timeout,
        Error::Draining,
        Error::Invalid,
        Error::Place,
        Error::Limit,
    ] {
        fake(|fake| fake.results.insert("send", error.code()));
        assert_eq!(conn.send("x"), Err(error));
    }
    fake(|fake| fake.results.insert("send", -77));
    assert_eq!(conn.send("x"), Err(Error::Failed));
}

#[test]
fn owned_data_is_dropped_exactly_once_whatever_the_result() {
    struct Counted(Arc<AtomicUsize>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            b"owned"
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    table();
    let dropped = Arc::new(AtomicUsize::new(0));
    Conn(1).send_owned(Kind::Text, Counted(Arc::clone(&dropped)), 0).unwrap();
    assert_eq!(calls(), ["send_owned 1 1 0 owned"]);
    fake(|fake| fake.results.insert("send_owned", raw::WS_E_FULL));
    assert_eq!(Conn(1).send_owned(Kind::Text, Counted(Arc::clone(&dropped)), 0), Err(Error::Full));
    assert_eq!(dropped.load(Ordering::Relaxed), 2);
}

#[test]
fn a_log_line_is_cut_at_a_character() {
    table();
    log(Level::Warn, "ä".repeat(600)); // 1,200 bytes
    assert_eq!(calls()[0].len(), "log 0 40 ".len() + 1022);
}

/// The blocking style: an echo that panics and fails on demand.
struct Waiting;

impl BlockingHandler for Waiting {
    fn on_open(_conn: &Current) -> Outcome<Self> {
        Ok(Waiting)
    }

    fn transfer_data(&self, conn: &mut Blocking) -> Outcome {
        let peer = conn.conn();
        while let Some(msg) = conn.receive()? {
            match msg.text() {
                Some("panic") => panic!("told to"),
                Some("fail") => Err("told to fail")?,
                _ => peer.send(msg)?,
            }
        }
        Ok(())
    }
}

static BLOCKING: Table = Table::blocking::<Waiting>();

#[test]
fn a_blocking_handler_lives_in_transfer_data() {
    fn run(inbox: &[(i32, &str)]) -> (i32, Vec<String>) {
        load();
        // SAFETY: as a host does.
        unsafe {
            let table = &*BLOCKING.enter(&HOST);
            assert!(table.on_message.is_none());
            assert_eq!(table.on_open.unwrap()(1), raw::WS_OK);
            fake(|fake| fake.inbox = inbox.iter().map(|(code, text)| (*code, (*text).to_owned())).collect());
            let result = table.transfer_data.unwrap()(1);
            table.on_close.unwrap()(1, raw::WS_BY_PEER, 1000);
            release_user(1);
            (result, calls())
        }
    }
    assert_eq!(
        run(&[(1, "a"), (1, "b")]),
        (
            0,
            ["receive -1", "send 1 1 0 a", "receive -1", "send 1 1 0 b", "receive -1"]
                .map(String::from)
                .into()
        )
    );
    assert_eq!(run(&[(raw::WS_E_DRAINING, "")]).0, raw::WS_OK, "being asked to end is a normal end");
    assert_eq!(run(&[(raw::WS_E_GONE, "")]).0, raw::WS_OK);
    assert_eq!(run(&[(1, "panic")]).0, raw::WS_E_FAILED);
    assert_eq!(run(&[(1, "fail")]).0, raw::WS_E_FAILED);
}

// ------------------------------------------------------- adversarial safe code

/// Answers with other bytes each time: the host must not read beyond what one of them is.
#[test]
fn data_that_answers_differently_is_asked_once() {
    struct TwoFaced(Cell<bool>, Box<[u8; 4]>, Box<[u8; 1 << 16]>);
    impl AsRef<[u8]> for TwoFaced {
        fn as_ref(&self) -> &[u8] {
            if self.0.replace(true) { &self.2[..] } else { &self.1[..] }
        }
    }
    table();
    let data = TwoFaced(Cell::new(false), Box::new(*b"four"), Box::new([b'x'; 1 << 16]));
    Conn(1).send_owned(Kind::Text, data, 0).unwrap();
    assert_eq!(calls(), ["send_owned 1 1 0 four"]);
    // Bytes in the value itself, which must not move while the host has them.
    Conn(1).send_owned(Kind::Binary, *b"inside", 0).unwrap();
    assert_eq!(calls(), ["send_owned 1 2 0 inside"]);

    struct Fickle(Cell<u32>);
    impl Sendable for Fickle {
        fn as_message(&self) -> Message<'_> {
            self.0.set(self.0.get() + 1);
            if self.0.get() == 1 { Message::from("one") } else { Message::from("another") }
        }
    }
    Conn(1).send(Fickle(Cell::new(0))).unwrap();
    assert_eq!(calls(), ["send 1 1 0 one"]);
}

/// Whatever an error does when it is shown or dropped, it does not leave the handler.
#[test]
fn an_error_that_panics_is_contained() {
    #[derive(Debug)]
    struct Hostile(bool);
    impl std::fmt::Display for Hostile {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            if self.0 { panic!("shown") } else { Ok(()) }
        }
    }
    impl std::error::Error for Hostile {}
    impl Drop for Hostile {
        fn drop(&mut self) {
            if !self.0 {
                panic!("dropped");
            }
        }
    }
    let table = table();
    assert_eq!(handshake(table, |_, _| Err(Hostile(true).into())), raw::WS_E_FAILED);
    assert_eq!(calls(), ["log 1 50 panic in do_extra_handshake: shown"]);
    assert_eq!(handshake(table, |_, _| Err(Hostile(false).into())), raw::WS_E_FAILED);
    assert_eq!(
        calls(),
        ["log 1 50 error in do_extra_handshake: ", "log 1 50 panic in do_extra_handshake: dropped"]
    );
}

/// What a panic brings along, and a handler, may panic when they are dropped.
#[test]
fn a_drop_that_panics_is_contained() {
    struct Grenade;
    impl Drop for Grenade {
        fn drop(&mut self) {
            std::panic::panic_any(Grenade);
        }
    }
    struct Bomb(#[allow(dead_code)] Grenade);
    impl Handler for Bomb {
        fn on_open(_: &Current) -> Outcome<Self> {
            Ok(Bomb(Grenade))
        }
        fn on_message(&mut self, conn: &Current, _: Message) -> Outcome {
            let held = Grenade;
            conn.set_timer(Duration::ZERO, move |_| drop(held))?;
            std::panic::panic_any(Grenade);
        }
    }
    static BOMB: Table = Table::event::<Bomb>();
    load();
    // SAFETY: as a host does.
    let table = unsafe { &*BOMB.enter(&HOST) };
    open(table);
    let told = |place: &str| format!("log {place}: of an unknown type");
    let expected = ["set_timer 0".to_owned(), told("1 50 panic in on_message"), "close 1 1011 ".to_owned()];
    assert_eq!(message(table, "x"), expected);
    let expected = [told("1 50 panic in on_close"), told("0 50 panic in dropping what a connection had")];
    assert_eq!(close(table), expected);
}

#[test]
fn a_panic_is_logged_with_file_and_line() {
    let table = table();
    open(table);
    message(table, "panic");
    // SAFETY: as a host does.
    unsafe {
        let msg = raw::ws_message { type_: raw::WS_TEXT, flags: 3, data: c"panic".as_ptr(), size: 5 };
        table.on_message.unwrap()(1, &msg);
    }
    let told = crate::fake::calls();
    assert!(
        told[0].starts_with("log 1 50 panic in on_message at ") && told[0].contains("tests.rs:"),
        "{told:?}"
    );
    close(table);
}

#[test]
fn an_interval_clears_itself_and_what_it_holds() {
    let table = table();
    open(table);
    // SAFETY: as in a callback.
    let current = unsafe { Current::new(1) };
    let held = Rc::new(Cell::new(0));
    let (keep, id) = (Rc::clone(&held), Rc::new(Cell::new(None)));
    let own = Rc::clone(&id);
    let interval = current.set_interval(Duration::from_millis(5), move |conn| {
        keep.set(keep.get() + 1);
        if keep.get() == 2 {
            conn.clear_timer(own.get().unwrap()).unwrap();
        }
    });
    id.set(interval.ok());
    let (_, task, arg) = fake(|fake| fake.timers[0]);
    for _ in 0..2 {
        // SAFETY: as a host does, until it was cleared.
        unsafe { task.unwrap()(1, arg) };
    }
    assert_eq!((held.get(), Rc::strong_count(&held)), (2, 1));
    close(table);
}

#[test]
fn what_was_attached_reaches_on_open_or_is_dropped() {
    struct Name(Arc<()>);
    thread_local! {
        static HELD: Arc<()> = Arc::default();
        static LATE: Cell<Option<LateHandshake>> = const { Cell::new(None) };
    }
    let held = || HELD.with(Arc::strong_count);
    let table = table();
    let attach: fn(&Current, &Handshake) -> Outcome<Reply> = |conn, hs| {
        hs.attach(Name(HELD.with(Arc::clone)))?;
        conn.set_timer(Duration::ZERO, |conn| conn.send("early timer").unwrap())?;
        Ok(Reply::ACCEPT)
    };
    handshake(table, attach);
    assert_eq!(held(), 2);
    assert!(release_user(1), "the connection never opens");
    assert_eq!(held(), 1);

    handshake(table, |_, hs| {
        let (reply, late) = hs.later()?;
        LATE.set(Some(late));
        Ok(reply)
    });
    let (late, name) = (LATE.take().unwrap(), HELD.with(Arc::clone));
    std::thread::scope(|scope| {
        // It is finished by another thread, which has a host of its own here.
        scope.spawn(move || {
            late.attach(Name(name));
            late.accept().unwrap();
        });
    });
    open(table);
    // SAFETY: as in a callback.
    let current = unsafe { Current::new(1) };
    assert!(current.take_attached::<u32>().is_none(), "another type");
    let name = current.take_attached::<Name>().unwrap();
    assert_eq!((held(), Arc::strong_count(&name.0)), (2, 2));
    assert!(current.take_attached::<Name>().is_none(), "given once");
    drop(name);
    close(table);
    assert_eq!(held(), 1);
}

#[test]
fn the_worker_has_intervals_posts_and_watched_descriptors() {
    use crate::event_loop::{self, Interval, Watch};
    load();
    let count = Rc::new(Cell::new(0));
    let keep = Rc::clone(&count);
    let interval = Interval::new(Duration::from_millis(7), move || keep.set(keep.get() + 1)).unwrap();
    assert_eq!(calls(), ["set_timer 7 every 7 of the worker"]);
    let (_, task, arg) = fake(|fake| fake.timers[0]);
    // SAFETY: as a host does.
    unsafe { task.unwrap()(0, arg) };
    assert_eq!((count.get(), Rc::strong_count(&count)), (1, 2));
    drop(interval);
    assert_eq!((calls(), Rc::strong_count(&count)), (vec!["clear_timer 1".to_owned()], 1));

    let slot: Rc<Cell<Option<Watch>>> = Rc::default();
    let (own, keep) = (Rc::clone(&slot), Rc::clone(&count));
    let ready = move |events| {
        keep.set(events);
        drop(own.take()); // ends itself
    };
    slot.set(Some(Watch::new(4, WS_FD_READ, ready).unwrap()));
    assert_eq!(Watch::new(4, WS_FD_READ, |_| ()).err(), Some(Error::Invalid), "one for each");
    let (ready, arg) = fake(|fake| fake.watched[&4]);
    // SAFETY: as a host does.
    unsafe { ready.unwrap()(4, WS_FD_READ | WS_FD_HANGUP, arg) };
    assert_eq!((count.get(), Rc::strong_count(&count)), (5, 1));

    event_loop::post(|| log(Level::Info, "posted")).unwrap();
    for (conn, task, arg) in fake(|fake| std::mem::take(&mut fake.posts)) {
        // SAFETY: as a host does, exactly once.
        unsafe { task.unwrap()(conn, arg) };
    }
    assert_eq!(calls().last().unwrap(), "log 0 30 posted");
    assert_eq!((workers(), host_version()), (4, "fake 1.0"));
    assert!(extension("fake.answer").is_some() && extension("other").is_none());
}

/// The other tests of this program once more: valgrind sees what is read beyond what a value owns.
#[test]
#[ignore = "needs valgrind"]
fn valgrind_finds_nothing() {
    let mut command = std::process::Command::new("valgrind");
    command.args(["--quiet", "--error-exitcode=9", "--leak-check=no"]);
    let output = command.arg(std::env::current_exe().unwrap()).output().expect("valgrind is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Nothing of a table is read that an older host's does not have.
#[test]
fn an_older_hosts_table_is_completed() {
    use crate::stubs::{LEAST, complete};
    for size in (0..=size_of::<raw::ws_host>()).step_by(4) {
        // Memory of just that size: valgrind and Miri see a read beyond it.
        let mut words = vec![0_usize; size.div_ceil(size_of::<usize>()).max(1)];
        // SAFETY: as many bytes as both have; the first member is the size.
        unsafe {
            ptr::copy_nonoverlapping((&raw const HOST).cast::<u8>(), words.as_mut_ptr().cast::<u8>(), size);
        }
        words[0] = size;
        // SAFETY: the table begins with its size.
        let table = unsafe { complete(words.as_ptr().cast()) };
        assert_eq!(table.is_some(), size >= LEAST, "{size}");
        let Some(table) = table else { continue };
        // SAFETY: as a handler calls them.
        unsafe {
            assert_eq!((table.version)(1), 13);
            let has_workers = size >= std::mem::offset_of!(raw::ws_host, workers) + size_of::<usize>();
            assert_eq!((table.workers)(ptr::null()), if has_workers { 4 } else { 1 });
            let result = (table.unwatch_fd)(ptr::null(), 9);
            let has_it = size >= std::mem::offset_of!(raw::ws_host, unwatch_fd) + size_of::<usize>();
            assert_eq!(result, if has_it { raw::WS_E_INVALID } else { raw::WS_E_UNSUPPORTED });
        }
    }
}
