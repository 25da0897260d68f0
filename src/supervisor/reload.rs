//! Reload: configuration and handlers are read anew and checked, and workers of another generation replace those that are
//! to change (`rolling`). A mistake changes nothing. Also one worker more or less.

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Seek};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::changes::Changes;
use super::generation::Generation;
use super::policy::rolling_restart::{Event, Failure, Step};
use super::role::Errand;
use super::rolling::Reload;
use super::{Supervisor, prepare, spawn};
use crate::clock;
use crate::fleet::control::{Channel, Start};
use crate::fleet::listener;
use crate::fleet::routes::Routes;
use crate::fleet::scoreboard::Place;
use crate::handlers::discover::discover;
use crate::log as sink;
use crate::service::start_signals::StartSignals;

/// How often a child that finds handlers says that it goes on.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// The handlers and what was left out; an error if nothing can be served as configured.
type Found = Result<(Routes, Vec<String>), String>;

impl Supervisor {
    /// Begins the reload that is wanted, as soon as the server is ready and nothing else is being
    /// replaced; whether it did.
    pub(super) fn begin_reload(&mut self) -> bool {
        let is_idle = self.rolling.is_idle();
        let is_ready = self.host.daemon.is_ready() || self.slots.is_stopping();
        if !self.rolling.is_reload_wanted || !is_idle || !is_ready {
            return false;
        }
        self.rolling.is_reload_wanted = false;
        self.host.control.reload_begins();
        let not_now = if self.slots.is_stopping() {
            Some("the server is told to stop")
        } else if self.drain.is_on() {
            Some("the server is draining")
        } else if self.upgrade.is_under_way() {
            Some("an upgrade is under way")
        } else {
            None
        };
        if let Some(why) = not_now {
            self.end_reload(Err(failed(why)));
            return true;
        }
        self.host.notify.reloading();
        let reread = Rc::clone(&self.host.reread);
        let rehearse = |_: &Channel| {
            log::set_max_level(log::LevelFilter::Off); // what is wrong is told when it is read in earnest
            reread().into_iter().for_each(|config| listener::look_up(&config.listen));
            true
        };
        match spawn::errand(self, Errand::ReadConfig, rehearse) {
            Ok(child) => self.rolling.reload = Some(Reload::Reading(child)),
            Err(error) => self.end_reload(Err(failed(&format!("cannot fork: {error}")))),
        }
        true
    }

    /// The child that reads the configuration has ended: reading it waits for nobody now, unless the child had to.
    pub(super) fn config_was_read(&mut self, pid: Pid, status: WaitStatus) {
        if !matches!(self.rolling.reload, Some(Reload::Reading(child)) if child == pid) {
            return;
        }
        let searching = match status {
            WaitStatus::Exited(..) => self.search(),
            _ => Err(
                "the configuration cannot be read in time: a name server or a file system does not answer"
                    .to_owned(),
            ),
        };
        match searching {
            Ok(searching) => self.rolling.reload = Some(searching),
            Err(why) => self.cancel_loading(&why),
        }
    }

    /// Reads the configuration, and has a child find its handlers.
    fn search(&mut self) -> Result<Reload, String> {
        let mut config = (self.host.reread)()?;
        prepare::raise_descriptors(&mut config);
        let fixed = config.fixed_changes(&self.generation.config);
        if !fixed.is_empty() {
            return Err(format!(
                "{} cannot change while the server runs: restart it, or set it back",
                fixed.join(" and ")
            ));
        }
        let config = config.following(&self.generation.config);
        let file =
            memfd_create(c"wshd handlers", MFdFlags::MFD_CLOEXEC).map_err(|error| error.to_string())?;
        let (found, known) = (File::from(file), Arc::clone(&self.generation.routes));
        let find = |supervisor: &Channel| {
            let signals = StartSignals::watch_unblocked();
            let said = Cell::new(clock::now());
            let go_on = || {
                if clock::now().since(said.get()) >= SIGN_OF_LIFE {
                    let _ = supervisor.send_start(&Start::Ready); // if it is gone, this process goes, too
                    said.set(clock::now());
                }
                signals.as_ref().is_ok_and(|signals| signals.received().is_none())
            };
            let handlers: Found = discover(&config, &known, &go_on).map_err(|error| error.to_string());
            serde_json::to_writer(&found, &handlers).is_ok()
        };
        let child = spawn::errand(self, Errand::FindHandlers, find);
        let child = child.map_err(|error| format!("cannot fork: {error}"))?;
        Ok(Reload::Searching { child, config: Box::new(config), found })
    }

