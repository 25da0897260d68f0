//! From the handler directory and the map file to the routes: scan, probe, aliases. What is broken is left out and
//! told; the caller decides whether that is an error.

use std::collections::HashMap;

use nix::unistd::geteuid;

use super::{alias, confine, landlock, scan};
use crate::config::Config;
use crate::ffi::probe::{self, Style};
use crate::fleet::routes::{Route, Routes, Stamp};

/// Nothing can be served as configured; says what and why.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// A directory is wrong.
    #[error(transparent)]
    Scan(#[from] scan::ScanError),
    /// The map file can not be read.
    #[error("map file {path}: {why}")]
    Map {
        /// As configured.
        path: String,
        /// The line and what is wrong with it.
        why: String,
    },
}

/// Finds all handlers and probes those that are not among the ones that are `known`. Returns the routes and what was
/// left out.
pub fn discover(config: &Config, known: &Routes) -> Result<(Routes, Vec<String>), DiscoverError> {
    let (found, skipped) = scan::scan(scan::Scan {
        root: &config.handlers,
        scan_dir: config.scan_dir.as_deref(),
        allow_outside: config.allow_outside,
        trusted_owner: geteuid().is_root().then_some(0),
    })?;
    let mut faults: Vec<String> = skipped.iter().map(|skipped| format!("{skipped}; skipped")).collect();

    let mut routes = Routes::default();
    let mut first_resources: HashMap<(u64, u64), String> = HashMap::new();
    for scan::Found { resource, file, identity } in found {
        if let Some(first) = first_resources.get(&identity) {
            routes.alias(&resource, first); // a link: the dynamic linker would give the same handler again
            continue;
        }
        first_resources.insert(identity, resource.clone());
        // Before it is probed: what changes later is found at the next reload.
        let stamp = file.metadata().map(|file| Stamp::from(&file)).unwrap_or_default();
        let same = |route: &&Route| route.file == file && route.stamp == stamp;
        if let Some(route) = known.in_service().map(|(_, route)| route).find(same) {
            routes.add(Route { resource, ..route.clone() });
            continue;
        }
        let pool = config.pool_of(&resource);
        let confine = || confine::enter(config, pool).and_then(|()| landlock::confine(config, [&file]));
        match probe::probe(&config.inside(&file), &confine) {
            Err(error) => {
                faults.push(format!("handler {}: {error}; {resource} is not served", file.display()))
            }
            Ok(offer) => {
                let blocking = offer.style == Style::Blocking;
                let probe::Offer { name, version, flags, .. } = offer;
                log::debug!("handler {}: {name} {version} for {resource}", file.display());
                let retired = false;
                routes.add(Route { file, stamp, resource, name, version, blocking, flags, retired });
            }
        }
    }

    if let Some(path) = &config.map_file {
        let failed = |why: String| DiscoverError::Map { path: path.display().to_string(), why };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let aliases = alias::parse(&text).map_err(|fault| failed(fault.to_string()))?;
        for fault in alias::apply(&aliases, &mut routes) {
            faults.push(format!("map file {}: {fault}", path.display()));
        }
    }
    for resource in config.isolation.keys() {
        if let Some(fault) = out_of_use(resource, &routes) {
            faults.push(format!("configuration file: handler.{resource:?} is not used: {fault}"));
        }
    }
    Ok((routes, faults))
}

/// Why what is configured for this resource has no effect.
fn out_of_use(resource: &str, routes: &Routes) -> Option<String> {
    let Some(number) = routes.find(resource) else { return Some("no handler serves it".to_owned()) };
    let first = routes.handlers().get(usize::from(number)).map(|route| route.resource.as_str());
    first.filter(|first| *first != resource).map(|first| format!("it is another name of {first}"))
}
