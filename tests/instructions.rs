//! The cost of an echo of 20 bytes in instructions: exact, and independent of load. The event loop of a worker
//! is single-stepped from one `epoll_wait` to the next.
//!
//!     cargo test --release --test instructions -- --ignored --nocapture
//!
//! The expected counts are in `benches/instructions.txt`, with the version of the compiler:
//! another one gives other counts. `INSTRUCTIONS=write` before the command updates the file.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::fmt::Write;
use std::ops::Range;

use client::{Raw, frame};
use daemon::{Dir, Server};
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Allowed increase over the expected count; percent.
const TOLERANCE: f64 = 2.0;
/// Messages in a pipeline.
const DEPTH: u64 = 16;
/// The bytes of the instruction `syscall`.
const SYSCALL: i64 = 0x050f;
/// System calls (x86-64) that a turn of the loop makes.
const SENDTO: u64 = 44;
const RECVFROM: u64 = 45;
const EPOLL_WAIT: u64 = 232;

/// Instructions in user space of one turn of the event loop, by stage.
#[derive(Clone, Copy, Default)]
struct Turn {
    /// From `epoll_wait` to `recvfrom`.
    event: u64,
    /// From there to `sendto`, apart from the handler and what it calls.
    message: u64,
    /// In the handler's own code.
    handler: u64,
    /// In `ws_send`.
    send: u64,
    /// From `sendto` to the next `epoll_wait`.
    rest: u64,
}

impl Turn {
    fn stages(&self) -> [(&'static str, u64); 5] {
        [
            ("event: epoll_wait to recvfrom", self.event),
            ("message: decoding, checks, attribution", self.message),
            ("handler: its own code", self.handler),
            ("ws_send: framing, send queue", self.send),
            ("rest: sendto to epoll_wait", self.rest),
        ]
    }

    fn sum(&self) -> u64 {
        self.stages().iter().map(|(_, count)| count).sum()
    }
}

/// A traced event loop, stopped in `epoll_wait`.
struct Tracer {
    thread: Pid,
    /// The address range of the handler's code.
    handler: Range<u64>,
}

impl Tracer {
    fn attach(worker: i32, library: &str) -> Tracer {
        let maps = std::fs::read_to_string(format!("/proc/{worker}/maps")).unwrap();
        let code =
            maps.lines().find(|line| line.ends_with(library) && line.contains("r-xp")).expect("the handler");
        let (from, to) = code.split(' ').next().unwrap().split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        let thread = Pid::from_raw(worker);
        ptrace::seize(thread, Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        let tracer = Tracer { thread, handler: address(from)..address(to) };
        tracer.wait();
        tracer
    }

    fn wait(&self) {
        let status = waitpid(self.thread, Some(WaitPidFlag::__WALL)).unwrap();
        let stopped = matches!(status, WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..));
        assert!(stopped, "the worker must not end: {status:?}");
    }

    /// The next turn that answers. None if it does more than to receive and send, once each.
    fn answer(&self) -> Option<Turn> {
        let (mut turn, mut calls) = (Turn::default(), Vec::new());
        let (mut in_handler, mut handler_stack) = (false, 0);
        loop {
            let registers = ptrace::getregs(self.thread).unwrap();
            let instruction = ptrace::read(self.thread, registers.rip as ptrace::AddressType).unwrap();
            let call = (instruction & 0xffff == SYSCALL).then_some(registers.rax);
            if self.handler.contains(&registers.rip) {
                if !in_handler {
                    (in_handler, handler_stack) = (true, registers.rsp);
                }
                turn.handler += 1;
            } else if in_handler && registers.rsp < handler_stack {
                turn.send += 1;
            } else {
                in_handler = false;
                *match calls.last() {
                    None => &mut turn.event,
                    Some(&RECVFROM) => &mut turn.message,
                    Some(_) => &mut turn.rest,
                } += 1;
            }
            ptrace::step(self.thread, None).unwrap();
            self.wait();
            match call {
                Some(EPOLL_WAIT) if calls.contains(&SENDTO) => {
                    return (calls == [RECVFROM, SENDTO]).then_some(turn);
                }
                Some(EPOLL_WAIT) => (turn, calls) = (Turn::default(), Vec::new()),
                _ => calls.extend(call),
            }
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.thread, None);
    }
}

#[test]
#[ignore = "counts instructions of a release build: cargo test --release"]
fn the_echo_of_20_bytes_costs_no_more_instructions_than_it_did() {
    if cfg!(debug_assertions) {
        return println!("skipped: the counts are those of a release build");
    }
    let dir = Dir::new();
    fixtures::add_handler(dir.path(), "echo", "echo");
    let mut server = Server::start(&dir, &["--workers", "1"]);
    let mut client = Raw::open(&server.address(), "/echo");
    let message = frame(0x82, &[b'x'; 20]);
    let mut exchange = |tracer: Option<&Tracer>, depth: u64| {
        client.send(&message.repeat(depth as usize));
        let turn = tracer.and_then(Tracer::answer);
        for _ in 0..depth {
            assert_eq!(client.next().expect("an echo").payload, [b'x'; 20]);
        }
        turn
    };
    for _ in 0..100 {
        exchange(None, 1);
        exchange(None, DEPTH);
    }
    let tracer = Tracer::attach(server.worker(), "echo_wsh.so");
    let mut measure = |depth| exchange(Some(&tracer), depth);
    // Reading the clock can take a second try, so the minimum counts.
    let mut least = |depth| (0..15).filter_map(|_| measure(depth)).min_by_key(Turn::sum).expect("a turn");
    let (alone, many) = (least(1), least(DEPTH));
    drop(tracer);
    drop(client);
    server.stop();

    println!("| stage | one message | each further one |\n|---|--:|--:|");
    for ((stage, one), (_, all)) in alone.stages().into_iter().zip(many.stages()) {
        println!("| {stage} | {one} | {} |", (all.saturating_sub(one)) / (DEPTH - 1));
    }
    let further = (many.sum() - alone.sum()) / (DEPTH - 1);
    println!("| all | {} | {further} |", alone.sum());
    compare(&[("one", alone.sum()), ("further", further)]);
}

/// Compares counts with those of the file.
fn compare(counts: &[(&str, u64)]) {
    let file = fixtures::root().join("benches/instructions.txt");
    if std::env::var_os("INSTRUCTIONS").is_some_and(|word| word == "write") {
        let compiler = fixtures::run(std::process::Command::new("rustc").arg("--version"));
        let mut text = format!("# Written by tests/instructions.rs; {}\n", compiler.trim());
        counts.iter().for_each(|(name, count)| writeln!(text, "{name} {count}").unwrap());
        return std::fs::write(file, text).unwrap();
    }
    let text = std::fs::read_to_string(&file).unwrap();
    for (name, count) in counts {
        let expected = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).expect(name);
        let expected: f64 = expected.parse().unwrap();
        let most = expected * (1.0 + TOLERANCE / 100.0);
        assert!(*count as f64 <= most, "{name}: {count} instructions instead of {expected}\n{text}");
    }
}