    /// The child that finds the handlers has ended.
    pub(super) fn handlers_were_found(&mut self, pid: Pid, status: WaitStatus) {
        let is_it = |reload: &mut Reload| matches!(reload, Reload::Searching { child, .. } if *child == pid);
        let Some(Reload::Searching { config, found, .. }) = self.rolling.reload.take_if(is_it) else {
            return;
        };
        let generation = found_in(found, status).and_then(|(routes, faults)| {
            let generation = self.generation.following(*config, routes, faults)?;
            // New workers inherit it.
            sink::start(&generation.config.log)?;
            Ok(generation)
        });
        match generation {
            Ok(generation) => {
                self.auxiliaries.try_out(&self.generation, &generation);
                self.rolling.reload = Some(Reload::Starting(generation));
            }
            Err(why) => self.end_reload(Err(failed(&why))),
        }
    }

    /// When all auxiliary processes of a reload are ready workers are replaced.
    pub(super) fn go_on_with_reload(&mut self) {
        // Meanwhile a worker may be being replaced for another reason.
        if matches!(self.rolling.reload, Some(Reload::Starting(_))) && self.rolling.policy.is_idle() {
            match self.auxiliaries.trial() {
                Some(Ok(())) => self.begin_trial(),
                Some(Err(why)) => self.cancel_loading(&why),
                None => {}
            }
        }
    }

    fn begin_trial(&mut self) {
        let Some(Reload::Starting(generation)) = self.rolling.reload.take() else { return };
        self.shared.counters.enter_all(&generation.routes);
        let mut changed = self.generation.changed_pools(&generation);
        // What did not start is tried out again, changed or not.
        let is_reread = generation.is_reread(&self.generation);
        changed.extend(self.postmortem.quarantine.not_starting().filter(|_| is_reread).filter_map(
            |handler| {
                let route =
                    generation.routes.handlers().get(usize::from(handler)).filter(|route| !route.retired)?;
                Some(generation.config.pool_of(&route.resource))
            },
        ));
        // Also those that are to be restarted, however often they have failed.
        let taken: Vec<(Place, usize)> = self.slots.taken().map(|slot| (self.place_of(slot), slot)).collect();
        let steps = generation.steps(&changed, &taken);
        if steps.is_empty() {
            log::info!("reload: no worker has to be replaced");
        }
        self.rolling.reload = Some(Reload::Replacing(generation));
        self.rolling.policy.on(Event::Reload(steps));
    }

    /// A reload is not wanted any more for which no worker has been started.
    pub(super) fn cancel_loading(&mut self, why: &str) {
        let is_loading = |reload: &mut Reload| !matches!(reload, Reload::Replacing(_));
        match self.rolling.reload.take_if(is_loading) {
            None => return,
            Some(Reload::Reading(child) | Reload::Searching { child, .. }) => {
                self.processes.terminate(child, clock::now());
            }
            Some(Reload::Starting(_) | Reload::Replacing(_)) => {
                self.auxiliaries.abort_trial(&mut self.processes);
            }
        }
        self.end_reload(Err(failed(why)));
    }

    /// The new generation has shown that it works: all workers that are started from now on are of it.
    pub(super) fn commit(&mut self, new: Generation) {
        let is_gone = |old: &&Arc<_>| !new.sockets().any(|new| Arc::ptr_eq(old, new));
        let are_shared = self.shared.scoreboard.are_sockets_shared();
        for listener in self.generation.sockets().filter(is_gone) {
            if !are_shared {
                listener.shut_down();
            }
            listener.remove_file();
        }
        let changes = Changes::between(&self.generation.routes, &new.routes);
        if !changes.is_empty() {
            log::info!("reload: resources {changes}");
        }
        self.postmortem.quarantine.set_rules(new.config.quarantine);
        if new.is_reread(&self.generation) {
            self.lift_quarantines_of_changed(&new);
        }
        let deadline = self.drain_deadline(None);
        self.auxiliaries.commit(&mut self.processes, deadline);
        self.generation = new;
        self.maintenance.certificates.forget();
    }

