//! `wshd test`: the steps of scripts, and the reports of failures.

use std::process::Output;

use super::daemon::{Dir, output_of, wshd};
use super::ends;

/// A handler with many features.
const PARLEY: &str = r#"
    #include <ws_handler.h>
    static int32_t do_extra_handshake(ws_conn conn, ws_handshake *hs)
    {
        if (ws_bytes_equal(ws_origin(conn), "https://evil.example"))
            return ws_reject(hs, 403);
        ws_add_header(hs, "X-Room", "7");
        return WS_OK;
    }
    static int32_t on_open(ws_conn conn)
    {
        return ws_send_text(conn, ws_is_resumed(conn) ? "again" : "welcome");
    }
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        if (msg->size == 3 && memcmp(msg->data, "bye", 3) == 0)
            ws_close(conn, 4001, "as you like");
        else if (msg->size == 5 && memcmp(msg->data, "abort", 5) == 0)
            ws_abort(conn);
        else
            ws_send(conn, msg->type, msg->data, msg->size);
    }
    WS_HANDLER(.name = "parley", .do_extra_handshake = do_extra_handshake, .on_open = on_open,
               .on_message = on_message);
"#;

/// Runs `wshd test` with this script on the handler in `parley_wsh.so`.
fn tested(dir: &Dir, script: &str) -> Output {
    tested_within("25s", dir, script)
}

/// The same with a limit for each step.
fn tested_within(limit: &str, dir: &Dir, script: &str) -> Output {
    std::fs::write(dir.path().join("x.test"), script).unwrap();
    let args = ["test", "--timeout", limit, "parley_wsh.so", "x.test"];
    output_of(wshd().args(args).current_dir(dir.path())).unwrap()
}

#[test]
fn test_runs_a_script() {
    let dir = Dir::new();
    dir.handler("parley", PARLEY);
    let script = "# Everything.\n\
        < welcome\n> hello\n< hello\n>! binary 00 ff\n<! binary 00 ff\n\
        >! fragment a\n>! ping x\n<! pong x\n>! last b\n< ab\n<! nothing 50ms\n\
        ann>! open /parley?name=ann\n    Origin: https://example.com\nann<! status 101\nann<! header X-Room: 7\n\
        ann< welcome\n= move\nann< again\n< again\nann> hi\nann< hi\n= wait 10ms\n\
        ann>! close 1000 done\nann<! close 1000\n> bye\n<! close 4001 as you like\n\
        eve>! open\n  Origin: https://evil.example\neve<! status 403\n\
        bob>! vanish\ncat< welcome\ncat> abort\ncat<! end\nno>! open /other\nno<! status 404\n";
    let output = tested(&dir, script);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.stdout.starts_with(b"x.test: passed, "));
}

/// One that uses the host: time, topics, the send queue, the log, a late handshake.
const BUSY: &str = r#"
    #include <ws_handler.h>
    static ws_handshake *waiting;
    static char          block[64 << 10];
    static int32_t do_extra_handshake(ws_conn conn, ws_handshake *hs)
    {
        char room[16];
        if (ws_cookie(conn, "room", room, sizeof room) >= 0)
            ws_add_header(hs, "X-Room", room);
        if (!ws_bytes_equal(ws_query(conn), "later"))
            return WS_OK;
        waiting = hs;
        return WS_LATER;
    }
    static void tick(ws_conn conn, void *arg)
    {
        (void)arg;
        ws_send_text(conn, "tick");
    }
    static int32_t on_open(ws_conn conn)
    {
        ws_subscribe(conn, "news", 0);
        return ws_set_interval(conn, 10000, tick, NULL) < 0 ? WS_E_FAILED : WS_OK;
    }
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        int count = 0;
        if (msg->size == 6 && memcmp(msg->data, "let in", 6) == 0) {
            ws_accept(waiting);
        } else if (msg->size == 4 && memcmp(msg->data, "fill", 4) == 0) {
            while (ws_send(conn, WS_BINARY, block, sizeof block) == WS_OK)
                count++;
            ws_log(WS_LOG_WARN, "full after %d", count);
        } else {
            ws_send(conn, msg->type, msg->data, msg->size);
        }
    }
    static void on_writable(ws_conn conn)
    {
        ws_log(WS_LOG_WARN, "room again");
        ws_close(conn, 4000, "enough");
    }
    WS_HANDLER(.name = "busy", .do_extra_handshake = do_extra_handshake, .on_open = on_open,
               .on_message = on_message, .on_writable = on_writable);
"#;

const BUSY_SCRIPT: &str = "\
    >! open\n    Cookie: room=7\n<! header X-Room: 7\n> a\n< a\n\
    ann>! request /busy?later\nann<! nothing 2s\n> let in\nann<! status 101\nann> b\nann< b\n\
    = time passes 25s\n< tick\n< tick\nann< tick\nann< tick\n<! nothing 1s\n\
    = publish news it rains\n< it rains\nann< it rains\n\
    = move\n= publish news it snows\n< it snows\nann< it snows\n\
    ann>! stop reading\nann> fill\n= log full after \nann>! read again\n= log room again\n\
    > c\n< c\n>! large 100K\n<! large 100K\n>! vanish\n";

