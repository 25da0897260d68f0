//! Calls of a handler's threads that meet those of the event loop: each of them is carried out, in the order in which
//! they returned. The handler runs its thread within the callback, so that the order is known.

use std::time::{Duration, Instant};

use crate::client::{CLOSE, Raw, TEXT, close_payload};
use crate::daemon::{Dir, Server};

/// Carries out what a text says: partly on a thread that ends before the callback goes on.
const HANDLER: &str = r#"
    #include <pthread.h>
    #include <stddef.h>
    #include <ws_handler.h>
    static ws_conn current;
    static void *send_text(void *text) { ws_send_text(current, text); return NULL; }
    static void *begin(void *text) { ws_send_flags(current, WS_TEXT, text, strlen(text), WS_MORE); return NULL; }
    static void *pause_reading(void *text) { ws_pause(current); return text; }
    static void elsewhere(ws_conn conn, void *(*run)(void *), const char *text)
    {
        pthread_t thread;
        current = conn;
        if (pthread_create(&thread, NULL, run, (void *)text) == 0)
            pthread_join(thread, NULL);
    }
    static void on_timer(ws_conn conn, void *arg)
    {
        (void)conn, (void)arg;
        ws_send_text(current, "tick");
    }
    static void drop_it(ws_conn conn, void *arg)
    {
        (void)arg;
        if (ws_abort(conn) != WS_OK)
            ws_log_conn(conn, WS_LOG_ERROR, "a timer after ws_abort");
    }
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        ws_bytes text = {msg->data, msg->size};
        if (ws_bytes_equal(text, "two timers")) {
            ws_set_timer(conn, 5, drop_it, NULL);
            ws_set_timer(conn, 5, drop_it, NULL);
            while (ws_now() % 10000000 > 100000)
                ; /* both are due in the same turn */
        } else if (ws_bytes_equal(text, "send, close")) {
            elsewhere(conn, send_text, "sent before");
            ws_close(conn, 1000, NULL);
        } else if (ws_bytes_equal(text, "pause, close")) {
            elsewhere(conn, pause_reading, NULL);
            ws_close(conn, 1000, NULL);
        } else if (ws_bytes_equal(text, "begin")) {
            elsewhere(conn, begin, "be");
        } else if (ws_bytes_equal(text, "end")) {
            elsewhere(conn, send_text, "gun");
            ws_send_text(conn, "next");
        } else if (ws_bytes_equal(text, "end, other type")) {
            elsewhere(conn, send_text, "gun");
            ws_send(conn, WS_BINARY, "next", 4);
        } else if (ws_bytes_equal(text, "timer")) {
            current = conn;
            ws_set_timer(0, 20, on_timer, NULL);
        }
    }
    static int32_t passive_closing_handshake(ws_conn conn)
    {
        ws_abort(conn);
        return WS_OK;
    }
    WS_HANDLER(.name = "threads", .on_message = on_message, .passive_closing_handshake = passive_closing_handshake);
"#;

fn serve() -> (Server, Dir) {
    let dir = Dir::new();
    dir.handler("threads", HANDLER);
    // No test waits for a Close frame that is not read.
    (Server::start(&dir, &["--workers", "1", "-o", "close_timeout=10m"]), dir)
}

#[test]
fn a_message_of_a_thread_is_sent_before_the_close_frame_that_follows() {
    let (mut server, _dir) = serve();
    let mut raw = Raw::open(&server.address(), "/threads");
    assert_eq!(raw.ask("send, close"), "sent before");
    raw.expect_close(1000);
    server.stop();
}

#[test]
fn the_last_fragment_of_a_thread_precedes_the_next_message() {
    let (mut server, _dir) = serve();
    for (end, next) in [("end", TEXT), ("end, other type", 0x82)] {
        let mut raw = Raw::open(&server.address(), "/threads");
        raw.text("begin");
        let frames = |raw: &mut Raw, count| {
            (0..count)
                .map(|_| raw.next().unwrap())
                .map(|frame| (frame.first, frame.payload))
                .collect::<Vec<_>>()
        };
        assert_eq!(frames(&mut raw, 1), [(0x01, b"be".to_vec())]);
        raw.text(end);
        assert_eq!(frames(&mut raw, 2), [(0x80, b"gun".to_vec()), (next, b"next".to_vec())], "{end}");
    }
    server.stop();
}

#[test]
fn a_pause_that_a_thread_has_asked_for_does_not_outlast_a_close() {
    let (mut server, _dir) = serve();
    let mut raw = Raw::open(&server.address(), "/threads");
    raw.text("pause, close");
    raw.expect_close(1000);
    raw.frame(CLOSE, &close_payload(1000, ""));
    raw.expect_end();
    server.stop();
}

