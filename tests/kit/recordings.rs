//! `wshd ctl record` with a server, and `wshd replay` of the recordings.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::client::{ask, connect, connect_with};
use super::daemon::{Dir, Server, ctl, output_of, output_within, until, wshd};
use super::ends;

/// Crashes on the third message.
const FRAGILE: &str = r#"
    #include <ws_handler.h>
    static int32_t on_open(ws_conn conn)
    {
        return ws_send_text(conn, ws_is_resumed(conn) ? "again" : "welcome");
    }
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        static int count;
        if (ws_bytes_equal(ws_query(conn), "room=7&token=masked") && ++count == 3)
            *(volatile char *)16 = 0;
        ws_send(conn, msg->type, msg->data, msg->size);
    }
    WS_HANDLER(.name = "fragile", .protocols = "chat", .on_open = on_open, .on_message = on_message);
"#;

/// A running recording.
struct Recording {
    /// Until it was reaped.
    child: Option<Child>,
    file: PathBuf,
}

impl Recording {
    /// Starts one of this resource, and waits until it has begun.
    fn start(control: &Path, resource: &str, file: PathBuf, more: &[&str]) -> Self {
        let mut command = wshd();
        command.args(["ctl", "--control-socket"]).arg(control).args(["record", resource]).arg(&file);
        let child = command.args(more).stdout(Stdio::piped()).spawn().unwrap();
        let recording = Recording { child: Some(child), file };
        until("it records", || recording.text().contains("# resource: "));
        recording
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap_or_default()
    }

    fn has(&self, text: &str) {
        until(text, || self.text().contains(text));
    }

    /// Its output at the end.
    fn end(mut self) -> String {
        String::from_utf8(self.child.take().unwrap().wait_with_output().unwrap().stdout).unwrap()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill(); // it may have ended
            let _ = child.wait();
        }
    }
}

fn start(dir: &Dir, more: &[&str]) -> (Server, PathBuf) {
    let control = dir.path().join("control");
    let args = ["--workers", "1", "--control-socket", control.to_str().unwrap()];
    (Server::start(dir, &[&args, more].concat()), control)
}

/// Records a conversation that ends in a crash; returns the recording.
fn record_a_crash(dir: &Dir) -> PathBuf {
    dir.handler("fragile", FRAGILE);
    let (mut server, control) = start(dir, &[]);
    let mut early = connect(&server.address(), "/fragile");
    let recording = Recording::start(&control, "/fragile", dir.path().join("crash.test"), &[]);
    let protocols = ("Sec-WebSocket-Protocol", "chat, bearer, 31d4.5a");
    let headers = [("Cookie", "sid=31d4"), ("Authorization", "Basic 31d4"), ("X-Room", "7"), protocols];
    let (mut client, _) = connect_with(&server.address(), "/fragile?room=7&token=masked", &headers);
    ask(&mut early, "before");
    for text in ["one", "two\n"] {
        ask(&mut client, text);
    }
    client.send("three".into()).unwrap();
    recording.has("> three\n");
    server.says("crashed: SIGSEGV");
    server.stop();
    let text = recording.text();
    for line in [
        "cookie: sid=masked",
        "authorization: basic masked",
        "x-room: 7",
        "sec-websocket-protocol: chat, bearer, masked",
    ] {
        assert!(text.lines().any(|found| found.trim().eq_ignore_ascii_case(line)), "{line} in {text}");
    }
    assert!(!text.contains("31d4"), "{text}");
    assert!(text.contains(" was open before\n") && text.contains(">! text \"two\\n\"\n"), "{text}");
    recording.file.clone()
}

#[test]
fn a_recorded_crash_is_replayed() {
    let dir = Dir::new();
    let file = record_a_crash(&dir);
    let output = output_of(wshd().arg("replay").arg(&file).current_dir(dir.path())).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("crashed: SIGSEGV at address 0x10 in on_message of fragile"), "{said}");
    assert!(said.contains("wshd: under a debugger: gdb --args "), "{said}");
}

#[test]
#[ignore = "needs gdb"]
fn a_recorded_crash_is_debugged_by_the_printed_command() {
    let dir = Dir::new();
    let file = record_a_crash(&dir);
    let output = output_of(wshd().arg("replay").arg(&file).current_dir(dir.path())).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let command = said.lines().find_map(|line| line.strip_prefix("wshd: under a debugger: gdb --args "));
    let script = format!("gdb -batch -ex run -ex backtrace --args {}", command.unwrap());
    let mut gdb = Command::new("sh");
    gdb.args(["-c", &script]).stdin(Stdio::null()).current_dir(dir.path()).env("DEBUGINFOD_URLS", "");
    let output = output_within(Duration::from_secs(120), &mut gdb).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let frame = said.lines().find(|line| line.starts_with("#0 "));
    assert!(frame.is_some_and(|frame| frame.contains("on_message")), "{said}");
}

