//! From the handler directory and the map file to the routes: scan, probe, aliases. What is broken is left out and
//! named; the caller decides whether that is an error.
//!
//! A [`Discovery`] does not wait. After [`begin`](Discovery::begin), until it [is done](Discovery::is_done): wait for its
//! [descriptors](Discovery::descriptors) and its [deadline](Discovery::deadline), call [`step`](Discovery::step), and
//! [`reaped`](Discovery::reaped) for every child that has ended. Only the scan itself takes its time: it reads at most
//! [`MAX_ENTRIES`](scan::MAX_ENTRIES) names, looks at the metadata of at most [`MAX_HANDLERS`](scan::MAX_HANDLERS) files,
//! and waits as long as their file system does.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::sys::wait::WaitStatus;
use nix::unistd::{Pid, geteuid};

use super::message::{Offer, Request};
use super::probe::Report;
use super::probes::Probes;
use super::{alias, scan};
use crate::config::Config;
use crate::confine::Confinement;
use crate::ffi::plugin::Style;
use crate::fleet::routes::{Route, Routes, Stamp};
use crate::time::Instant;

/// Nothing can be served as configured; says what and why.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// A directory is wrong.
    #[error(transparent)]
    Scan(#[from] scan::ScanError),
    /// The caller gave up.
    #[error("interrupted")]
    Interrupted,
    /// The map file cannot be read.
    #[error("map file {path}: {why}")]
    Map {
        /// As configured.
        path: String,
        /// The line and what is wrong with it.
        why: String,
    },
}

/// Finds all handlers and probes those that are not among the ones that are `known`, to its end. Returns the routes and
/// what was left out.
pub fn discover(
    config: &Config,
    known: &Routes,
    is_interrupted: &dyn Fn() -> bool,
) -> Result<(Routes, Vec<String>), DiscoverError> {
    let mut discovery = Discovery::begin(config, known, Probes::default())?;
    discovery.wait(is_interrupted);
    if is_interrupted() {
        return Err(DiscoverError::Interrupted);
    }
    Ok(discovery.finish())
}

/// Why a reload that finds these faults is refused. With strict handlers any of them is a reason; without, only those that
/// were not there before: what was broken may stay so.
pub fn refusal(faults: &[String], before: &[String], strict: bool) -> Option<String> {
    let mut reasons = faults.iter().filter(|fault| strict || !before.contains(fault));
    let first = reasons.next()?;
    Some(match reasons.count() {
        0 => first.clone(),
        more => format!("{first} (and {more} more)"),
    })
}

/// Handlers on their way to routes.
#[derive(Debug)]
pub struct Discovery {
    /// Sorted by resource.
    candidates: Vec<Candidate>,
    /// By index of the candidate.
    probes: Probes,
    /// Of the map file, with its name.
    aliases: Vec<alias::Alias>,
    map_file: String,
    /// Resources that have settings of their own.
    configured: Vec<String>,
    /// Resources that the configuration gives to handlers.
    further: std::collections::BTreeMap<String, String>,
    /// What was passed over by the scan.
    faults: Vec<String>,
    /// The handler directory.
    root: std::path::PathBuf,
}

/// A file that may be a handler, and what is known of it.
#[derive(Debug)]
struct Candidate {
    resource: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Another name of this resource: the dynamic linker would give the same handler again.
    Link(String),
    /// The file has not changed.
    Known(Route),
    /// Not known yet.
    Asked {
        file: std::path::PathBuf,
        stamp: Stamp,
    },
    Found(Route),
    Broken(String),
}

impl Discovery {
    /// Scans the directories and asks what is not known. An error in what was configured is found here.
    pub fn begin(config: &Config, known: &Routes, mut probes: Probes) -> Result<Self, DiscoverError> {
        let (found, skipped) = scan::scan(scan::Scan {
            root: &config.handlers,
            scan_dir: config.scan_dir.as_deref(),
            allow_outside: config.allow_outside,
            trusted_owner: geteuid().is_root().then_some(0),
        })?;
        let (map_file, aliases) = match &config.map_file {
            Some(path) => (path.display().to_string(), read_map(path)?),
            None => Default::default(),
        };
        let known: HashMap<(&Path, Stamp), &Route> =
            known.in_service().map(|(_, route)| ((route.file.as_path(), route.stamp), route)).collect();
        let mut candidates = Vec::new();
        let mut first_resources: HashMap<(u64, u64), String> = HashMap::new();
        for scan::Found { resource, file, identity } in found {
            // Before it is probed: what changes later is found at the next reload.
            let stamp = file.metadata().map(|file| Stamp::from(&file)).unwrap_or_default();
            let kind = if let Some(first) = first_resources.get(&identity) {
                Kind::Link(first.clone())
            } else if let Some(route) = known.get(&(file.as_path(), stamp)) {
                Kind::Known(Route { resource: resource.clone(), ..(*route).clone() })
            } else {
                probes.push(candidates.len(), request(config, &resource, &file));
                Kind::Asked { file, stamp }
            };
            first_resources.entry(identity).or_insert_with(|| resource.clone());
            candidates.push(Candidate { resource, kind });
        }
        Ok(Self {
            candidates,
            probes,
            aliases,
            map_file,
            configured: config.isolation.keys().cloned().collect(),
            further: config.resources.clone(),
            root: config.handlers.clone(),
            faults: skipped.iter().map(|skipped| format!("{skipped}; skipped")).collect(),
        })
    }

    /// Whether all is known.
    pub fn is_done(&self) -> bool {
        self.probes.is_done()
    }

