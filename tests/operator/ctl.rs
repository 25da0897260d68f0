//! `wshd ctl`: connections, the log level, and cancelling a reload or an upgrade.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use serde_json::Value;

use super::Operated;
use super::client::{Client, ask, close_of, connect};
use super::server::{Dir, ECHO, Server, until};

/// Three clients of /echo and two of /other.
fn clients(operated: &Operated) -> (Vec<Client>, Vec<Client>) {
    let connect = |count, resource| (0..count).map(|_| connect(&operated.address(), resource)).collect();
    (connect(3, "/echo"), connect(2, "/other"))
}

fn two_handlers() -> Dir {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    dir.handler("other", &ECHO.replace("\"echo\"", "\"other\""));
    dir
}

#[test]
fn connections_are_closed_by_filter() {
    let mut operated = Operated::start_in(two_handlers(), &["--workers", "2"]);
    let (mut echo, mut other) = clients(&operated);
    operated.closes(&["--handler", "echo", "--user", "nobody"], 0);
    operated.closes(&["--handler", "other", "--code", "4000"], 2);
    assert!(other.iter_mut().all(|client| close_of(client).0 == 4000));
    let mut one = echo.remove(0);
    let peer = one.get_ref().local_addr().unwrap().to_string();
    operated.closes(&["--peer", &peer], 1);
    assert_eq!(close_of(&mut one).0, 1001);
    assert!(echo.iter_mut().all(|client| ask(client, "still here") == "still here"));
    let rest = ["--peer", "127.0.0.0/8", "--resource", "/echo"];
    operated.closes(&rest, 2);
    assert!(echo.iter_mut().all(|client| close_of(client).0 == 1001));
    operated.server.says("requests: close all of peer 127.0.0.0/8, resource /echo with 1001");
    operated.server.stop();
}

#[test]
fn connections_are_listed_by_filter_and_sorted() {
    let operated = Operated::start_in(two_handlers(), &["--workers", "2"]);
    let (_echo, _other) = clients(&operated);
    // A worker that gets no processor for two seconds does not answer: then the list is requested again.
    let list = |args: &[&str]| {
        let mut list = Value::Null;
        until("all workers list their connections", || {
            let text = operated.says(&[&["connections", "--json"], args].concat());
            list = serde_json::from_str(&text).unwrap();
            list["silent"].as_array().is_some_and(Vec::is_empty)
        });
        list
    };
    let handlers = |args: &[&str]| -> Vec<String> {
        let list = list(args);
        list["connections"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["handler"].as_str().unwrap().to_owned())
            .collect()
    };
    // One that moves from one worker to another at that moment is in no list.
    until("the two others are listed", || handlers(&["--handler", "other"]) == ["other", "other"]);
    assert_eq!(handlers(&["--resource", "/ec*"]).len(), 0, "a prefix ends with a slash");
    let all = ["echo", "echo", "echo", "other", "other"];
    until("they are sorted", || handlers(&["--sort", "handler"]) == all);
    until("two of them are listed", || {
        let limited = list(&["--sort", "age", "--limit", "2"]);
        limited["connections"].as_array().unwrap().len() == 2 && limited["left_out"] == 3
    });
    let ages: Vec<f64> = list(&["--sort", "age"])["connections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["age"].as_f64().unwrap())
        .collect();
    assert!(ages.is_sorted_by(|one, other| one >= other), "{ages:?}");
    until("the table says so, too", || {
        operated.says(&["connections", "--limit", "1"]).ends_with("4 more are not listed\n")
    });
}

/// Logs each message.
const LOGS: &str = r#"
    #include <ws_handler.h>
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        ws_log(WS_LOG_DEBUG, "%s", msg->data);
        ws_send(conn, msg->type, msg->data, msg->size);
    }
    WS_HANDLER(.name = "logs", .on_message = on_message);
"#;

#[test]
fn the_level_of_the_log_changes_while_the_server_runs() {
    let dir = Dir::new();
    dir.handler("logs", LOGS);
    let mut operated = Operated::start_in(dir, &["--workers", "1"]);
    let mut client = connect(&operated.address(), "/logs");
    let mut number = 0;
    let mut is_logged = || {
        number += 1;
        let text = format!("message {number}.");
        ask(&mut client, &text); // the handler logs first
        operated.server.log().contains(&text)
    };
    assert_eq!(operated.says(&["log-level"]), "debug\n");
    assert!(is_logged());
    assert_eq!(operated.says(&["log-level", "warn"]), "warn\n");
    // The worker reads the command in a turn of its own.
    until("the worker logs it no more", || !is_logged());
    assert_eq!(operated.says(&["log-level"]), "warn\n");
    let loud = operated.ctl(&["log-level", "loud"]);
    assert_eq!(loud.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&loud.stderr).contains("expected one of fine, debug"));
    operated.says(&["log-level", "debug"]);
    until("the worker logs it again", is_logged);
    operated.says(&["log-level", "error"]);
    operated.says(&["reload"]);
    assert_eq!(operated.says(&["log-level"]), "debug\n", "a reload goes back to what is configured");
    drop(client);
    operated.server.stop();
}

#[test]
fn a_reload_that_waits_for_a_handler_can_be_cancelled() {
    let mut operated = Operated::start(&["--workers", "1"]);
    assert!(operated.refuses(&["cancel"]).contains("no reload or upgrade to cancel"));
    let hangs = "#include <unistd.h>\n__attribute__((constructor)) static void hang(void) { sleep(3600); }\n";
    operated.dir.handler("hangs", &format!("{hangs}{ECHO}"));
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| operated.refuses(&["reload"]));
        until("the reload can be cancelled", || operated.ctl(&["cancel"]).status.success());
        let why = reload.join().unwrap();
        assert!(
            why.contains("reload: failed; keeping the running configuration: cancelled by wshd ctl"),
            "{why}"
        );
    });
    connect(&operated.address(), "/echo");
    operated.server.stop();
}

#[test]
fn an_upgrade_that_waits_for_the_new_program_can_be_cancelled() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let (link, script) = (dir.path().join("wshd"), dir.path().join("script"));
    symlink(env!("CARGO_BIN_EXE_wshd"), &link).unwrap();
    std::fs::write(&script, "#!/bin/sh\nexec sleep 3600\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let log = dir.path().join("log");
    let mut command = Command::new(&link);
    command.args(["--port", "0", "--websock-handlers"]).arg(dir.path()).arg("--log-file").arg(&log);
    command.arg("--control-socket").arg(dir.path().join("control"));
    let server = Server::launch(command, log).when_ready();
    let mut operated = Operated { server, dir };
    std::fs::remove_file(&link).unwrap();
    symlink(&script, &link).unwrap();
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| operated.refuses(&["upgrade"]));
        until("the upgrade can be cancelled", || operated.ctl(&["cancel"]).status.success());
        assert!(upgrade.join().unwrap().contains("cancelled by wshd ctl"));
    });
    connect(&operated.address(), "/echo");
    until("the new program has ended", || {
        !operated.server.log().contains("under way") && operated.ctl(&["status"]).status.success()
    });
    operated.server.stop();
}
