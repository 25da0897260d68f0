//! Reload: configuration and handlers are read anew and checked, and workers of another generation replace those that
//! are to change (`rolling`). A mistake changes nothing.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use nix::unistd::Pid;

use super::generation::{Generation, Sockets};
use super::next_generation;
use super::policy::rolling_restart::{Event, ReloadFailure};
use super::processes::{Errand, Role};
use super::rolling::PendingReload;
use super::{Supervisor, plural};
use crate::clock;
use crate::fleet::routes::{Routes, Stamp};
use crate::fleet::sockets::handover::Received;
use crate::log as sink;

/// Names of each kind in a line; the others are counted.
const MAX_NAMES: usize = 20;

impl Supervisor {
    /// Begins the reload that is wanted, as soon as the server is ready and nothing else is being
    /// replaced; whether it did.
    pub(super) fn begin_reload(&mut self) -> bool {
        let is_idle = self.rolling.is_idle();
        let is_ready = self.host.daemon.is_ready() || self.slots.is_stopping();
        if !self.rolling.is_reload_wanted || !is_idle || !is_ready {
            return false;
        }
        (self.rolling.is_reload_wanted, self.rolling.is_reload) = (false, true);
        self.host.control.reload_begins();
        if let Some(why) = self.busy(&[]) {
            self.end_reload(Err(failed(why)));
            return true;
        }
        self.host.notify.reloading();
        let (old, reread) = (self.generation.clone(), Rc::clone(&self.host.reread));
        match self.send_out(Errand::Reload, |outbox| next_generation::find(&old, &*reread, outbox)) {
            Ok(child) => self.rolling.reload = Some(PendingReload::Preparing(child)),
            Err(why) => self.end_reload(Err(failed(&why))),
        }
        true
    }

    pub(super) fn reload_prepared(&mut self, pid: Pid, result: Result<Received, String>) {
        let is_it =
            |reload: &mut PendingReload| matches!(reload, PendingReload::Preparing(child) if *child == pid);
        if self.rolling.reload.take_if(is_it).is_none() {
            return;
        }
        match result.and_then(|found| next_generation::of(&self.generation, &*self.host.reread, found)) {
            Ok((generation, former_log)) => {
                self.rolling.former_log = former_log;
                self.try_out(generation);
            }
            Err(why) => self.end_reload(Err(failed(&why))),
        }
    }

    /// When all auxiliary processes of a reload are ready workers are replaced.
    pub(super) fn go_on_with_reload(&mut self) {
        // Meanwhile a worker may be being replaced for another reason.
        if matches!(self.rolling.reload, Some(PendingReload::Starting(_))) && self.rolling.policy.is_idle() {
            match self.auxiliaries.trial() {
                Some(Ok(())) => self.begin_trial(),
                Some(Err(why)) => self.cancel_loading(&why),
                None => {}
            }
        }
    }

    fn begin_trial(&mut self) {
        let Some(PendingReload::Starting(generation)) = self.rolling.reload.take() else { return };
        self.shared.counters.enter_all(&generation.routes);
        let mut changed = self.generation.changed_pools(&generation);
        // What did not start is tried out again, changed or not.
        let is_reread = generation.is_reread(&self.generation);
        changed.extend(self.postmortem.quarantine.not_starting().filter(|_| is_reread).filter_map(
            |handler| {
                let route = generation.routes.get(handler).filter(|route| !route.retired)?;
                Some(generation.config.pool_of(&route.resource))
            },
        ));
        if self.rolling.is_incomplete {
            changed.extend(0..generation.config.pools.len());
        }
        let steps = generation.steps(&changed, &self.all_workers());
        if steps.is_empty() {
            log::info!("reload: no worker has to be replaced");
        }
        self.rolling.reload = Some(PendingReload::Replacing(generation));
        self.rolling.policy.on(Event::Reload(steps));
    }

    /// A reload is not wanted any more for which no worker has been started.
    pub(super) fn cancel_loading(&mut self, why: &str) {
        let is_loading = |reload: &mut PendingReload| !matches!(reload, PendingReload::Replacing(_));
        match self.rolling.reload.take_if(is_loading) {
            None => return,
            Some(PendingReload::Preparing(child)) => self.processes.terminate(child, clock::now()),
            Some(PendingReload::Starting(new) | PendingReload::Replacing(new)) => {
                self.auxiliaries.abort_trial(&mut self.processes);
                self.remove_sockets(new.sockets_without(&self.generation));
            }
        }
        self.end_reload(Err(failed(why)));
    }

    /// The new generation has shown that it works: all workers that are started from now on are of it.
    pub(super) fn commit(&mut self, new: Generation) {
        let gone = self.generation.sockets_without(&new);
        if !self.shared.scoreboard.are_sockets_shared() {
            gone.iter().for_each(|listener| listener.shut_down());
        }
        self.remove_sockets(gone);
        let changes = changes(&self.generation.routes, &new.routes);
        if !changes.is_empty() {
            log::info!("reload: resources {changes}");
        }
        self.postmortem.quarantine.rules = new.config.quarantine;
        if new.is_reread(&self.generation) {
            self.lift_quarantines_of_changed(&new);
            self.set_log_level(new.config.log.level);
        }
        let deadline = self.drain_deadline(None);
        self.auxiliaries.commit(&mut self.processes, deadline);
        self.generation = new;
        self.host.control.follow_recording(&self.generation.config, &self.generation.routes);
        self.rolling.former_log = None;
        self.maintenance.certificates = None;
        let watch = self.processes.in_role(Role::Errand(Errand::WatchCertificates)).next();
        watch.into_iter().for_each(|pid| self.processes.dismiss(pid)); // it looks at the files of before
    }

