//! From the handler directory and the map file to the routes: scan, probe, aliases. What is broken is left out and
//! named; the caller decides whether that is an error.
//!
//! Waits for the file system and for the probes, so a process that serves has a child do it. The scan reads at most
//! [`MAX_ENTRIES`](scan::MAX_ENTRIES) names and looks at the metadata of at most [`MAX_HANDLERS`](scan::MAX_HANDLERS)
//! files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::message::{Offer, Request};
use super::probe::{Report, own, probe};
use super::scan;
use crate::config::Config;
use crate::confine::Confinement;
use crate::ffi::plugin::Style;
use crate::fleet::routes::{Route, Routes, Stamp};

/// Finds all handlers and probes those that are not among the ones that are `known`. Returns the routes and what was
/// left out. Asks in between whether to go on. An error: nothing can be served as configured.
pub fn discover(
    config: &Config,
    known: &Routes,
    go_on: &dyn Fn() -> bool,
) -> Result<(Routes, Vec<String>), String> {
    discover_by((&own(), None), config, known, go_on)
}

/// The same with another executable of this program, which may be confined otherwise than the configuration says.
pub fn discover_by(
    (program, confinement): (&Path, Option<&Confinement>),
    config: &Config,
    known: &Routes,
    go_on: &dyn Fn() -> bool,
) -> Result<(Routes, Vec<String>), String> {
    let (found, skipped) = scan::scan(scan::Scan {
        root: &config.handlers,
        scan_dir: config.scan_dir.as_deref(),
        allow_outside: config.allow_outside,
        trusted_owner: geteuid().is_root().then_some(0),
    })?;
    let mut faults: Vec<String> = skipped.iter().map(|skipped| format!("{skipped}; skipped")).collect();
    let (map_file, aliases) = match &config.map_file {
        Some(path) => (path.display().to_string(), read_map(path)?),
        None => Default::default(),
    };
    let (candidates, mut requests) = candidates(config, known, found);
    if let Some(confinement) = confinement {
        requests.iter_mut().for_each(|request| request.confinement = Some(confinement.clone()));
    }
    let mut reports = probe(program, requests, go_on).ok_or("interrupted")?.into_iter();
    let mut routes = Routes::default();
    for (resource, candidate) in candidates {
        let route = match candidate {
            Candidate::Link(first) => {
                if !routes.alias(&resource, &first) {
                    faults.push(format!("{resource} is not served: it is another name of {first}"));
                }
                continue;
            }
            Candidate::Known(route) => Ok(route),
            Candidate::New(file, stamp) => route(&resource, file, stamp, reports.next().unwrap_or_default()),
        };
        match route {
            Ok(route) => drop(routes.add(route)),
            Err(fault) => faults.push(fault),
        }
    }
    // Top to bottom, so that an alias may name an alias above it.
    for Alias { line, alias, existing } in aliases {
        if !routes.alias(&alias, &existing) {
            let why = format!("{alias} is not served: no handler serves {existing}");
            faults.push(format!("map file {map_file}: line {line}: {why}"));
        }
    }
    for (resource, handler) in &config.resources {
        // Of a handler that is not there the table itself is told.
        let is_own = routes.resources().any(|(own, _)| own == resource);
        match is_own {
            true => faults.push(format!(
                "configuration file: handler.{handler:?}: {resource} has a handler of its own"
            )),
            false => drop(routes.alias(resource, handler)),
        }
    }
    for resource in config.isolation.keys() {
        if let Some(fault) = out_of_use(resource, &routes) {
            faults.push(format!("configuration file: handler.{resource:?} is not used: {fault}"));
        }
    }
    if routes.resources().next().is_none() {
        faults.push(format!("no resource is served: {} has no usable handler", config.handlers.display()));
    }
    Ok((routes, faults))
}

/// Why a reload that finds these faults is refused. With strict handlers any of them is a reason; without, only those
/// that were not there before: what was broken may stay so.
pub fn refusal(faults: &[String], before: &[String], strict: bool) -> Option<String> {
    let mut reasons = faults.iter().filter(|fault| strict || !before.contains(fault));
    let first = reasons.next()?;
    Some(match reasons.count() {
        0 => first.clone(),
        more => format!("{first} (and {more} more)"),
    })
}

/// A file that may be a handler.
enum Candidate {
    /// Another name of this resource: the dynamic linker would give the same handler again.
    Link(String),
    /// The file has not changed.
    Known(Route),
    /// To be probed.
    New(PathBuf, Stamp),
}

