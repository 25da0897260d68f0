//! Fault injection: serves a handler to misbehaving peers, lets time pass, and makes calls of the host fail, one test
//! after the other, each with a new worker. The replies do not matter; the worker must survive, and the strict host
//! must find no error.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::Finding;
use crate::config::Config;
use crate::confine::Confinement;
use crate::kit::host::{Host, Served, process};
use crate::kit::peer::{Content, Peer, connect};

/// Time that a peer waits for a reply to its request. The handler may delay it on purpose.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Connections in a round of the leak test, and before the first round.
const ROUND: u32 = 1000;
const WARM: u32 = 200;
/// Growth in a round that does not count as a leak: allocators and the server round up; bytes.
const NOISE: u64 = 40 << 10;
/// Messages to a peer that does not read.
const FLOOD: usize = 400;

/// A test: the rule that its findings have, one in how many calls of the host fails (0: none), and what peers do.
type FaultCase = (&'static str, u32, fn(&mut FaultTest) -> Result<(), String>);
const FAULTS: [FaultCase; 11] = [
    ("messages", 0, FaultTest::messages),
    ("short-reads", 0, FaultTest::short_reads),
    ("close", 0, FaultTest::close),
    ("slow-peer", 0, FaultTest::slow_peer),
    ("move", 0, FaultTest::moves),
    ("ids", 0, FaultTest::ids),
    ("time", 0, FaultTest::time),
    (HOST_CALLS, 1, FaultTest::messages),
    (HOST_CALLS, 2, FaultTest::messages),
    (HOST_CALLS, 3, FaultTest::messages),
    ("leak", 0, FaultTest::leak),
];
const HOST_CALLS: &str = "host-calls";

/// A test of one handler.
struct FaultTest {
    host: Host,
    /// The resource.
    target: String,
    findings: Vec<Finding>,
}

/// Runs all tests; `dir` must not exist.
pub fn findings(
    dir: &Path,
    object: &Path,
    name: &str,
    config: Option<&Config>,
    confinement: Option<&Confinement>,
) -> Result<Vec<Finding>, String> {
    let mut findings: Vec<Finding> = Vec::new();
    let options = ["log_format=json".to_owned()];
    for (rule, fail_every, test) in FAULTS {
        let dir = dir.join(format!("{rule}.{fail_every}"));
        let is_debugged = false;
        let served = Served { object, name, options: &options, config, is_debugged, fail_every, confinement };
        let mut host = Host::new(&dir, served)?;
        let mut running = match host.start() {
            // Without room or memory a handler may refuse to start.
            Err(_) if fail_every > 0 => continue,
            Err(why) => return Err(why),
            Ok(()) => FaultTest { host, target: format!("/{name}"), findings: Vec::new() },
        };
        let result = test(&mut running).and_then(|()| running.host.turn()).and_then(|()| running.host.stop());
        running.note(rule, result.err());
        let blocking = running.host.blocking_callback();
        let FaultTest { host, findings: mut found, .. } = running;
        drop(host);
        found.extend(blocking.map(|callback| {
            let what = format!(
                "{callback} repeatedly blocks the event loop, and all connections of its worker wait: use the blocking \
                 style, or a thread; further tests were skipped"
            );
            Finding::warning("blocking-call", what)
        }));
        for finding in found.into_iter().chain(orphans()) {
            if !findings.iter().any(|known| general(&known.message) == general(&finding.message)) {
                findings.push(finding);
            }
        }
        if blocking.is_some() {
            break;
        }
    }
    Ok(findings)
}

/// Kills processes that the handler has left behind.
fn orphans() -> Option<Finding> {
    let count = process::kill_children();
    let what = format!("leaves {count} processes behind: end them, and wait for them, in on_worker_stop");
    (count > 0).then(|| Finding::warning("processes", what))
}

/// The message without connections, addresses and offsets, to find duplicates.
fn general(message: &str) -> String {
    let is_number = |word: &&str| word.len() >= 9 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words = message.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|word| !is_number(word) && !word.starts_with("0x")).collect::<Vec<_>>().join(" ")
}

