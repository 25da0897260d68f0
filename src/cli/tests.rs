//! The command line as a whole.

use std::time::Duration;

use super::*;
use crate::config::{Listen, Quarantine, Sending};
use crate::log::{Destination, Level};
use crate::proto::ws::limits::Limits;

/// Parses a command line with a handler directory.
fn run(args: &[&str]) -> Result<Command, Error> {
    parse(["wshd", "-w", "/h"].iter().chain(args).map(OsString::from), None)
}

fn config(args: &[&str]) -> Config {
    match run(args).unwrap() {
        Command::Serve(config) => *config,
        other => panic!("{other:?}"),
    }
}

/// The message of an error.
fn error(args: &[&str]) -> String {
    run(args).unwrap_err().to_string()
}

#[test]
fn the_table_of_options_is_valid() {
    command().debug_assert();
}

#[test]
fn defaults() {
    let config = config(&[]);
    assert_eq!(config.listen, [Listen::Tcp { host: "127.0.0.1".into(), port: 8080 }]);
    assert_eq!(config.document_root, None);
    assert_eq!(config.handler.limits.message, 16 << 20);
    assert_eq!(config.sending, Sending { high: 1 << 20, low: 256 << 10, total: 256 << 20 });
    assert_eq!(config.stop_timeout, Duration::from_secs(10));
    let Quarantine { deaths, window, time } = config.quarantine;
    assert_eq!((deaths, window, time), (3, Duration::from_secs(60), Duration::from_secs(10)));
    assert!(config.crash_records.is_none());
    assert_eq!((config.connections, config.threads), (16_384, 256));
    assert!(config.workers >= 1);
    assert!(config.handler.deflate.enabled);
}

#[test]
fn limits_have_the_defaults_of_the_protocol() {
    let (ours, theirs) = (config(&[]).handler.limits, Limits::default());
    assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    let (ours, theirs) =
        (config(&[]).handler.deflate, crate::proto::ws::deflate::negotiate::Config::default());
    assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
}

#[test]
fn options_of_mod_pywebsocket_in_both_spellings() {
    let dashes = ["--server-host", "::1", "--port=0", "--websock-handlers-map-file=m_f"];
    let underscores = ["--server_host", "::1", "--port=0", "--websock_handlers_map_file=m_f"];
    for args in [dashes, underscores] {
        let config = config(&args);
        assert_eq!(config.listen, [Listen::Tcp { host: "::1".into(), port: 0 }]);
        assert_eq!(config.map_file, Some("m_f".into()), "values keep their _");
    }
    let config = config(&[
        "-H",
        "localhost",
        "-p",
        "81",
        "-m",
        "m",
        "-s",
        "s",
        "-d",
        "/",
        "-q",
        "7",
        "-V",
        "v",
        "-P",
        "82",
        "-l",
        "l",
        "--log_level=warning",
        "--allow_handlers_outside_root_dir",
    ]);
    assert_eq!(config.listen, [Listen::Tcp { host: "localhost".into(), port: 81 }]);
    assert_eq!(config.scan_dir, Some("s".into()));
    assert_eq!(config.document_root, Some("/".into()));
    assert_eq!(config.listener.binding.backlog, 7);
    assert_eq!(config.validation, (Some("v".into()), Some(82)));
    assert_eq!(config.log.destination, Destination::File(std::path::absolute("l").unwrap()));
    assert_eq!(config.log.level, Level::Warn);
    assert!(config.allow_outside);
}

#[test]
fn hosts_and_ports_become_addresses() {
    let listen = config(&["-H", "0.0.0.0", "-H", "[::]", "-H", "unix:/run/s", "-p", "1"]).listen;
    let texts: Vec<String> = listen.iter().map(Listen::to_string).collect();
    assert_eq!(texts, ["0.0.0.0:1", "[::]:1", "unix:/run/s"]);
}

#[test]
fn an_error_names_option_value_and_expectation() {
    for (option, value) in [("--server-host", "a:80"), ("--max-message", "1T"), ("--idle-timeout", "30")] {
        let error = error(&[option, value]);
        assert!(error.contains(option) && error.contains(value), "{error}");
        assert!(error.contains("expected"), "{error}");
    }
    for never_off in ["handshake_timeout", "pong_timeout", "close_timeout"] {
        assert!(error(&["-o", &format!("{never_off}=0")]).contains("cannot be off"));
    }
}

