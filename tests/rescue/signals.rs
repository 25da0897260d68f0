//! Signals raised by a handler, or sent by mistake.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::Raw;
use crate::crowd::{Crowd, SMALL_TALK};
use crate::{crash, logged, serve, stop};

/// Signals that end a process by default and are not crashes.
const STRAY: [Signal; 13] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGPIPE,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGSTKFLT,
    Signal::SIGXFSZ,
];

#[test]
fn stray_signals_change_nothing() {
    let (mut server, _dir) = serve(&["rescue", "echo"], &[]);
    let crowd = Crowd::gather(&server.address(), "/echo", 50, SMALL_TALK);
    let mut client = Raw::open(&server.address(), "/rescue");
    let worker = server.worker();
    for signal in STRAY {
        kill(Pid::from_raw(worker), signal).unwrap();
        assert_eq!(client.ask("still"), "still", "after {signal} from outside");
    }
    let stray = STRAY.map(|signal| signal as i32);
    // They include the host's own.
    for signal in stray.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        assert_eq!(client.ask(&format!("raise {signal}")), signal.to_string());
    }
    assert_eq!(server.worker(), worker);
    crowd.served();
    assert_eq!(crowd.ends(), []);
    crash(&server, "/rescue", "null");
    assert_eq!(client.ask("still"), "still");
    assert_eq!(logged(&server, " crashed: "), 1);
    drop((crowd, client));
    stop(&mut server);
}

#[test]
fn a_trap_is_attributed_with_its_place_in_the_code() {
    let (mut server, _dir) = serve(&["crash"], &[]);
    for (way, name) in [("trap", "SIGTRAP"), ("sys", "SIGSYS"), ("xcpu", "SIGXCPU")] {
        crash(&server, "/crash", way);
        server.says(&format!("crashed: {name} in on_message of crash, crash_wsh.so+0x"));
    }
    stop(&mut server);
}

#[test]
fn changed_signal_handlers_are_restored() {
    let (mut server, _dir) = serve(&["rescue", "echo"], &[]);
    let crowd = Crowd::gather(&server.address(), "/echo", 50, SMALL_TALK);
    let cases = [
        ("action", "null", "the action of SIGSEGV"),
        ("ignore", "abort", "the action of SIGABRT"),
        ("block", "null", "SIGSEGV blocked"),
        ("stack", "stack", "the signal stack"),
    ];
    for (what, way, told) in cases {
        let mut client = Raw::open(&server.address(), "/rescue");
        assert_eq!(client.ask(&format!("override {what}")), format!("override {what}"));
        server.says(&format!("which were put back: {told};"));
        crash(&server, "/rescue", way);
        crowd.served();
        assert_eq!(crowd.ends(), [], "after {what}");
        assert_eq!(client.ask("still"), "still", "after {what}");
    }
    drop(crowd);
    stop(&mut server);
}
