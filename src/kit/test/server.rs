//! The server under a test: one worker, on a Unix socket that nobody else can reach.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ctl::answer;
use crate::ctl::request::Request;
use crate::kit::control::ask;
use crate::kit::run::install;

/// How long a server may take to start, to reload and to stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most of its log that is shown, from the end; bytes.
const MAX_LOG: usize = 64 << 10;

/// It is killed when dropped.
pub struct Server {
    child: Child,
    dir: PathBuf,
    socket: PathBuf,
    object: PathBuf,
    /// Its copy in the handler directory.
    served: PathBuf,
}

impl Server {
    /// Starts it and waits until it serves the handler.
    pub fn start(dir: &Path, object: &Path, name: &str, options: &[String]) -> Result<Self, String> {
        let cannot = |error: std::io::Error| format!("the server: {error}");
        let handlers = dir.join("handlers");
        let served = handlers.join(format!("{name}_wsh.so"));
        install(object, &served).map_err(cannot)?;
        let log = File::create(dir.join("log")).map_err(cannot)?;
        let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
        command.args(["--workers", "1", "--strict-handlers", "-o", "quarantine_deaths=0", "--server-host"]);
        let socket = dir.join("socket");
        command.arg(format!("unix:{}", socket.display()));
        command.arg("--websock-handlers").arg(handlers).arg("--control-socket").arg(dir.join("control"));
        command.args(options.iter().flat_map(|option| ["-o", option]));
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().map_err(cannot)?;
        let mut server = Server { child, dir: dir.to_owned(), socket, object: object.to_owned(), served };
        match server.first_line().is_some_and(|line| line.starts_with("wshd: ready on ")) {
            true => Ok(server),
            false => {
                let log = server.stop();
                Err(format!("the server does not start:\n{log}"))
            }
        }
    }

    fn first_line(&mut self) -> Option<String> {
        let stdout = self.child.stdout.take()?;
        let (sender, line) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            let _ = sender.send(lines.next()); // it may have been too late
            lines.for_each(drop);
        });
        line.recv_timeout(PATIENCE).ok()??.ok()
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Replaces the worker, to which all connections move that can.
    pub fn move_connections(&self) -> Result<(), String> {
        // The same again: a file that is not new would not be loaded.
        install(&self.object, &self.served).map_err(|error| format!("move: {error}"))?;
        let answer = ask(&self.dir.join("control"), &Request::Reload {}, PATIENCE);
        match answer.map_err(|error| format!("move: {error}")).map(|line| answer::read(&line))? {
            Some(Ok(_)) => Ok(()),
            Some(Err(why)) => Err(format!("move: {why}")),
            None => Err("move: the server has ended".to_owned()),
        }
    }

    /// Stops it; what it has logged.
    pub fn stop(mut self) -> String {
        self.end(Signal::SIGQUIT);
        let log = fs::read(self.dir.join("log")).unwrap_or_default();
        let end = log.get(log.len().saturating_sub(MAX_LOG)..).unwrap_or_default();
        String::from_utf8_lossy(end).into_owned()
    }

    fn end(&mut self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal); // it may have ended
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.end(Signal::SIGTERM);
        }
    }
}