#[test]
fn nothing_is_sent_after_an_abort() {
    let (mut server, _dir) = serve();
    let mut raw = Raw::open(&server.address(), "/threads");
    raw.frame(CLOSE, &close_payload(1000, ""));
    raw.expect_end();
    server.stop();
}

#[test]
fn no_timer_runs_after_an_abort() {
    let (mut server, _dir) = serve();
    for _ in 0..5 {
        let mut raw = Raw::open(&server.address(), "/threads");
        raw.text("two timers");
        raw.expect_end();
    }
    server.stop();
    assert!(!server.log().contains("a timer after ws_abort"), "{}", server.log());
}

/// Changes its subscriptions more often than commands of a connection are counted, and then tells of it.
const SUBSCRIBER: &str = r#"
    #include <unistd.h>
    #include <ws_handler.h>
    static int32_t transfer_data(ws_conn conn)
    {
        ws_message msg;
        char text[64];
        int  wrong = ws_subscribe(conn, "stays", 0) != WS_OK;
        while (ws_receive(conn, &msg, WS_FOREVER) > 0) {
            usleep(300000);
            for (int count = 0; count < 20000; count++)
                wrong += ws_subscribe(conn, "changes", 0) != WS_OK || ws_unsubscribe(conn, "changes") != WS_OK;
            snprintf(text, sizeof text, "%d wrong, %d", wrong, (int)ws_subscribers("stays"));
            ws_send_text(conn, text);
        }
        return WS_OK;
    }
    WS_HANDLER(.name = "subscriber", .transfer_data = transfer_data);
"#;

/// Holds the event loop up.
const SLOW: &str = r#"
    #include <unistd.h>
    #include <ws_handler.h>
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        sleep(3);
        ws_send(conn, msg->type, msg->data, msg->size);
    }
    WS_HANDLER(.name = "slow", .on_message = on_message);
"#;

#[test]
fn a_thread_may_change_its_subscriptions_as_often_as_it_likes() {
    let dir = Dir::new();
    dir.handler("subscriber", SUBSCRIBER);
    dir.handler("slow", SLOW);
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let [mut subscriber, mut slow] = ["/subscriber", "/slow"].map(|path| Raw::open(&server.address(), path));
    subscriber.text("go");
    slow.text("now");
    assert_eq!(subscriber.next_text(), "0 wrong, 1");
    assert_eq!(slow.next_text(), "now");
    drop((subscriber, slow));
    server.stop();
}

#[test]
fn what_a_timer_of_the_worker_sends_goes_out_at_once() {
    let (mut server, _dir) = serve();
    let mut raw = Raw::open(&server.address(), "/threads");
    let begun = Instant::now();
    // Each would wait for a heartbeat, which comes once in a second.
    for _ in 0..30 {
        assert_eq!(raw.ask("timer"), "tick");
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    server.stop();
}

/// Sends while other threads fill the same send queue, and tells how often it was full.
const FLOODED: &str = r#"
    #include <pthread.h>
    #include <ws_handler.h>
    static volatile int is_over;
    static void *flood(void *conn)
    {
        static const char message[500];
        while (!is_over)
            ws_send((ws_conn)(size_t)conn, WS_BINARY, message, sizeof message);
        return NULL;
    }
    static int32_t transfer_data(ws_conn conn)
    {
        ws_message msg;
        pthread_t threads[2];
        char text[64];
        int full = 0;
        if (ws_receive(conn, &msg, WS_FOREVER) != WS_MESSAGE)
            return WS_OK;
        for (int at = 0; at < 2; at++)
            pthread_create(&threads[at], NULL, flood, (void *)(size_t)conn);
        for (int count = 0; count < 20000; count++)
            full += ws_send(conn, WS_BINARY, "own", 3) == WS_E_FULL;
        is_over = 1;
        for (int at = 0; at < 2; at++)
            pthread_join(threads[at], NULL);
        snprintf(text, sizeof text, "full %d times", full);
        return ws_send_text(conn, text);
    }
    WS_HANDLER(.name = "flooded", .transfer_data = transfer_data);
"#;

#[test]
fn a_blocking_send_waits_however_quickly_others_fill_the_queue() {
    let dir = Dir::new();
    dir.handler("flooded", FLOODED);
    let mut server = Server::start(&dir, &["--workers", "1", "-o", "send_high=16K"]);
    let mut raw = Raw::open(&server.address(), "/flooded");
    raw.text("go");
    let last = loop {
        match raw.next().unwrap() {
            frame if frame.first == TEXT => break String::from_utf8(frame.payload).unwrap(),
            _ => {}
        }
    };
    assert_eq!(last, "full 0 times");
    drop(raw);
    server.stop();
}