    /// What to wait for, to become readable.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.probes.descriptors()
    }

    /// When [`step`](Self::step) has something to do, if nothing comes earlier. None: it is done.
    pub fn deadline(&self) -> Option<Instant> {
        self.probes.deadline()
    }

    /// Waits until all is known, or `is_interrupted`; for a process that has nothing else to do.
    pub fn wait(&mut self, is_interrupted: &dyn Fn() -> bool) {
        self.probes.finish_unless(is_interrupted);
        self.take_reports();
    }

    /// Goes on, without waiting.
    pub fn step(&mut self, now: Instant) {
        self.probes.step(now);
        self.take_reports();
    }

    /// A child of this process has been reaped; whether it was one of these.
    pub fn reaped(&mut self, pid: Pid, status: WaitStatus) -> bool {
        let is_ours = self.probes.reaped(pid, status);
        self.take_reports();
        is_ours
    }

    /// Kills what runs: nobody wants to know any more. To drop it does not, so that a forked child can. What was killed
    /// has still to be reaped, as an unknown child.
    pub fn cancel(mut self) {
        self.probes.cancel();
    }

    /// The routes, and what was left out. It should be done: what is not known yet is left out.
    pub fn finish(self) -> (Routes, Vec<String>) {
        let (mut routes, mut faults) = (Routes::default(), self.faults);
        for Candidate { resource, kind } in self.candidates {
            match kind {
                Kind::Known(route) | Kind::Found(route) => drop(routes.add(route)),
                Kind::Link(first) => drop(routes.alias(&resource, &first)),
                Kind::Broken(why) => faults.push(why),
                Kind::Asked { file, .. } => {
                    faults.push(format!("handler {}: not probed; {resource} is not served", file.display()));
                }
            }
        }
        for fault in alias::apply(&self.aliases, &mut routes) {
            faults.push(format!("map file {}: {fault}", self.map_file));
        }
        for (resource, handler) in &self.further {
            // Of a handler that is not there the table itself is told.
            let is_own = routes.resources().any(|(own, _)| own == resource);
            match is_own {
                true => faults.push(format!(
                    "configuration file: handler.{handler:?}: {resource} has a handler of its own"
                )),
                false => drop(routes.alias(resource, handler)),
            }
        }
        for resource in self.configured {
            if let Some(fault) = out_of_use(&resource, &routes) {
                faults.push(format!("configuration file: handler.{resource:?} is not used: {fault}"));
            }
        }
        if routes.resources().next().is_none() {
            faults.push(format!("no resource is served: {} has no usable handler", self.root.display()));
        }
        (routes, faults)
    }

    fn take_reports(&mut self) {
        while let Some((index, report)) = self.probes.known() {
            let Some(Candidate { resource, kind }) = self.candidates.get_mut(index) else { continue };
            let Kind::Asked { file, stamp } = kind else { continue };
            *kind = known(resource, std::mem::take(file), *stamp, report);
        }
    }
}

/// What a report means.
fn known(resource: &str, file: std::path::PathBuf, stamp: Stamp, report: Report) -> Kind {
    let name = file.display();
    let level = if report.fault.is_some() { log::Level::Warn } else { log::Level::Info };
    for line in report.log.lines().filter(|line| !line.trim().is_empty()) {
        log::log!(level, "handler {name} (probe): {line}");
    }
    match (report.fault, report.offer) {
        (None, Some(Offer { name: handler, version, style, flags, .. })) => {
            log::debug!("handler {name}: {handler} {version} for {resource}");
            let (resource, blocking, retired) = (resource.to_owned(), style == Style::Blocking, false);
            Kind::Found(Route { file, stamp, resource, name: handler, version, blocking, flags, retired })
        }
        (fault, _) => {
            let why = fault.map_or("gave no answer".to_owned(), |fault| fault.to_string());
            Kind::Broken(format!("handler {name}: {why}; {resource} is not served"))
        }
    }
}

fn request(config: &Config, resource: &str, file: &std::path::PathBuf) -> Request {
    let confinement = Confinement::of(config, config.pool_of(resource));
    Request {
        file: config.inside(file).into_owned().into(),
        settings: config.settings.get(resource).cloned().unwrap_or_default(),
        start: false,
        confinement: confinement.map(|confinement| confinement.with_files(config, [file])),
    }
}

fn read_map(path: &Path) -> Result<Vec<alias::Alias>, DiscoverError> {
    let failed = |why: String| DiscoverError::Map { path: path.display().to_string(), why };
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    alias::parse(&text).map_err(|fault| failed(fault.to_string()))
}

/// Why what is configured for this resource has no effect.
fn out_of_use(resource: &str, routes: &Routes) -> Option<String> {
    let Some(number) = routes.find(resource) else { return Some("no handler serves it".to_owned()) };
    let first = routes.handlers().get(usize::from(number)).map(|route| route.resource.as_str());
    first.filter(|first| *first != resource).map(|first| format!("it is another name of {first}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_broken_may_stay_so_unless_handlers_are_strict() {
        let [a, b, c] = ["a", "b", "c"].map(str::to_owned);
        let before = [a.clone(), b.clone()];
        assert_eq!(refusal(&[], &before, true), None);
        assert_eq!(refusal(&before, &before, false), None);
        assert_eq!(refusal(&before, &before, true).unwrap(), "a (and 1 more)");
        assert_eq!(refusal(&[b, c], &[a], false).unwrap(), "b (and 1 more)");
    }
}
