//! `wshd test FILE SCRIPT`: has a conversation with a handler and compares what comes with what the script says. The handler
//! runs in a server of its own with one worker, which listens on a Unix socket in a temporary directory: what is tested is the
//! code that serves.

mod peer;
mod script;
mod server;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use clap::Args;

use self::peer::Peer;
use self::script::{Action, Content, MAX_SCRIPT, Step};
use self::server::Server;
use super::run::build::{Source, Unbuilt};
use super::value::time;
use crate::exit::Exit;

/// The command line.
#[derive(Debug, Args)]
pub struct Test {
    /// NAME_wsh.so, a source NAME_wsh.c or NAME_wsh.cc, or a directory with a Cargo.toml
    file: PathBuf,
    /// The conversations: see wshd-test(1)
    #[arg(required = true, value_name = "SCRIPT")]
    scripts: Vec<PathBuf>,
    /// How long to wait for what is expected
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    timeout: Duration,
    /// Set a key of wshd.conf(5) of the server; may be repeated
    #[arg(short, value_name = "NAME=VALUE", id = "setting")]
    option: Vec<String>,
    /// Show the log of the server
    #[arg(short, long)]
    verbose: bool,
}

/// How a step went wrong.
#[derive(Debug)]
enum Failure {
    /// Something else came.
    Other { expected: String, got: String },
    /// It could not be done.
    Cannot(String),
}

impl Test {
    /// Does it.
    pub fn run(self) -> ExitCode {
        match self.all() {
            Ok(0) => Exit::Ok.into(),
            Ok(_) => Exit::Check.into(),
            Err(why) => {
                eprintln!("wshd: {why}");
                Exit::Config.into()
            }
        }
    }

    /// How many scripts have failed.
    fn all(&self) -> Result<usize, String> {
        let directory = tempfile::Builder::new().prefix("wshd-test.").tempdir();
        let directory = directory.map_err(|error| format!("temporary directory: {error}"))?;
        let source = Source::new(&self.file, directory.path())?;
        let scripts = self.scripts.iter().map(|path| Ok((path, read(path)?)));
        let scripts = scripts.collect::<Result<Vec<_>, String>>()?;
        let object = source.build().map_err(|unbuilt| match unbuilt {
            Unbuilt::Compiler => format!("{}: not compiled", self.file.display()),
            Unbuilt::Other(why) => why,
        })?;
        let mut failed = 0;
        for (path, steps) in scripts {
            // A new server for each: no script can depend on another.
            let server = Server::start(directory.path(), &object, source.name(), &self.option)?;
            let outcome = converse(&server, source.name(), &steps, self.timeout);
            let log = server.stop();
            let shown = path.display();
            match &outcome {
                Ok(()) => println!("{shown}: passed, {} steps", steps.len()),
                Err((line, failure)) => {
                    failed += 1;
                    println!("{shown}:{line}: failed\n{}", failure.text());
                }
            }
            if self.verbose || outcome.is_err() {
                log.lines().for_each(|line| println!("    log       {line}"));
            }
        }
        Ok(failed)
    }
}

impl Failure {
    fn text(&self) -> String {
        match self {
            Failure::Other { expected, got } => format!("    expected  {expected}\n    got       {got}"),
            Failure::Cannot(why) => format!("    cannot    {why}"),
        }
    }
}

fn read(path: &Path) -> Result<Vec<Step>, String> {
    let mut text = String::new();
    let shown = path.display();
    let file = File::open(path).map_err(|error| format!("{shown}: {error}"))?;
    file.take(MAX_SCRIPT).read_to_string(&mut text).map_err(|error| format!("{shown}: {error}"))?;
    let steps = script::parse(&text).map_err(|error| format!("{shown}: {error}"))?;
    match steps.is_empty() {
        true => {
            Err(format!("{shown}: nothing is said in it: expected lines such as \"> hello\" and \"< hello\""))
        }
        false => Ok(steps),
    }
}

/// Goes through the steps; the line of the one that failed.
fn converse(server: &Server, name: &str, steps: &[Step], patience: Duration) -> Result<(), (usize, Failure)> {
    let mut peers: BTreeMap<&str, Peer> = BTreeMap::new();
    for Step { line, peer, action } in steps {
        let fails = |failure| (*line, failure);
        match action {
            Action::Wait(duration) => sleep(*duration),
            Action::Move => server.move_connections().map_err(|why| fails(Failure::Cannot(why)))?,
            Action::Open(target, headers) => {
                let own = format!("/{name}");
                let target = target.as_deref().unwrap_or(&own);
                let opened = Peer::open(server.socket(), target, headers, patience);
                peers.insert(peer, opened.map_err(|why| fails(Failure::Cannot(why)))?);
            }
            other => {
                if !peers.contains_key(peer.as_str()) {
                    // Who has not been opened is when it first does something.
                    let opened = Peer::open(server.socket(), &format!("/{name}"), &[], patience);
                    peers.insert(peer, opened.map_err(|why| fails(Failure::Cannot(why)))?);
                }
                if let Some(peer) = peers.get_mut(peer.as_str()) {
                    act(peer, other).map_err(fails)?;
                }
            }
        }
    }
    Ok(())
}

fn act(peer: &mut Peer, action: &Action) -> Result<(), Failure> {
    match action {
        Action::Send(content) => peer.send(content).map_err(Failure::Cannot),
        Action::Vanish => {
            peer.vanish();
            Ok(())
        }
        Action::Expect(expected) => compare(describe(expected), peer.next(expected)),
        Action::Silence(duration) => match peer.silent_for(*duration) {
            None => Ok(()),
            Some(got) => {
                Err(Failure::Other { expected: format!("nothing for {duration:?}"), got: describe(&got) })
            }
        },
        Action::Status(status) => {
            let got = peer.status();
            let is_same = got == *status;
            let (expected, got) = (format!("status {status}"), format!("status {got}"));
            if is_same { Ok(()) } else { Err(Failure::Other { expected, got }) }
        }
        Action::Header(name, value) => {
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
        Action::Open(..) | Action::Wait(_) | Action::Move => Ok(()),
    }
}

/// The same description is the same content.
fn compare(expected: String, got: Result<Content, String>) -> Result<(), Failure> {
    match got.map(|got| describe(&got)) {
        Ok(got) if got == expected => Ok(()),
        Ok(got) | Err(got) => Err(Failure::Other { expected, got }),
    }
}

/// One line, whatever is in it.
fn describe(content: &Content) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!(" {byte:02x}")).collect::<String>();
    match content {
        Content::Text(text) | Content::Fragment(text, ..) => format!("text {text:?}"),
        Content::Binary(bytes) => format!("binary{}", hex(bytes)),
        Content::Ping(bytes) => format!("ping {:?}", String::from_utf8_lossy(bytes)),
        Content::Pong(bytes) => format!("pong {:?}", String::from_utf8_lossy(bytes)),
        Content::Close(1005, _) => "close without a code".to_owned(),
        Content::Close(code, reason) => format!("close {code} {reason:?}"),
        Content::End => "the end of the connection without a Close frame".to_owned(),
    }
}