#[test]
fn numbers_have_ranges() {
    for wrong in [
        ["--workers", "0"],
        ["--workers", "1025"],
        ["--port", "65536"],
        ["--queue", "0"],
        ["--validation-port", "0"],
        ["-odeflate_level", "10"],
        ["--max-connections", "0"],
        ["-omax_headers", "0"],
        ["-omax_pings", "-1"],
    ] {
        let error = error(&[&wrong.join("=")]);
        assert!(error.contains(wrong[0].trim_start_matches("-o")) && error.contains(wrong[1]), "{error}");
    }
}

#[test]
fn the_low_mark_of_the_send_queue_is_below_the_high_mark() {
    let config = config(&["-osend_high=64K"]);
    assert_eq!((config.sending.high, config.sending.low), (65_536, 16_384));
    let error = error(&["-osend_high=64K", "-o", "send_low=65537"]);
    assert!(error.contains("-o send_low: 65537 is above -o send_high 65536"), "{error}");
}

#[test]
fn a_frame_is_never_larger_than_a_message() {
    assert_eq!(config(&["--max-message", "1M"]).handler.limits.frame, 1 << 20);
    assert_eq!(config(&["-omax_frame=1K"]).handler.limits.frame, 1 << 10);
}

#[test]
fn missing_directories() {
    assert!(matches!(run(&["-d", "/nowhere"]), Err(Error::Settings(settings::Error::Config(_)))));
    let dir = tempfile::tempdir().unwrap();
    let parse_in = |exe_dir: PathBuf| parse(["wshd".into()], Some(exe_dir));
    let bin = dir.path().join("bin");
    let error = parse_in(bin.clone()).unwrap_err().to_string();
    assert!(error.contains("bin/handlers") && error.contains("lib/wshd/handlers"), "{error}");
    std::fs::create_dir_all(dir.path().join("lib/wshd/handlers")).unwrap();
    std::fs::create_dir_all(&bin).unwrap();
    let handlers = |command| match command {
        Ok(Command::Serve(config)) => config.handlers,
        other => panic!("{other:?}"),
    };
    assert!(handlers(parse_in(bin.clone())).ends_with("../lib/wshd/handlers"));
    std::fs::create_dir(bin.join("handlers")).unwrap();
    assert!(handlers(parse_in(bin.clone())).ends_with("bin/handlers"));
}

#[test]
fn check_takes_files_only() {
    let check = |args: &[&str]| parse(["wshd"].iter().chain(args).map(OsString::from), None);
    assert!(matches!(check(&["check", "a", "b"]), Ok(Command::Check(asked, None)) if asked.files.len() == 2));
    assert!(matches!(check(&["check", "-w", "/h"]), Ok(Command::Test(_))));
    assert!(matches!(check(&["-T", "-w", "/h"]), Ok(Command::Test(_))));
    assert!(matches!(check(&["-p", "1", "check", "a"]), Err(Error::Usage(_))));
    let ineffective = check(&["check", "a", "-o", "handler_timeout=5s"]).unwrap_err().to_string();
    assert_eq!(ineffective, "-o handler_timeout: expected --config as well, whose settings handlers get");
    assert!(matches!(check(&["chek"]), Err(Error::Usage(_))));
}

#[test]
fn settings_without_an_option_are_set_with_o() {
    let config = config(&[
        "-o",
        "idle_timeout=2m",
        "-oallow_origin=null",
        "-o",
        "allow_origin=https://a",
        "-odeflate=false",
    ]);
    assert_eq!(config.handler.limits.idle, Duration::from_secs(120));
    assert_eq!(config.handler.origins.len(), 2, "lists add up");
    assert!(!config.handler.deflate.enabled);
    for (args, expected) in [
        (&["-o", "port"][..], "-o port: expected NAME=VALUE"),
        (&["-o", "prot=1"], "-o prot: no such setting, did you mean port?"),
        (&["-o", "workers=-2"], "-o workers=-2: expected an integer from 1 to 1024"),
        (&["-o", "port=1", "-p", "2"], "-o port: it is already given by --port"),
        (&["--max-pings", "2"], "--max-pings: give it as -o max_pings=COUNT, or in the configuration file"),
    ] {
        let error = error(args);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn booleans_can_be_turned_off() {
    assert!(config(&["--strict-handlers"]).strict_handlers);
    assert!(!config(&["--strict-handlers=false"]).strict_handlers);
    assert!(error(&["--strict-handlers=no"]).contains("expected true or false"));
}
