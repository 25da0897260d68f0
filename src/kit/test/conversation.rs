//! Runs a script: executes each step and compares.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::script::{Action, Opening, Step};
use crate::kit::host::Host;
use crate::kit::peer::{Content, Peer};

/// Interval of polling the log.
const POLL: Duration = Duration::from_millis(5);
/// Real time to wait for a message that should not come.
const GRACE: Duration = Duration::from_millis(50);
/// Characters of a message that are printed.
const SHOWN: usize = 200;

/// Why a step failed.
#[derive(Debug)]
pub struct StepFailure {
    /// By the script, if it expected something.
    expected: Option<String>,
    /// The subject of `what`: `got`, `cannot`, or `worker` if it has died.
    subject: &'static str,
    what: String,
}

impl StepFailure {
    fn other(expected: impl Into<String>, got: impl Into<String>) -> Self {
        StepFailure { expected: Some(expected.into()), subject: "got", what: got.into() }
    }

    fn cannot(why: String) -> Self {
        StepFailure { expected: None, subject: "cannot", what: why }
    }

    fn died(how: String) -> Self {
        StepFailure { expected: None, subject: "worker", what: how }
    }

    /// The lines to print.
    pub fn text(&self) -> String {
        let expected = self.expected.as_ref().map_or(String::new(), |text| format!("    expected  {text}\n"));
        format!("{expected}    {:<9} {}", self.subject, self.what)
    }
}

/// The result of a script: the line of the step that failed, and why.
pub type Outcome = Result<(), (usize, StepFailure)>;

/// A script that runs against a host.
pub struct Conversation {
    /// The resource, without its slash.
    name: String,
    timeout: Duration,
    /// By name.
    peers: BTreeMap<String, Peer>,
    /// The peer of the last step, which is processed before another peer does something.
    last: String,
    /// No step expects a message: all are discarded.
    discards: bool,
    /// How far the clock has advanced.
    passed: Duration,
    /// Bytes of the log that were searched.
    log_read: usize,
}

impl Conversation {
    /// With the handler of this name; `timeout` bounds the wait for each expected step.
    pub fn new(name: &str, timeout: Duration) -> Self {
        Conversation {
            name: name.to_owned(),
            timeout,
            peers: BTreeMap::new(),
            last: String::new(),
            discards: false,
            passed: Duration::ZERO,
            log_read: 0,
        }
    }

    /// Runs the steps and stops the host.
    pub fn run(mut self, host: &mut Host, steps: &[Step]) -> Outcome {
        self.discards =
            !steps.iter().any(|step| matches!(step.action, Action::Expect(_) | Action::Silence(_)));
        for step in steps {
            self.step(host, step).map_err(|failure| (step.line, explain(host, failure)))?;
        }
        self.peers.clear();
        let line = steps.last().map_or(0, |step| step.line);
        host.turn().and_then(|()| host.stop()).map_err(|how| (line, StepFailure::died(how)))
    }

    fn step(&mut self, host: &mut Host, Step { peer, action, .. }: &Step) -> Result<(), StepFailure> {
        if *peer != self.last {
            host.turn().map_err(StepFailure::died)?;
            self.last.clone_from(peer);
        }
        match action {
            Action::Wait(duration) => sleep(*duration),
            Action::Pass(duration) => self.pass(host, *duration)?,
            Action::At(time) => self.pass(host, time.saturating_sub(self.passed))?,
            Action::Move => {
                let fds: Vec<_> = self.peers.values().filter_map(Peer::fd).collect();
                host.move_connections(&fds).map_err(StepFailure::cannot)?;
            }
            Action::Publish(topic, text) => {
                host.publish(topic, text)
                    .map_err(|error| StepFailure::cannot(format!("publish: {error}")))?;
            }
            Action::Log(text) => self.log(host, text)?,
            Action::Open(opening) => self.open(host, peer, opening)?,
            Action::Silence(duration) => {
                self.pass(host, *duration)?;
                let got = match self.peer(host, peer)?.silent_for(GRACE) {
                    Ok(None) => return Ok(()),
                    Ok(Some(got)) => describe(&got),
                    Err(got) => got,
                };
                return Err(StepFailure::other(format!("nothing for {duration:?}"), got));
            }
            other => {
                let discards = self.discards;
                let peer = self.peer(host, peer)?;
                // Unread replies of the handler must not block the peer.
                peer.read_available(discards);
                act(peer, other)?;
            }
        }
        Ok(())
    }

    /// Connects a new peer of this name.
    fn open(&mut self, host: &Host, name: &str, opening: &Opening) -> Result<(), StepFailure> {
        let own = format!("/{}", self.name);
        let target = opening.target.as_deref().unwrap_or(&own);
        let peer = Peer::request(&host.socket(), target, &opening.headers, self.timeout);
        let mut peer = peer.map_err(StepFailure::cannot)?;
        if !opening.is_late {
            peer.settle().map_err(StepFailure::cannot)?;
        }
        self.peers.insert(name.to_owned(), peer);
        Ok(())
    }