    /// A handler whose file has changed begins anew, as does one that did not start before.
    fn lift_quarantines_of_changed(&mut self, new: &Generation) {
        let old = Arc::clone(&self.generation.routes);
        for (number, route) in new.routes.in_service() {
            let Some(before) = old.handlers().get(usize::from(number)) else { continue };
            let is_changed = (&before.file, before.stamp) != (&route.file, route.stamp);
            if is_changed || self.postmortem.quarantine.does_not_start(number) {
                self.forgive(number);
            }
        }
    }

    /// The standbys of a reload serve, or nothing of it does, or the server was interrupted.
    pub(super) fn reload_done(&mut self, result: Result<(), Failure>) {
        self.rolling.reload = None;
        self.auxiliaries.abort_trial(&mut self.processes); // none after a commit
        let result = match result {
            Ok(()) => Ok(()),
            Err(Failure { why, committed: false }) => Err(failed(&why)),
            Err(Failure { why, committed: true }) => Err(format!(
                "incomplete: the new configuration is in force, but not all workers were replaced: {why}"
            )),
        };
        self.end_reload(result);
    }

    fn end_reload(&mut self, result: Result<(), String>) {
        let resources = self.generation.routes.resources().len();
        let result = result.map(|()| format!("done, {resources} resources"));
        match &result {
            Ok(done) => log::info!("reload: {done}"),
            Err(why) => {
                if let Err(error) = sink::start(&self.generation.config.log) {
                    log::error!("the log cannot go on where it was: {error}");
                }
                log::error!("reload: {why}");
            }
        }
        self.shared.scoreboard.bulletin().set_reload(result.is_ok());
        self.host.control.reload_ends(&result);
        self.host.notify.reloaded(&self.summary());
    }

    /// One worker more in a pool.
    pub(super) fn add_worker(&mut self, pool: u16) -> Result<(), String> {
        let numbers: Vec<u16> = self.workers_of(pool).iter().map(|(place, _)| place.number).collect();
        match (0..u16::MAX).find(|number| !numbers.contains(number)) {
            Some(number) if numbers.len() < MOST_WORKERS => {
                let step = Step { start: Some(Place { pool, number }), retire: None };
                self.rolling.policy.on(Event::Step(step));
                Ok(())
            }
            _ => Err(format!("there are {MOST_WORKERS} workers already")),
        }
    }

    /// One worker less in a pool; its connections go on in the others.
    pub(super) fn remove_worker(&mut self, pool: u16) -> Result<(), String> {
        let workers = self.workers_of(pool);
        match workers.iter().max() {
            Some((_, Some(slot))) if workers.len() > 1 => {
                let step = Step { start: None, retire: Some(*slot) };
                self.rolling.policy.on(Event::Step(step));
            }
            Some((place, None)) if workers.len() > 1 => self.rolling.policy.on(Event::Cancel(*place)),
            _ => return Err("one worker has to stay".to_owned()),
        }
        Ok(())
    }

    /// Places and slots of all workers.
    pub(super) fn serving(&self) -> Vec<(Place, usize)> {
        let slots = (0..self.processes.slots()).filter(|slot| !self.pools.owns(*slot));
        let slots = slots.filter(|slot| self.processes.holder(*slot).is_some());
        slots.map(|slot| (self.place_of(slot), slot)).collect()
    }

    /// Those of a pool that are not to leave, with their slots, and those that are to come in addition.
    pub(super) fn workers_of(&self, pool: u16) -> Vec<(Place, Option<usize>)> {
        let rolling = &self.rolling.policy;
        let replaced: Vec<usize> = rolling.replaced().collect();
        let serving = self.serving().into_iter();
        let serving = serving.filter(|(_, slot)| !rolling.retires(*slot) || replaced.contains(slot));
        let serving = serving.map(|(place, slot)| (place, Some(slot)));
        let coming = rolling.additions().map(|place| (place, None));
        serving.chain(coming).filter(|(place, _)| place.pool == pool).collect()
    }
}

/// What the child has found; `status` tells how it ended.
fn found_in(mut file: File, status: WaitStatus) -> Found {
    let WaitStatus::Exited(_, 0) = status else {
        return Err("the handlers cannot be found in time: a file system does not answer".to_owned());
    };
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.read_to_end(&mut text));
    let failed = |error: &dyn std::fmt::Display| format!("what was found cannot be read: {error}");
    read.map_err(|error| failed(&error))?;
    serde_json::from_slice(&text).map_err(|error| failed(&error))?
}

fn failed(why: &str) -> String {
    format!("refused, and nothing has changed: {why}")
}

/// In a pool, by command.
pub(super) const MOST_WORKERS: usize = 1024;
