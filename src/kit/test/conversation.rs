//! Plays a script: does what each step says, and compares.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::script::{Action, Opening, Step};
use crate::kit::host::Host;
use crate::kit::peer::{Content, Peer};

/// Between two looks at the log.
const LOOK: Duration = Duration::from_millis(5);
/// What is to come within no time of the host's clock may take this long.
const GRACE: Duration = Duration::from_millis(50);
/// Characters of a message that are shown.
const SHOWN: usize = 200;

/// How a step went wrong.
#[derive(Debug)]
pub enum Failure {
    /// Something else came.
    Other {
        /// What the script says.
        expected: String,
        /// What came.
        got: String,
    },
    /// It could not be done.
    Cannot(String),
    /// The worker has died, and what was expected, if something was.
    Died(String, Option<String>),
}

impl Failure {
    /// For people: a line for each.
    pub fn text(&self) -> String {
        match self {
            Failure::Other { expected, got } => format!("    expected  {expected}\n    got       {got}"),
            Failure::Cannot(why) => format!("    cannot    {why}"),
            Failure::Died(how, None) => format!("    worker    {how}"),
            Failure::Died(how, Some(expected)) => {
                format!("    expected  {expected}\n    worker    {how}")
            }
        }
    }
}

/// A script with a host.
pub struct Conversation {
    /// The resource, without its slash.
    name: String,
    timeout: Duration,
    /// By their names.
    peers: BTreeMap<String, Peer>,
    /// The one of the last step: what it did is over before another one does something.
    last: String,
    /// Nothing is expected of anybody: what comes is thrown away.
    is_deaf: bool,
    /// How far the clock has moved.
    passed: Duration,
    /// Bytes of the log that were looked at.
    log_read: usize,
}

impl Conversation {
    /// With the handler of this name; waits so long for what is expected.
    pub fn new(name: &str, timeout: Duration) -> Self {
        Conversation {
            name: name.to_owned(),
            timeout,
            peers: BTreeMap::new(),
            last: String::new(),
            is_deaf: false,
            passed: Duration::ZERO,
            log_read: 0,
        }
    }

    /// Goes through the steps, and stops the host; the line of the step that failed.
    pub fn hold(mut self, host: &mut Host, steps: &[Step]) -> Result<(), (usize, Failure)> {
        self.is_deaf =
            !steps.iter().any(|step| matches!(step.action, Action::Expect(_) | Action::Silence(_)));
        for step in steps {
            self.step(host, step).map_err(|failure| (step.line, explain(host, failure)))?;
        }
        self.peers.clear();
        let line = steps.last().map_or(0, |step| step.line);
        host.turn().and_then(|()| host.stop()).map_err(|how| (line, Failure::Died(how, None)))
    }

    fn step(&mut self, host: &mut Host, Step { peer, action, .. }: &Step) -> Result<(), Failure> {
        if *peer != self.last {
            host.turn().map_err(|how| Failure::Died(how, None))?;
            self.last.clone_from(peer);
        }
        match action {
            Action::Wait(duration) => sleep(*duration),
            Action::Pass(duration) => self.pass(host, *duration)?,
            Action::At(time) => self.pass(host, time.saturating_sub(self.passed))?,
            Action::Move => {
                let fds: Vec<_> = self.peers.values().filter_map(Peer::fd).collect();
                host.move_connections(&fds).map_err(Failure::Cannot)?;
            }
            Action::Publish(topic, text) => {
                host.publish(topic, text).map_err(|error| Failure::Cannot(format!("publish: {error}")))?;
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
                return Err(Failure::Other { expected: format!("nothing for {duration:?}"), got });
            }
            other => {
                let is_deaf = self.is_deaf;
                let peer = self.peer(host, peer)?;
                // The handler's replies do not hold it up.
                peer.look(is_deaf);
                act(peer, other)?;
            }
        }
        Ok(())
    }