/// Messages for any handler.
fn samples() -> Vec<Content> {
    let texts = ["", "a", "{}", "{\"type\":\"join\",\"room\":[1,-1e400]}", "%n%s \u{0} \u{10ffff}"]
        .map(str::to_owned);
    let texts = texts.into_iter().chain(["x".repeat(70_000)]);
    let binaries = [vec![], vec![0], (0..=255).collect(), vec![255; 70_000]];
    texts.map(Content::Text).chain(binaries.map(Content::Binary)).collect()
}

fn text(text: &str) -> Content {
    Content::Text(text.to_owned())
}

fn fragment(text: &str, is_first: bool, is_last: bool) -> Content {
    Content::Fragment { bytes: text.as_bytes().to_vec(), is_text: true, is_first, is_last }
}

impl FaultTest {
    /// Records the findings of the strict host, and the death of the worker.
    fn note(&mut self, rule: &'static str, death: Option<String>) {
        for (is_warning, message) in self.host.remarks() {
            // A callback may return the error of a call that failed on purpose, or because the peer has gone.
            let is_passed_on = message.contains(" returned -") && !message.contains("() of ");
            if is_passed_on && (rule == HOST_CALLS || message.contains("(WS_E_GONE)")) {
                continue;
            }
            let message = message.split(" (connection ").next().unwrap_or_default();
            self.findings.push(match is_warning {
                true => Finding::warning("strict", message),
                false => Finding::note("settings", message),
            });
        }
        if let Some(how) = death {
            self.findings.push(Finding::fault(rule, format!("its worker {how}")));
        }
    }

    /// A peer that has waited for the reply to its request.
    fn peer(&self) -> Result<Peer, String> {
        let mut peer = Peer::request(&self.host.socket(), &self.target, &[], TIMEOUT)?;
        let _ = peer.settle(); // a refusal or a late reply is not an error
        Ok(peer)
    }

    /// Waits until the handler has processed everything, and discards its replies.
    fn settle(&mut self, peers: &mut [&mut Peer]) -> Result<(), String> {
        self.host.turn()?;
        peers.iter_mut().for_each(|peer| peer.read_available(true));
        Ok(())
    }

    /// Sends this, on a new connection if the old one is closed.
    fn send(&mut self, peer: &mut Peer, content: &Content) -> Result<(), String> {
        if peer.send(content).is_err() {
            self.host.turn()?;
            *peer = self.peer()?;
            let _ = peer.send(content); // the handler may reject all connections
        }
        self.settle(&mut [peer])
    }

    fn messages(&mut self) -> Result<(), String> {
        let mut peer = self.peer()?;
        for content in samples() {
            self.send(&mut peer, &content)?;
        }
        for content in [Content::Ping(b"x".to_vec()), Content::Pong(Vec::new())] {
            self.send(&mut peer, &content)?;
        }
        for (piece, is_first, is_last) in [("a", true, false), ("", false, false), ("b", false, true)] {
            self.send(&mut peer, &fragment(piece, is_first, is_last))?;
        }
        self.send(&mut peer, &Content::Close(1000, String::new()))
    }

    fn short_reads(&mut self) -> Result<(), String> {
        const FRAMES: &[u8] = b"\x01\x81\0\0\0\0a\x89\x80\0\0\0\0\x80\x82\0\0\0\0bc\x88\x82\0\0\0\0\x03\xe8";
        let head = format!(
            "GET {} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
            self.target
        );
        let mut socket = connect(&self.host.socket(), TIMEOUT).map_err(|error| error.to_string())?;
        for byte in head.as_bytes().chunks(1).chain(FRAMES.chunks(1)) {
            if socket.write_all(byte).is_err() {
                break; // the handler rejects all connections
            }
            self.host.turn()?;
        }
        Ok(())
    }

    /// The peer disconnects in every state of a connection.
    fn close(&mut self) -> Result<(), String> {
        for sent in ["", "GET / HTTP/1.1\r\nHost: l"] {
            let socket = connect(&self.host.socket(), TIMEOUT);
            let _ = socket.and_then(|mut socket| socket.write_all(sent.as_bytes())); // it disconnects in any case
            self.host.turn()?;
        }
        drop(Peer::request(&self.host.socket(), &self.target, &[], TIMEOUT)?);
        self.host.turn()?;
        let reason = "why".to_owned();
        let close = |code| Content::Close(code, String::new());
        let ends: [&[Content]; 7] = [
            &[],
            &[close(1000)],
            &[Content::Close(4999, reason)],
            &[close(1005)],
            &[text("a")],
            &[text("a"), close(1001)],
            &[fragment("a", true, false)],
        ];
        for end in ends {
            let mut peer = self.peer()?;
            for content in end {
                let _ = peer.send(content); // it disconnects in any case
            }
            drop(peer);
            self.host.turn()?;
        }
        Ok(())
    }

