//! The generation that a reload puts in force. A child reads the configuration, finds the handlers, binds the new sockets and
//! opens the log; what it hands back becomes a [`Generation`] without waiting for anything.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::errand::{Outbox, value_of};
use super::generation::{Generation, Sockets, Stamp, stamps};
use super::role::Parts;
use super::{Reread, prepare};
use crate::clock;
use crate::config::{Config, Listen};
use crate::fleet::listener::Listener;
use crate::fleet::routes::Routes;
use crate::handlers::discover::{discover, refusal};
use crate::log as sink;
use crate::service::start_signals::StartSignals;
use crate::settings::outside::{self, Answers};

/// How often the child says that it goes on.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// Names of sockets that are handed back.
const LISTEN: &str = "listen";
const METRICS: &str = "metrics";

/// What the child hands back beside new sockets and what the log goes to.
#[derive(Serialize, Deserialize)]
struct Found {
    answers: Answers,
    routes: Routes,
    faults: Vec<String>,
    certificates: Vec<Stamp>,
    /// In the order in which they are handed back.
    sockets: Vec<Bound>,
}

/// A new socket.
#[derive(Serialize, Deserialize)]
struct Bound {
    asked: Vec<u8>,
    /// Device and inode.
    file: Option<(u64, u64)>,
}

/// In the child: finds all that a generation after `old` is made of, and hands it back.
pub(super) fn find(old: &Generation, reread: &Reread, outbox: &Outbox) -> io::Result<()> {
    match try_find(old, reread, outbox) {
        Ok((found, sockets)) => {
            let handed = outbox.value(&Ok::<_, String>(found));
            handed.inspect_err(|_| sockets.iter().for_each(|socket| socket.remove_file()))
        }
        Err(why) => outbox.value(&Err::<Found, _>(why)),
    }
}

fn try_find(old: &Generation, reread: &Reread, outbox: &Outbox) -> Result<(Found, Sockets), String> {
    let signals = StartSignals::watch_unblocked().map_err(|error| error.to_string())?;
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
        if clock::now().since(said.get()) >= SIGN_OF_LIFE {
            outbox.go_on();
            said.set(clock::now());
        }
        signals.received().is_none()
    };
    let (routes, faults) = discover(&config, &old.routes, &go_on).map_err(|error| error.to_string())?;
    if let Some(why) = refusal(&faults, &old.faults, config.strict_handlers) {
        return Err(why);
    }
    let handed = |error: io::Error| error.to_string();
    for (kind, fd) in sink::open(&config.log)? {
        outbox.part(kind.name(), fd.as_fd()).map_err(handed)?;
    }
    let certificates = stamps(&config);
    let [listeners, metrics] = old.sockets_for(&config, [&[], &[]]).map_err(|error| error.to_string())?;
    let (mut new, mut sockets) = (Sockets::new(), Vec::new());
    for (name, all) in [(LISTEN, listeners), (METRICS, metrics)] {
        for socket in old.new_of(&all) {
            outbox.part(name, socket.as_fd()).map_err(handed)?;
            let asked = socket.asked().map(Listen::to_bytes).unwrap_or_default();
            sockets.push(Bound { asked, file: socket.file() });
            new.push(Arc::clone(socket));
        }
    }
    Ok((Found { answers, routes, faults, certificates, sockets }, new))
}

/// What the child has handed back, taken up.
pub(super) struct Next {
    pub generation: Generation,
    /// The log of before, if there is another one now.
    pub former_log: Option<sink::Former>,
}

impl Next {
    /// The generation after `old`. The log goes on as its configuration says.
    pub fn of(old: &Generation, reread: &Reread, mut parts: Parts) -> Result<Self, String> {
        let found: Result<Found, String> = value_of(&mut parts)?;
        let Found { answers, routes, faults, certificates, sockets } = found?;
        let (mut listeners, mut metrics, mut logs) = (Sockets::new(), Sockets::new(), Vec::new());
        let mut sockets = sockets.into_iter();
        for (name, fd) in parts {
            if let Some(kind) = sink::LogKind::from_name(&name) {
                logs.push((kind, fd));
                continue;
            }
            let known = sockets.next().and_then(|new| Some((Listen::from_bytes(&new.asked)?, new.file)));
            let (asked, file) = known.ok_or("a socket came that was not asked for")?;
            let socket = Listener::bound_elsewhere(fd, asked, file).map_err(|error| error.to_string())?;
            let all = if name == METRICS { &mut metrics } else { &mut listeners };
            all.push(Arc::new(socket));
        }
        let mut config: Config = outside::replay(answers, reread)?;
        prepare::raise_descriptors(&mut config);
        let config = config.following(&old.config);
        let sockets = old.sockets_for(&config, [&listeners, &metrics]).map_err(|error| error.to_string())?;
        let generation = old.following(config, (routes, faults), sockets, certificates)?;
        // New workers inherit it.
        let former_log = sink::start_with(&generation.config.log, logs)?;
        Ok(Self { generation, former_log })
    }
}