#[test]
fn test_controls_the_host() {
    let dir = Dir::new();
    dir.handler("busy", BUSY);
    std::fs::write(dir.path().join("x.test"), BUSY_SCRIPT).unwrap();
    for more in [&[][..], &["--no-fork"]] {
        let mut test = wshd();
        test.args(["test", "--timeout", "25s", "busy_wsh.so", "x.test"]).args(more).current_dir(dir.path());
        let output = output_of(&mut test).unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{more:?}\n{said}");
    }
}

#[test]
fn test_uses_the_configuration_of_a_server() {
    let dir = Dir::new();
    let source = r#"
        #include <ws_handler.h>
        static int32_t on_open(ws_conn conn)
        {
            return ws_send_text(conn, ws_config("greeting").data);
        }
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            ws_send(conn, msg->type, msg->data, msg->size);
        }
        WS_HANDLER(.name = "parley", .on_open = on_open, .on_message = on_message);
    "#;
    dir.handler("parley", source);
    let config = "port = 1\nserver_host = \"192.0.2.1\"\n[handler.\"/a/b\"]\nmax_message = \"1K\"\n\
        [handler.\"/a/b\".settings]\ngreeting = \"good morning\"\n";
    std::fs::write(dir.path().join("wshd.conf"), config).unwrap();
    let script = ">! open /parley\n<! status 404\n>! open /a/b\n< good morning\n= at 1m 30s\n>! large 2K binary\n<! close 1009\n";
    std::fs::write(dir.path().join("x.test"), script).unwrap();
    let args =
        ["test", "--timeout", "25s", "-f", "wshd.conf", "--resource", "/a/b", "parley_wsh.so", "x.test"];
    let output = output_of(wshd().args(args).current_dir(dir.path())).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    let mut test = wshd();
    test.args(args).args(["-o", "log_file=x"]).current_dir(dir.path());
    ends(&output_of(&mut test).unwrap(), 3, "-o log_file: it cannot be set here");
    std::fs::write(dir.path().join("wshd.conf"), "port = no\n").unwrap();
    ends(&output_of(wshd().args(args).current_dir(dir.path())).unwrap(), 3, "wshd.conf");
}

#[test]
fn steps_of_different_peers_are_in_order() {
    let dir = Dir::new();
    let source = r#"
        #include <ws_handler.h>
        static char   all[256];
        static size_t size;
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            all[size++] = *(const char *)msg->data;
            ws_send(conn, WS_TEXT, all, size);
        }
        WS_HANDLER(.name = "parley", .on_message = on_message);
    "#;
    dir.handler("parley", source);
    let mut script = ["ann", "bob", "cat"].map(|name| format!("{name}>! open\n")).concat();
    let said: String = (0..26).map(|number| char::from(b'a' + number)).collect();
    for (number, letter) in said.chars().enumerate() {
        script += &format!("{}> {letter}\n", ["cat", "ann", "bob"][number * 7 % 3]);
    }
    script += &format!("eve> !\neve< {said}!\n");
    let output = tested(&dir, &script);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn threads_of_the_blocking_style_see_the_clock_of_the_host() {
    let dir = Dir::new();
    let source = r#"
        #include <ws_handler.h>
        static int32_t transfer_data(ws_conn conn)
        {
            ws_message msg;
            for (;;) {
                int32_t result = ws_receive(conn, &msg, 3600 * 1000);
                if (result == WS_E_TIMEOUT)
                    ws_send_text(conn, "an hour");
                else if (result > 0)
                    ws_send(conn, msg.type, msg.data, msg.size);
                else
                    return WS_OK;
            }
        }
        WS_HANDLER(.name = "parley", .transfer_data = transfer_data);
    "#;
    dir.handler("parley", source);
    let script = "> a\n< a\n= wait 20ms\n= time passes 90m\n< an hour\n<! nothing 1s\n> b\n< b\n";
    let output = tested(&dir, script);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn test_reports_how_the_worker_died() {
    let dir = Dir::new();
    let source = r#"
        #include <stdlib.h>
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            if (msg->size == 5)
                *(volatile char *)16 = 0;
            if (msg->size == 4)
                ws_query_param(conn + 1, "a", NULL, 0);
            ws_send(conn, msg->type, msg->data, msg->size);
        }
        static void on_close(ws_conn conn, uint32_t by, uint32_t code)
        {
            (void)conn, (void)by;
            if (code == 4000)
                abort();
        }
        WS_HANDLER(.name = "parley", .on_message = on_message, .on_close = on_close);
    "#;
    dir.handler("parley", source);
    for (script, said) in [
        (
            "> a\n< a\n> crash\n< crash\n",
            "x.test:4: failed\n    expected  text \"crash\"\n    worker    crashed: SIGSEGV at address 0x10 in on_message of parley, ",
        ),
        ("> crash\n= time passes 1s\n", "x.test:2: failed\n    worker    crashed: SIGSEGV"),
        ("> they\n< they\n", "was called in on_message of connection"),
        (
            "> a\n< a\n>! close 4000\n<! close 4000\n",
            "x.test:4: failed\n    worker    crashed: SIGABRT in on_close of parley",
        ),
    ] {
        let output = tested(&dir, script);
        let out = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(6), "{out}");
        assert!(out.contains(said), "{out}");
    }
}