/// What was found by resource, and what is to be asked of those that are new, in their order.
fn candidates(
    config: &Config,
    known: &Routes,
    found: Vec<scan::Found>,
) -> (Vec<(String, Candidate)>, Vec<Request>) {
    let known: HashMap<(&Path, Stamp), &Route> =
        known.in_service().map(|(_, route)| ((route.file.as_path(), route.stamp), route)).collect();
    let (mut candidates, mut requests) = (Vec::new(), Vec::new());
    let mut first_resources: HashMap<(u64, u64), String> = HashMap::new();
    for scan::Found { resource, file, identity } in found {
        // Before it is probed: what changes later is found at the next reload.
        let stamp = file.metadata().map(|file| Stamp::from(&file)).unwrap_or_default();
        let candidate = if let Some(first) = first_resources.get(&identity) {
            Candidate::Link(first.clone())
        } else if let Some(route) = known.get(&(file.as_path(), stamp)) {
            Candidate::Known(Route { resource: resource.clone(), ..(*route).clone() })
        } else {
            requests.push(request(config, &resource, &file));
            Candidate::New(file, stamp)
        };
        first_resources.entry(identity).or_insert_with(|| resource.clone());
        candidates.push((resource, candidate));
    }
    (candidates, requests)
}

/// What a report means: the route, or the fault.
fn route(resource: &str, file: PathBuf, stamp: Stamp, report: Report) -> Result<Route, String> {
    let name = file.display();
    let level = if report.fault.is_some() { log::Level::Warn } else { log::Level::Info };
    for line in report.log.lines().filter(|line| !line.trim().is_empty()) {
        log::log!(level, "handler {name} (probe): {line}");
    }
    match (report.fault, report.offer) {
        (None, Some(Offer { name, version, style, flags, protocols, .. })) => {
            log::debug!("handler {}: {name} {version} for {resource}", file.display());
            let (resource, blocking, retired) = (resource.to_owned(), style == Style::Blocking, false);
            Ok(Route { file, stamp, resource, name, version, blocking, flags, protocols, retired })
        }
        (fault, _) => {
            let why = fault.unwrap_or("gave no answer".to_owned());
            Err(format!("handler {name}: {why}; {resource} is not served"))
        }
    }
}

fn request(config: &Config, resource: &str, file: &PathBuf) -> Request {
    let confinement = Confinement::of(config, config.pool_of(resource));
    Request {
        file: config.inside(file).into_owned().into(),
        settings: config.settings.get(resource).cloned().unwrap_or_default(),
        start: false,
        confinement: confinement.map(|confinement| confinement.with_files(config, [file])),
    }
}

fn read_map(path: &Path) -> Result<Vec<Alias>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
    text.and_then(|text| parse(&text)).map_err(|why| format!("map file {}: {why}", path.display()))
}

/// A line of the map file.
#[derive(Debug, PartialEq, Eq)]
struct Alias {
    line: usize,
    /// The resource to be served by what serves the existing one.
    alias: String,
    existing: String,
}

/// Reads the text of a map file, in each line `ALIAS EXISTING # COMMENT`; the error names the first line that is no
/// alias, and what was expected.
fn parse(text: &str) -> Result<Vec<Alias>, String> {
    let mut aliases = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let content = content.split('#').next().unwrap_or_default();
        match content.split_whitespace().collect::<Vec<_>>()[..] {
            [] => {}
            [alias, existing] => {
                for resource in [alias, existing] {
                    if !resource.starts_with('/') || resource.contains('?') {
                        let expected = "expected a path that begins with \"/\"";
                        return Err(format!("line {line}: got {resource:?}, {expected}"));
                    }
                }
                aliases.push(Alias { line, alias: alias.to_owned(), existing: existing.to_owned() });
            }
            _ => return Err(format!("line {line}: got {:?}, expected \"ALIAS EXISTING\"", content.trim())),
        }
    }
    Ok(aliases)
}

/// Why what is configured for this resource has no effect.
fn out_of_use(resource: &str, routes: &Routes) -> Option<String> {
    let Some(number) = routes.find(resource) else { return Some("no handler serves it".to_owned()) };
    let first = routes.get(number).map(|route| route.resource.as_str());
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

    #[test]
    fn aliases_comments_and_blank_lines() {
        let text = "# all of it\n\n/chat /a/chat\n\t/talk\t/chat  # also\r\n   # more\n/x#y /z\n";
        let error = parse(text).unwrap_err();
        assert_eq!(error, "line 6: got \"/x\", expected \"ALIAS EXISTING\"");
        let aliases = parse(&text[..text.len() - "/x#y /z\n".len()]).unwrap();
        let alias = |line, alias: &str, existing: &str| Alias {
            line,
            alias: alias.into(),
            existing: existing.into(),
        };
        assert_eq!(aliases, [alias(3, "/chat", "/a/chat"), alias(4, "/talk", "/chat")]);
    }

    #[test]
    fn a_line_that_is_no_alias_is_named() {
        for (text, expected) in [
            ("/a", "line 1: got \"/a\", expected \"ALIAS EXISTING\""),
            ("\n/a /b /c", "line 2: got \"/a /b /c\", expected \"ALIAS EXISTING\""),
            ("a /b", "line 1: got \"a\", expected a path that begins with \"/\""),
            ("/a b", "line 1: got \"b\", expected a path that begins with \"/\""),
            ("/a?x /b", "line 1: got \"/a?x\", expected a path that begins with \"/\""),
        ] {
            assert_eq!(parse(text).unwrap_err(), expected);
        }
    }
}