    /// A peer of this name connects anew.
    fn open(&mut self, host: &Host, name: &str, opening: &Opening) -> Result<(), Failure> {
        let own = format!("/{}", self.name);
        let target = opening.target.as_deref().unwrap_or(&own);
        let peer = Peer::ask(&host.socket(), target, &opening.headers, self.timeout);
        let mut peer = peer.map_err(Failure::Cannot)?;
        if !opening.is_late {
            peer.settle().map_err(Failure::Cannot)?;
        }
        self.peers.insert(name.to_owned(), peer);
        Ok(())
    }

    /// The peer of this name, which connects when it first does something.
    fn peer(&mut self, host: &Host, name: &str) -> Result<&mut Peer, Failure> {
        if !self.peers.contains_key(name) {
            self.open(host, name, &Opening::default())?;
        }
        self.peers.get_mut(name).ok_or_else(|| Failure::Cannot("no such peer".to_owned()))
    }

    fn pass(&mut self, host: &mut Host, time: Duration) -> Result<(), Failure> {
        self.passed += time;
        let (peers, is_deaf) = (&mut self.peers, self.is_deaf);
        let passed = host.pass(time, || peers.values_mut().for_each(|peer| peer.look(is_deaf)));
        passed.map_err(|how| Failure::Died(how, None))
    }

    /// Waits for a line after those that were found before.
    fn log(&mut self, host: &Host, text: &str) -> Result<(), Failure> {
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
            self.peers.values_mut().for_each(|peer| peer.look(self.is_deaf));
            if begun.elapsed() >= self.timeout {
                let expected = format!("a line of the log with {text:?}");
                return Err(Failure::Other { expected, got: format!("none within {:?}", self.timeout) });
            }
            sleep(LOOK);
        }
    }
}

/// Where the worker has died that is why.
fn explain(host: &mut Host, failure: Failure) -> Failure {
    let expected = match &failure {
        Failure::Other { expected, .. } => Some(expected.clone()),
        Failure::Cannot(_) => None,
        Failure::Died(..) => return failure,
    };
    // Its peers may know before it has ended.
    match host.turn().err().or_else(|| host.death()) {
        Some(how) => Failure::Died(how, expected),
        None => failure,
    }
}

/// What only one peer does.
fn act(peer: &mut Peer, action: &Action) -> Result<(), Failure> {
    match action {
        Action::Send(content) => peer.send(content).map_err(Failure::Cannot),
        Action::Vanish => {
            peer.vanish();
            Ok(())
        }
        Action::Stall(is_stalled) => {
            peer.stall(*is_stalled);
            Ok(())
        }
        Action::Expect(expected) => match peer.next(expected) {
            Ok(got) if is_same(&got, expected) => Ok(()),
            Ok(got) => Err(Failure::Other { expected: describe(expected), got: describe(&got) }),
            Err(got) => Err(Failure::Other { expected: describe(expected), got }),
        },
        Action::Status(status) => {
            peer.settle().map_err(Failure::Cannot)?;
            let got = peer.status();
            let is_same = got == *status;
            let (expected, got) = (format!("status {status}"), format!("status {got}"));
            if is_same { Ok(()) } else { Err(Failure::Other { expected, got }) }
        }
        Action::Header(name, value) => {
            peer.settle().map_err(Failure::Cannot)?;
            let got: Vec<String> = peer.headers(name);
            let value = String::from_utf8_lossy(value.as_bytes());
            match got.iter().any(|got| *got == value) {
                true => Ok(()),
                false if got.is_empty() => {
                    Err(Failure::Other { expected: format!("{name}: {value}"), got: format!("no {name}") })
                }
                false => {
                    let got = format!("{name}: {}", got.join(", "));
                    Err(Failure::Other { expected: format!("{name}: {value}"), got })
                }
            }
        }
        // Of no peer.
        _ => Ok(()),
    }
}

/// What comes is never a fragment: messages come whole.
fn is_same(got: &Content, expected: &Content) -> bool {
    got == expected || matches!((got, expected), (Content::Close(1005, _), Content::Close(1005, _)))
}

/// One line, whatever is in it.
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