    /// One peer stops reading, while another one reads.
    fn slow_peer(&mut self) -> Result<(), String> {
        let (mut slow, mut other) = (self.peer()?, self.peer()?);
        slow.stall(true);
        let large = Content::Binary(vec![b'x'; 8192]);
        for _ in 0..FLOOD {
            // Its replies fill its send queue, and then the host stops reading from it.
            if !slow.send_at_once(&large) {
                break;
            }
        }
        self.settle(&mut [&mut other])?;
        for _ in 0..20 {
            self.send(&mut other, &text("a"))?;
        }
        self.host.pass(Duration::from_secs(5), || other.read_available(true))?;
        slow.stall(false);
        for _ in 0..20 {
            self.settle(&mut [&mut slow, &mut other])?;
        }
        Ok(())
    }

    fn moves(&mut self) -> Result<(), String> {
        let (mut one, mut other) = (self.peer()?, self.peer()?);
        for content in samples().iter().take(4) {
            self.send(&mut one, content)?;
            let fds: Vec<_> = [&one, &other].into_iter().filter_map(|peer| peer.fd()).collect();
            self.host.move_connections(&fds)?;
            self.settle(&mut [&mut one, &mut other])?;
            self.send(&mut other, content)?;
        }
        Ok(())
    }

    /// A connection has ended, and the handler must not use its id.
    fn ids(&mut self) -> Result<(), String> {
        let (mut gone, mut other) = (self.peer()?, self.peer()?);
        self.send(&mut gone, &text("a"))?;
        drop(gone);
        self.host.turn()?;
        for content in samples().iter().take(4) {
            self.send(&mut other, content)?;
        }
        self.send(&mut other, &Content::Close(1000, String::new()))?;
        self.host.pass(Duration::from_secs(60), || ())?;
        let mut last = self.peer()?;
        self.send(&mut last, &text("a"))
    }

    fn time(&mut self) -> Result<(), String> {
        let (mut one, mut other) = (self.peer()?, self.peer()?);
        self.host.pass(Duration::from_secs(3600), || {
            one.read_available(true);
            other.read_available(true);
        })?;
        self.send(&mut one, &text("a"))
    }

    fn leak(&mut self) -> Result<(), String> {
        self.round(WARM)?;
        let before = self.host.usage();
        self.round(ROUND)?;
        let between = self.host.usage();
        self.round(ROUND)?;
        let after = self.host.usage();
        let (Some(before), Some(between), Some(after)) = (before, between, after) else { return Ok(()) };
        let grown = [between.0.saturating_sub(before.0), after.0.saturating_sub(between.0)];
        if let Some(least) = grown.into_iter().min().filter(|least| *least > NOISE) {
            let each = least / u64::from(ROUND);
            let what =
                format!("each connection leaves about {each} bytes of memory behind: free it in on_close");
            self.findings.push(Finding::warning("leak", what));
        }
        let descriptors = after.1.saturating_sub(between.1);
        if descriptors > (ROUND / 2) as usize {
            let what = "each connection leaves an open descriptor behind: close it in on_close";
            self.findings.push(Finding::warning("leak", what));
        }
        Ok(())
    }

    fn round(&mut self, connections: u32) -> Result<(), String> {
        for _ in 0..connections {
            let mut peer = self.peer()?;
            if peer.send(&text("a")).is_ok() {
                let _ = peer.send(&Content::Close(1000, String::new())); // the handler may have closed first
            }
            self.host.turn()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_findings_are_recognised() {
        let of = |conn: &str| format!("x: on_message of connection {conn} returned -5 (WS_E_INVALID)");
        assert_eq!(general(&of("100000000")), general(&of("2f00000001")));
        assert_ne!(
            general(&of("100000000")),
            general("x: on_open of connection 100000000 returned -5 (WS_E_INVALID)")
        );
        let crash = |at: &str| format!("its worker crashed: SIGSEGV at address {at} in on_open of x");
        assert_eq!(general(&crash("0x10")), general(&crash("0x7f5d00")));
    }
}