    /// The peer of this name, which connects at its first step.
    fn peer(&mut self, host: &Host, name: &str) -> Result<&mut Peer, StepFailure> {
        if !self.peers.contains_key(name) {
            self.open(host, name, &Opening::default())?;
        }
        self.peers.get_mut(name).ok_or_else(|| StepFailure::cannot("no such peer".to_owned()))
    }

    fn pass(&mut self, host: &mut Host, time: Duration) -> Result<(), StepFailure> {
        self.passed += time;
        let (peers, discards) = (&mut self.peers, self.discards);
        let passed = host.pass(time, || peers.values_mut().for_each(|peer| peer.read_available(discards)));
        passed.map_err(StepFailure::died)
    }

    /// Waits for a line after the ones found before.
    fn log(&mut self, host: &Host, text: &str) -> Result<(), StepFailure> {
        let begun = Instant::now();
        loop {
            let log = fs::read(host.log_file()).unwrap_or_default();
            let fresh = String::from_utf8_lossy(log.get(self.log_read..).unwrap_or_default());
            let mut end = 0;
            let found = fresh.split_inclusive('\n').find(|line| {
                end += line.len();
                line.contains(text)
            });
            if found.is_some() {
                self.log_read += end;
                return Ok(());
            }
            self.peers.values_mut().for_each(|peer| peer.read_available(self.discards));
            if begun.elapsed() >= self.timeout {
                let expected = format!("a line of the log with {text:?}");
                return Err(StepFailure::other(expected, format!("none within {:?}", self.timeout)));
            }
            sleep(POLL);
        }
    }
}

/// Replaces the failure by the death of the worker, if it has died.
fn explain(host: &mut Host, failure: StepFailure) -> StepFailure {
    if failure.subject == "worker" {
        return failure;
    }
    // Its peers may notice before the process has ended.
    match host.turn().err().or_else(|| host.death()) {
        Some(how) => StepFailure { expected: failure.expected, ..StepFailure::died(how) },
        None => failure,
    }
}

/// Executes an action of one peer.
fn act(peer: &mut Peer, action: &Action) -> Result<(), StepFailure> {
    match action {
        Action::Send(content) => peer.send(content).map_err(StepFailure::cannot)?,
        Action::Vanish => peer.vanish(),
        Action::Stall(is_stalled) => peer.stall(*is_stalled),
        Action::Expect(expected) => match peer.next(expected) {
            Ok(got) if is_same(&got, expected) => {}
            Ok(got) => return Err(StepFailure::other(describe(expected), describe(&got))),
            Err(got) => return Err(StepFailure::other(describe(expected), got)),
        },
        Action::Status(status) => {
            peer.settle().map_err(StepFailure::cannot)?;
            let got = peer.status();
            if got != *status {
                return Err(StepFailure::other(format!("status {status}"), format!("status {got}")));
            }
        }
        Action::Header(name, value) => {
            peer.settle().map_err(StepFailure::cannot)?;
            let got: Vec<String> = peer.headers(name);
            let value = String::from_utf8_lossy(value.as_bytes());
            if !got.iter().any(|got| *got == value) {
                let got =
                    if got.is_empty() { format!("no {name}") } else { format!("{name}: {}", got.join(", ")) };
                return Err(StepFailure::other(format!("{name}: {value}"), got));
            }
        }
        // Not an action of a peer.
        _ => {}
    }
    Ok(())
}

/// Received messages are always whole.
fn is_same(got: &Content, expected: &Content) -> bool {
    got == expected || matches!((got, expected), (Content::Close(1005, _), Content::Close(1005, _)))
}

/// Describes any content in one line.
fn describe(content: &Content) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!(" {byte:02x}")).collect::<String>();
    let short = |text: String, size: usize| match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}... ({size} bytes)", text.get(..end).unwrap_or_default()),
        None => text,
    };
    match content {
        Content::Text(text) => format!("text {}", short(format!("{text:?}"), text.len())),
        Content::Binary(bytes) | Content::Fragment { bytes, .. } => {
            format!("binary{}", short(hex(bytes), bytes.len()))
        }
        Content::Ping(bytes) => format!("ping {:?}", String::from_utf8_lossy(bytes)),
        Content::Pong(bytes) => format!("pong {:?}", String::from_utf8_lossy(bytes)),
        Content::Close(1005, _) => "close without a code".to_owned(),
        Content::Close(code, reason) => format!("close {code} {reason:?}"),
        Content::End => "the end of the connection without a Close frame".to_owned(),
    }
}
