//! Reload: configuration and handlers are read anew and checked, and workers of another edition replace those that
//! are not as they should be (`roll`). A mistake changes nothing. Also the way in for one worker more or less.

use super::changes::Changes;
use super::edition::{Edition, Step};
use super::policy::slots::Plan;
use super::{Fleet, metrics, raise_descriptors};
use crate::fleet::scoreboard::Place;
use crate::log as sink;

impl Fleet {
    /// A reload is wanted; it begins as soon as the server is ready and nothing else is being replaced.
    pub(super) fn ask_for_reload(&mut self) {
        self.is_reload_due = true;
    }

    /// Begins the reload that is wanted, if it can begin now.
    pub(super) fn begin_reload(&mut self, plan: &Plan) {
        if !self.is_reload_due || !self.roll.is_idle() || !self.daemon.is_ready() && !plan.is_stopping() {
            return;
        }
        self.is_reload_due = false;
        self.control.reload_begins();
        if plan.is_stopping() {
            return self.reload_done(Err("the server is told to stop".to_owned()));
        }
        if self.has_successor() {
            return self.reload_done(Err("another executable has taken over".to_owned()));
        }
        self.notify.reloading();
        match self.next_edition() {
            Ok(edition) => {
                // What new workers inherit.
                if let Err(why) = sink::start(&edition.config.log) {
                    return self.reload_done(Err(why));
                }
                metrics::enter_handlers(self.counters, &edition.routes);
                let changed = self.edition().changed_pools(&edition);
                // Also those that are to come up again, however often they have failed.
                let taken = self.taken.iter().filter_map(|slot| Some((self.place(*slot)?, *slot)));
                let steps = edition.steps(&changed, &taken.collect::<Vec<_>>());
                if steps.is_empty() {
                    log::info!("reload: no worker has to be replaced");
                }
                self.roll_out(edition, steps);
            }
            Err(why) => self.reload_done(Err(why)),
        }
    }

    fn next_edition(&self) -> Result<Edition, String> {
        let mut config = (self.reread)()?;
        raise_descriptors(&mut config);
        self.edition().following(config)
    }

    /// The new edition has shown that it works: all workers that are started from now on are made of it.
    pub(super) fn set_edition(&mut self, edition: Edition) {
        let Edition { config, routes, listeners, metrics, faults } = edition;
        let is_gone = |old: &&std::sync::Arc<crate::fleet::listener::Listener>| {
            !listeners.iter().any(|new| std::sync::Arc::ptr_eq(old, new))
        };
        let are_shared = self.scoreboard.are_sockets_shared();
        for listener in self.listeners.iter().filter(is_gone) {
            if !are_shared {
                listener.shut_down();
            }
            listener.remove_file();
        }
        let changes = Changes::between(&self.routes, &routes);
        if !changes.is_empty() {
            log::info!("reload: resources {changes}");
        }
        self.deaths.set_rules(config.quarantine);
        if config.control != self.config.control {
            log::warn!(
                "reload: control_socket and control_group stay as they were until the server is restarted"
            );
        }
        (self.config, self.routes, self.listeners, self.faults) = (config, routes, listeners, faults);
        self.metrics.renew(metrics);
    }

    /// A reload has come to its end.
    pub(super) fn reload_done(&mut self, result: Result<(), String>) {
        let resources = self.routes.resources().len();
        let result = match result {
            Ok(()) => Ok(format!("done, {resources} resources")),
            Err(why) => Err(format!("refused, and nothing has changed: {why}")),
        };
        match &result {
            Ok(done) => log::info!("reload: {done}"),
            Err(why) => {
                if let Err(error) = sink::start(&self.config.log) {
                    log::error!("the log can not go on where it was: {error}");
                }
                log::error!("reload: {why}");
            }
        }
        self.control.reload_ends(&result);
        self.notify.reloaded(&self.summary());
    }

    /// One worker more in a pool.
    pub(super) fn add_worker(&mut self, pool: u16) -> Result<(), String> {
        let numbers: Vec<u16> = self.workers_of(pool).map(|(place, _)| place.number).collect();
        match (0..u16::MAX).find(|number| !numbers.contains(number)) {
            Some(number) if numbers.len() < MOST_WORKERS => {
                self.roll.push(Step { start: Some(Place { pool, number }), retire: None });
                Ok(())
            }
            _ => Err(format!("there are {MOST_WORKERS} workers already")),
        }
    }

    /// One worker less in a pool; its connections go on in the others.
    pub(super) fn remove_worker(&mut self, pool: u16) -> Result<(), String> {
        let workers: Vec<(Place, Option<usize>)> = self.workers_of(pool).collect();
        match workers.iter().max() {
            Some((_, Some(slot))) if workers.len() > 1 => {
                self.roll.push(Step { start: None, retire: Some(*slot) });
            }
            Some((place, None)) if workers.len() > 1 => self.cancel_start(*place),
            _ => return Err("one worker has to stay".to_owned()),
        }
        Ok(())
    }

    /// Places and slots of all workers.
    pub(super) fn serving(&self) -> Vec<(Place, usize)> {
        let slots = self.workers.iter().enumerate().filter(|(_, worker)| worker.is_some());
        let slots = slots.filter(|(slot, _)| !self.children.owns(*slot));
        slots.filter_map(|(slot, _)| Some((self.place(slot)?, slot))).collect()
    }

    /// Those of a pool that are not to leave, with their slots, and those that are to come in addition.
    pub(super) fn workers_of(&self, pool: u16) -> impl Iterator<Item = (Place, Option<usize>)> {
        let replaced = self.roll.replaced();
        let stays = |slot: usize| !self.roll.retires(slot) || replaced.contains(&slot);
        let serving = self.serving().into_iter().filter(|(_, slot)| stays(*slot));
        let serving = serving.map(|(place, slot)| (place, Some(slot)));
        let coming = self.roll.additions().map(|place| (place, None));
        let all: Vec<_> = serving.chain(coming).filter(|(place, _)| place.pool == pool).collect();
        all.into_iter()
    }
}

/// In a pool, by order.
pub(super) const MOST_WORKERS: usize = 1024;