#[test]
fn a_recording_goes_on_when_connections_move() {
    let dir = Dir::new();
    dir.handler("fragile", FRAGILE);
    let (mut server, control) = start(&dir, &[]);
    let recording = Recording::start(&control, "/fragile", dir.path().join("x.test"), &["--no-payload"]);
    let mut client = connect(&server.address(), "/fragile?a=b");
    assert_eq!(super::client::next_text(&mut client), "welcome");
    assert_eq!(ask(&mut client, "secret"), "secret");
    dir.handler("fragile", &FRAGILE.replace("WS_HANDLER(", "WS_HANDLER(.version = \"2\", "));
    server.signal(Signal::SIGHUP);
    assert_eq!(super::client::next_text(&mut client), "again");
    client.send(vec![7u8; 5].into()).unwrap();
    recording.has("large 5 binary\n");
    client.close(None).unwrap();
    recording.has(">! close");
    let text = recording.text();
    let steps =
        text.lines().skip(3).filter(|line| !line.starts_with([' ', '#']) && !line.starts_with("= at"));
    let steps: Vec<&str> = steps.map(|line| line.split_once(['>', '=']).unwrap().1).collect();
    assert_eq!(steps, ["! request /fragile?a=b", "! large 6", " move", "! large 5 binary", "! close"]);
    assert!(!text.contains("secret"));
    let other = ctl(&control, &["record", "/fragile", dir.path().join("y.test").to_str().unwrap()]);
    ends(&other, 9, "/fragile is being recorded");
    let output = output_of(wshd().arg("replay").arg(&recording.file)).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    drop(recording);
    server.says("recording of /fragile ended");
    server.stop();
}

#[test]
fn a_recording_goes_on_when_a_reload_gives_the_handler_a_pool() {
    let dir = Dir::new();
    dir.handler("fragile", FRAGILE);
    let config = dir.path().join("w.conf");
    std::fs::write(&config, "").unwrap();
    let (mut server, control) = start(&dir, &["--config", config.to_str().unwrap()]);
    let recording = Recording::start(&control, "/fragile", dir.path().join("moved.test"), &[]);
    std::fs::write(&config, "[handler.'/fragile']\nisolation = 'pool'\n").unwrap();
    server.ctl_says(&control, &["reload"]);
    ask(&mut connect(&server.address(), "/fragile"), "to the pool");
    recording.has("to the pool");
    server.stop();
}

#[test]
fn a_recording_is_bounded() {
    let dir = Dir::new();
    dir.handler("fragile", FRAGILE);
    let (mut server, control) = start(&dir, &[]);
    let file = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(file("mine"), "").unwrap();
    ends(&ctl(&control, &["record", "/fragile", &file("mine")]), 9, "mine: File exists");
    ends(&ctl(&control, &["record", "/nobody", &file("x")]), 9, "no handler serves /nobody");
    assert!(!dir.path().join("x").exists());
    let said = ctl(&control, &["record", "/fragile", &file("short"), "--for", "50ms"]);
    assert!(String::from_utf8_lossy(&said.stdout).starts_with("recorded for 50ms: "), "{said:?}");
    let recording = Recording::start(&control, "/fragile", file("small").into(), &["--limit", "2K"]);
    let mut client = connect(&server.address(), "/fragile");
    for _ in 0..3 {
        ask(&mut client, &"x".repeat(900));
    }
    assert!(recording.end().starts_with("the file is as large as it may be: "));
    let small = std::fs::metadata(file("small")).unwrap();
    assert!(small.len() <= 2048);
    // What clients send is for its owner only.
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&small) & 0o077, 0);
    // More than a datagram holds, and more than the limit.
    let limit = ["--max-message", "300K"];
    let recording = Recording::start(&control, "/fragile", file("large").into(), &limit);
    for size in [300 << 10, 301 << 10] {
        ask(&mut client, &"y".repeat(size));
    }
    recording.has(">! large 308224\n");
    assert!(recording.text().contains(&format!("> {}\n", "y".repeat(300 << 10))));
    client.send(tungstenite::Message::Ping("are you there".into())).unwrap();
    recording.has(">! ping are you there\n");
    server.stop();
    assert!(recording.end().starts_with("the server ended: "));
}