    /// A handler whose file has changed begins anew, as does one that did not start before.
    fn lift_quarantines_of_changed(&mut self, new: &Generation) {
        let old = Arc::clone(&self.generation.routes);
        for (number, route) in new.routes.in_service() {
            let Some(before) = old.get(number) else { continue };
            let is_changed = (&before.file, before.stamp) != (&route.file, route.stamp);
            if is_changed || self.postmortem.quarantine.does_not_start(number) {
                self.forgive(number);
            }
        }
    }

    /// The standbys of a reload serve, or nothing of it does, or the server was interrupted.
    pub(super) fn reload_done(&mut self, result: Result<(), ReloadFailure>) {
        if let Some(PendingReload::Replacing(new)) = self.rolling.reload.take() {
            self.auxiliaries.abort_trial(&mut self.processes);
            self.remove_sockets(new.sockets_without(&self.generation));
        }
        let result = result.map_err(|ReloadFailure { why, committed }| match committed {
            true => {
                self.rolling.is_incomplete = true;
                format!(
                    "incomplete: the new configuration is in force, but not all workers were replaced: {why}"
                )
            }
            false => failed(&why),
        });
        self.rolling.is_incomplete &= result.is_err();
        self.end_reload(result);
    }

    /// Removes the files of sockets that are not listened on any more.
    fn remove_sockets(&mut self, gone: Sockets) {
        if gone.iter().all(|listener| listener.file().is_none()) {
            return;
        }
        let remove = |_: BorrowedFd<'_>| {
            gone.iter().for_each(|listener| listener.remove_file());
            Ok(())
        };
        let _ = self.send_out(Errand::Tidy("removing sockets"), remove); // else they are replaced when they are bound again
    }

    fn end_reload(&mut self, result: Result<(), String>) {
        let resources = self.generation.routes.resources().len();
        let result = result.map(|()| format!("done, {}", plural(resources, "resource")));
        let former_log = self.rolling.former_log.take();
        match &result {
            Ok(done) => log::info!("reload: {done}"),
            Err(why) => {
                if let Some(former) = former_log {
                    sink::restore(former);
                    self.reopen_logs(); // SIGUSR1 was for the other one meanwhile
                }
                log::error!("reload: {why}");
            }
        }
        if std::mem::take(&mut self.rolling.is_reload) {
            self.shared.scoreboard.bulletin().set_reload(result.is_ok());
            self.host.control.reload_ends(&result);
            self.host.notify.ready(&self.summary());
        }
    }
}

/// How a reload ends that changes nothing.
pub(super) fn failed(why: &str) -> String {
    format!("failed; keeping the running configuration: {why}")
}

/// What became of the resources: `added: /a, /b; removed: /c`; empty if nothing did. Changed are those whose handler is
/// another one, or has been built anew.
fn changes(before: &Routes, after: &Routes) -> String {
    let (before, after) = (resources(before), resources(after));
    let is_new = |name: &&str| !before.contains_key(name);
    let is_other = |name: &&str| before.get(name).is_some_and(|old| after.get(name) != Some(old));
    let added: Vec<&str> = after.keys().copied().filter(is_new).collect();
    let changed: Vec<&str> = after.keys().copied().filter(is_other).collect();
    let removed: Vec<&str> = before.keys().copied().filter(|name| !after.contains_key(name)).collect();
    let kinds = [("added", added), ("changed", changed), ("removed", removed)];
    let kinds = kinds.into_iter().filter(|(_, names)| !names.is_empty()).map(|(kind, names)| {
        let more = match names.len().saturating_sub(MAX_NAMES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("{kind}: {}{more}", names[..names.len().min(MAX_NAMES)].join(", "))
    });
    kinds.collect::<Vec<_>>().join("; ")
}

/// Each resource with the file that serves it.
fn resources(routes: &Routes) -> BTreeMap<&str, (&Path, Stamp)> {
    let with_file = |(resource, number): (_, u16)| {
        let route = routes.get(number)?;
        Some((resource, (route.file.as_path(), route.stamp)))
    };
    routes.resources().filter_map(with_file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::routes::Route;

    fn routes(resources: &[(&str, u64)]) -> Routes {
        let mut routes = Routes::default();
        for (resource, size) in resources {
            let stamp = Stamp { size: *size, ..Stamp::default() };
            routes.add(Route { stamp, ..Route::for_test(resource) });
        }
        routes
    }

    #[test]
    fn resources_come_change_and_go() {
        let before = routes(&[("/a", 1), ("/b", 1), ("/c", 1)]);
        let mut after = routes(&[("/a", 1), ("/b", 2), ("/d", 1)]);
        after.alias("/e", "/a");
        assert_eq!(changes(&before, &after), "added: /d, /e; changed: /b; removed: /c");
        assert_eq!(changes(&before, &before), "");
    }

    #[test]
    fn a_line_has_an_end() {
        let names: Vec<String> = (10..35).map(|number| format!("/{number}")).collect();
        let all = routes(&names.iter().map(|name| (&**name, 1)).collect::<Vec<_>>());
        let line = changes(&all, &Routes::default());
        assert!(line.starts_with("removed: /10, /11, ") && line.ends_with(", /29 and 5 more"), "{line}");
    }
}
