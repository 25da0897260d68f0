//! The generation that a reload puts in force. A child reads the configuration, finds the handlers, binds the new
//! sockets and opens the log; what it hands back becomes a [`Generation`] without waiting for anything.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};

use super::generation::{FileStamp, Generation, Sockets, stamps};
use super::{Reread, prepare};
use crate::clock;
use crate::config::{Config, Listen};
use crate::fleet::routes::Routes;
use crate::fleet::sockets::handover::{self, Received};
use crate::fleet::sockets::listener::Listener;
use crate::handlers::discover::{discover, refusal};
use crate::log::{self as sink, LogKind};
use crate::settings::outside::{self, Answers};

/// How often the child says that it goes on.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// What the child hands back, followed by the descriptors of `logs`, `listeners` and `metrics`.
#[derive(Serialize, Deserialize)]
struct Found {
    answers: Answers,
    routes: Routes,
    faults: Vec<String>,
    certificates: Vec<FileStamp>,
    logs: Vec<LogKind>,
    listeners: Vec<Bound>,
    metrics: Vec<Bound>,
}

/// A new socket: what it was bound for, and the device and inode of its file.
type Bound = (Option<Listen>, Option<(u64, u64)>);

/// In the child: finds all that a generation after `old` is made of, and hands it back.
pub(super) fn find(old: &Generation, reread: &Reread, outbox: BorrowedFd<'_>) -> io::Result<()> {
    let found = try_find(old, reread, outbox);
    let Ok((found, opened, sockets)) = found else { return handover::send(outbox, &found.map(drop), &[]) };
    let fds: Vec<_> =
        opened.iter().map(AsFd::as_fd).chain(sockets.iter().map(|socket| socket.as_fd())).collect();
    let sent = handover::send(outbox, &Ok::<_, String>(found), &fds);
    sent.inspect_err(|_| sockets.iter().for_each(|socket| socket.remove_file()))
}

fn try_find(
    old: &Generation,
    reread: &Reread,
    outbox: BorrowedFd<'_>,
) -> Result<(Found, Vec<OwnedFd>, Sockets), String> {
    // One that is not needed any more ends by SIGTERM, and with it what it has started.
    SigSet::from(Signal::SIGTERM).thread_unblock().map_err(|error| error.to_string())?;
    let (config, answers) = outside::record(reread);
    let config = config?;
    let fixed = config.fixed_changes(&old.config);
    if !fixed.is_empty() {
        let fixed = fixed.join(" and ");
        return Err(format!("{fixed} cannot change while the server runs: restart it, or set it back"));
    }
    let config = config.following(&old.config);
    let said = Cell::new(clock::now());
    let go_on = || {
        if clock::now().since(said.get()) < SIGN_OF_LIFE {
            return true;
        }
        said.set(clock::now());
        handover::go_on(outbox).is_ok()
    };
    let (routes, faults) = discover(&config, &old.routes, &go_on)?;
    if let Some(why) = refusal(&faults, &old.faults, config.strict_handlers) {
        return Err(why);
    }
    let (logs, opened) = sink::open(&config.log)?.into_iter().unzip();
    let certificates = stamps(&config);
    let [listeners, metrics] = old.sockets_for(&config, [&[], &[]]).map_err(|error| error.to_string())?;
    let sockets: Sockets =
        [&listeners, &metrics].into_iter().flat_map(|all| old.new_of(all)).cloned().collect();
    let bound = |all| old.new_of(all).map(|socket| (socket.asked().cloned(), socket.file())).collect();
    let (listeners, metrics) = (bound(&listeners), bound(&metrics));
    Ok((Found { answers, routes, faults, certificates, logs, listeners, metrics }, opened, sockets))
}

/// The generation after `old`, of what the child has handed back. The log goes on as its configuration says; that of
/// before, if there is another one now.
pub(super) fn of(
    old: &Generation,
    reread: &Reread,
    result: Received,
) -> Result<(Generation, Option<sink::Former>), String> {
    let (found, fds) = result.open::<Result<Found, String>>()?;
    let Found { answers, routes, faults, certificates, logs, listeners, metrics } = found?;
    let mut fds = fds.into_iter();
    let logs = logs.into_iter().zip(fds.by_ref()).collect();
    let mut sockets = |all: Vec<Bound>| -> Result<Sockets, String> {
        let socket = |((asked, file), fd)| Listener::bound_elsewhere(fd, asked, file).map(Arc::new);
        let sockets: io::Result<Sockets> = all.into_iter().zip(fds.by_ref()).map(socket).collect();
        sockets.map_err(|error| error.to_string())
    };
    let (listeners, metrics) = (sockets(listeners)?, sockets(metrics)?);
    let mut config: Config = outside::replay(answers, reread)?;
    prepare::raise_descriptors(&mut config);
    let config = config.following(&old.config);
    let sockets = old.sockets_for(&config, [&listeners, &metrics]).map_err(|error| error.to_string())?;
    let generation = old.following(config, (routes, faults), sockets, certificates)?;
    // New workers inherit it.
    let former_log = sink::start_with(&generation.config.log, logs)?;
    Ok((generation, former_log))
}