#[test]
fn test_shows_expected_and_got() {
    let dir = Dir::new();
    dir.handler("parley", PARLEY);
    for (script, line, expected, got) in [
        ("< welcome\n> a\n< b\n", 3, "text \"b\"", "text \"a\""),
        ("< welcome\n> bye\n< b\n", 3, "text \"b\"", "close 4001 \"as you like\""),
        ("< welcome\n<! binary 00", 2, "binary 00", "nothing within 2s"),
        ("<! nothing 1s", 1, "nothing for 1s", "text \"welcome\""),
        ("<! status 403", 1, "status 403", "status 101"),
        ("<! header X-Room: 8", 1, "x-room: 8", "x-room: 7"),
        ("< welcome\n> abort\n<! close 1000\n", 3, "close 1000 \"\"", "the end of the connection"),
    ] {
        let limit = if got == "nothing within 2s" { "2s" } else { "25s" };
        let output = tested_within(limit, &dir, script);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(6), "{said}");
        let told = format!("x.test:{line}: failed\n    expected  {expected}\n    got       {got}");
        assert!(said.starts_with(&told), "{said}");
    }
    ends(&tested(&dir, "hello\n"), 3, "x.test:1:1: expected > or <");
    std::fs::write(dir.path().join("parley_wsh.so"), "nothing").unwrap();
    ends(&tested(&dir, "> a\n"), 3, "not a shared object");
}

#[test]
fn a_step_does_not_wait_longer_because_of_pings() {
    let dir = Dir::new();
    let source = r#"
        #include <ws_handler.h>
        static void tick(ws_conn conn, void *arg) { (void)arg; (void)ws_ping(conn, "", 0); }
        static int32_t on_open(ws_conn conn) { return ws_set_interval(conn, 10, tick, NULL) < 0 ? WS_E_FAILED : WS_OK; }
        static void on_message(ws_conn conn, const ws_message *msg) { (void)conn, (void)msg; }
        WS_HANDLER(.name = "parley", .on_open = on_open, .on_message = on_message);
    "#;
    dir.handler("parley", source);
    let output = tested_within("2s", &dir, "> hello\n<! nothing 1s\n< never\n");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("x.test:3: failed") && said.contains("got       nothing within 2s"), "{said}");
}

#[test]
fn a_frame_may_have_the_size_of_the_largest_message() {
    let dir = Dir::new();
    dir.handler("parley", PARLEY);
    std::fs::write(dir.path().join("x.test"), "< welcome\n>! large 20M\n<! large 20M\n").unwrap();
    let options = ["-o", "max_message=32M", "-o", "max_frame=32M", "-o", "send_high=32M"];
    let mut test = wshd();
    test.args(["test", "--timeout", "25s"])
        .args(options)
        .args(["parley_wsh.so", "x.test"])
        .current_dir(dir.path());
    let output = output_of(&mut test).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn test_shows_the_log_of_a_handler_that_does_not_start() {
    let dir = Dir::new();
    let source = r#"
        #include <ws_handler.h>
        static int32_t on_worker_start(void)
        {
            ws_log(WS_LOG_ERROR, "there is no database");
            return WS_E_FAILED;
        }
        static void on_message(ws_conn conn, const ws_message *msg) { (void)conn, (void)msg; }
        WS_HANDLER(.name = "parley", .on_worker_start = on_worker_start, .on_message = on_message);
    "#;
    dir.handler("parley", source);
    std::fs::write(dir.path().join("x.test"), "> a\n").unwrap();
    for more in [&[][..], &["--no-fork"]] {
        let mut test = wshd();
        test.args(["test", "parley_wsh.so", "x.test"]).args(more).current_dir(dir.path());
        ends(&output_of(&mut test).unwrap(), 3, "there is no database");
    }
}

#[test]
fn test_needs_no_reader() {
    let dir = Dir::new();
    dir.handler("parley", PARLEY);
    std::fs::write(dir.path().join("x.test"), "< welcome\n").unwrap();
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let args = ["test", "parley_wsh.so", "x.test"];
    let status = wshd().args(args).current_dir(dir.path()).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    let status = wshd().args(["test", "no_wsh.so", "x.test"]).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(3));
}
