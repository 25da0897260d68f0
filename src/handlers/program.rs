//! The program that loads a plugin to learn what it offers: this executable, called by another name. It begins with a
//! question on standard input, a pipe for the answer as standard output and one for the log as standard error, and
//! nothing else of the process that asks. Whatever the plugin's constructors do is done to this process only.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, SigSet, Signal, raise, signal};
use nix::unistd::{dup2_stdin, dup2_stdout, getppid};
use serde::{Deserialize, Serialize};

use super::message::{Answer, Offer, Request};
use crate::ffi::call::Handler;
use crate::ffi::plugin::{self, LoadOptions, Plugin};
use crate::ffi::raw;
use crate::ffi::stand_in::set_stand_in;
use crate::service::open_null;

/// What this program is called when it is to probe, as ps(1) shows it: arguments 0 and 1. The second one decides.
pub const NAME: [&str; 2] = ["wshd:", "probe"];

/// What stands on standard input.
#[derive(Serialize, Deserialize)]
pub(super) struct Question {
    pub nonce: String,
    /// The process that asks.
    pub asker: i32,
    pub request: Request,
}

/// Answers the question on standard input. To be called before anything else is opened, with descriptors 0 to 2 only.
pub fn run() -> ExitCode {
    let stopped = match answer() {
        Ok(()) => raise(Signal::SIGKILL).map_err(io::Error::from), // no destructors, no exit handlers of the plugin
        Err(error) => Err(error),
    };
    if let Err(error) = stopped {
        say(&format!("{}: {error}", NAME.join(" ")));
    }
    ExitCode::FAILURE
}

fn answer() -> io::Result<()> {
    let Question { nonce, asker, request } = serde_json::from_reader(io::stdin().lock())?;
    // Never closed: the plugin may close it, and then its number may be anybody's.
    let pipe = Box::leak(Box::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)));
    let mut send = |answer: Answer| pipe.write_all(&answer.to_line(&nonce));
    let null = open_null()?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    drop(null);
    for crash in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: the default action installs no code; it replaces the handler of Rust's runtime, which would
        // swallow a signal that the plugin raised itself.
        unsafe { signal(crash, SigHandler::SigDfl)? };
    }
    SigSet::empty().thread_set_mask()?; // who asks may block some, and exec keeps that
    if let Some(Err(error)) = request.confinement.as_ref().map(|confinement| confinement.enter()) {
        return send(Answer::Fault(format!("cannot be probed: {error}")));
    }
    // A probe is of no use to anybody else. A change of the user would have taken it back.
    let _ = set_pdeathsig(Signal::SIGKILL);
    if getppid().as_raw() != asker {
        return Ok(());
    }
    set_stand_in();
    let log = Box::new(write_log);
    let given = LoadOptions { number: 0, worker: 0, settings: request.settings, raw: false, log };
    match plugin::load(Path::new(&request.file), given) {
        Err(error) => send(Answer::Fault(error.to_string())),
        Ok(plugin) => {
            let Plugin { name, version, table, style, protocols, .. } = plugin;
            let (flags, abi, size) = (table.flags, table.abi, table.size);
            let callbacks = callbacks(table).map(str::to_owned).collect();
            send(Answer::Offer(Offer { name, version, style, flags, abi, protocols, size, callbacks }))?;
            match request.start {
                true => send(Answer::Started(Handler::new(table).worker_start())),
                false => Ok(()),
            }
        }
    }
}

/// The names of the callbacks that are set.
fn callbacks(table: &raw::ws_handler) -> impl Iterator<Item = &'static str> + use<> {
    let all = [
        ("on_worker_start", table.on_worker_start.is_some()),
        ("on_worker_stop", table.on_worker_stop.is_some()),
        ("do_extra_handshake", table.do_extra_handshake.is_some()),
        ("on_open", table.on_open.is_some()),
        ("transfer_data", table.transfer_data.is_some()),
        ("on_message", table.on_message.is_some()),
        ("passive_closing_handshake", table.passive_closing_handshake.is_some()),
        ("on_close", table.on_close.is_some()),
        ("on_pong", table.on_pong.is_some()),
        ("on_writable", table.on_writable.is_some()),
        ("on_drain", table.on_drain.is_some()),
    ];
    all.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name)
}

/// What the handler logs goes to the log of who asks, as all that it writes to standard error.
fn write_log(handler: &str, level: u32, _: raw::ws_conn, text: &str) {
    if level >= raw::WS_LOG_INFO {
        say(&format!("{handler}: {text}"));
    }
}

fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}"); // who asks may have gone, or the plugin may have closed it
}
