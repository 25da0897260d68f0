//! Reload: which pools have changed, and the steps from one generation to the next.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use wshd::cli::{self, Command};
use wshd::config::{Config, Pool};
use wshd::fleet::memory::Place;
use wshd::fleet::routes::{Route, Routes, Stamp};
use wshd::log::Destination;
use wshd::supervisor::bus::Bus;
use wshd::supervisor::generation::Generation;
use wshd::supervisor::policy::rolling_restart::Step;

/// A handler in a version of its file.
fn route(resource: &str, version: u64) -> Route {
    Route {
        file: PathBuf::from(format!("/handlers{resource}_wsh.so")),
        stamp: Stamp { size: version, ..Stamp::default() },
        resource: resource.to_owned(),
        name: String::new(),
        version: String::new(),
        blocking: false,
        flags: 0,
        protocols: Vec::new(),
        retired: false,
    }
}

fn config(workers: usize, pools: &[(&str, usize)], isolated: &[(&str, usize)]) -> Config {
    let args = ["wshd", "-w", "/h", "--workers", &workers.to_string()].map(Into::into);
    let Command::Serve(mut config) = cli::parse(args, None).unwrap() else { panic!("to serve") };
    config.pools.extend(pools.iter().map(|(name, workers)| Pool::new(name, *workers)));
    config.isolation = isolated.iter().map(|(resource, pool)| ((*resource).to_owned(), *pool)).collect();
    *config
}

fn generation(config: Config, resources: &[(&str, u64)]) -> Generation {
    let mut routes = Routes::default();
    for (resource, version) in resources {
        routes.add(route(resource, *version));
    }
    let (config, routes) = (Arc::new(config), Arc::new(routes));
    let bus = Bus::new().unwrap().following(&config).unwrap();
    Generation { config, routes, ..Generation::before_start(Vec::new(), bus) }
}

fn place(pool: u16, number: u16) -> Place {
    Place { pool, number }
}

fn step(start: Option<(u16, u16)>, retire: Option<usize>) -> Step {
    Step { start: start.map(|(pool, number)| place(pool, number)), retire }
}

#[test]
fn only_the_pool_of_a_changed_handler_gets_new_workers() {
    let config = config(1, &[("b", 1)], &[("/b", 1)]);
    let old = generation(config.clone(), &[("/a", 1), ("/b", 1)]);
    let changed = |resources: &[(&str, u64)]| {
        let changed = old.changed_pools(&generation(config.clone(), resources));
        changed.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(changed(&[("/a", 1), ("/b", 1)]), [] as [usize; 0]);
    assert_eq!(changed(&[("/a", 1), ("/b", 2)]), [1]);
    assert_eq!(changed(&[("/a", 2), ("/b", 1)]), [0]);
    // A new or removed resource also affects the pool that accepts.
    assert_eq!(changed(&[("/a", 1)]), [0, 1]);
    assert_eq!(changed(&[("/a", 1), ("/b", 1), ("/c", 1)]), [0]);
}

#[test]
fn changed_settings_affect_their_pools_only() {
    let before = config(2, &[("b", 1)], &[("/b", 1)]);
    let old = generation(before.clone(), &[("/a", 1), ("/b", 1)]);
    let changed = |change: &dyn Fn(&mut Config)| {
        let mut after = before.clone();
        change(&mut after);
        let changed = old.changed_pools(&generation(after, &[("/a", 1), ("/b", 1)]));
        changed.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(changed(&|config| config.pools[1].nice = 5), [1]);
    assert_eq!(changed(&|config| config.pools[0].workers = 7), [] as [usize; 0]);
    assert_eq!(changed(&|config| config.threads = 3), [0, 1]);
    let settings = |config: &mut Config| {
        config.settings.insert("/b".to_owned(), vec![("key".to_owned(), "value".to_owned())]);
    };
    assert_eq!(changed(&settings), [1]);
    assert_eq!(changed(&|config| config.isolation.clear()), [0, 1]);
}

#[test]
fn processes_without_a_pool_are_those_of_the_log_and_of_the_default_pool() {
    let before = config(2, &[("b", 1)], &[("/b", 1)]);
    let old = generation(before.clone(), &[("/a", 1), ("/b", 1)]);
    let is_changed = |change: &dyn Fn(&mut Config)| {
        let mut after = before.clone();
        change(&mut after);
        old.is_changed_for_all(&generation(after, &[("/a", 2), ("/c", 1)]))
    };
    assert!(!is_changed(&|_| {}));
    assert!(!is_changed(&|config| config.pools[1].nice = 5));
    assert!(!is_changed(&|config| config.pools[0].workers = 7));
    assert!(is_changed(&|config| config.log.destination = Destination::File("/var/log/other".into())));
    assert!(is_changed(&|config| config.pools[0].seccomp = true));
}

#[test]
fn workers_are_replaced_pool_by_pool_with_the_default_pool_last() {
    let new = generation(config(2, &[("b", 2), ("gone", 0)], &[]), &[]);
    let workers = [(place(0, 0), 0), (place(0, 1), 1), (place(0, 2), 5), (place(1, 0), 2), (place(2, 0), 3)];
    assert_eq!(
        new.steps(&[0].into(), &workers),
        [
            step(Some((1, 1)), None),
            step(Some((0, 0)), Some(0)),
            step(Some((0, 1)), Some(1)),
            step(None, Some(5)),
            step(None, Some(3)),
        ]
    );
    assert_eq!(new.steps(&BTreeSet::new(), &workers[..2]).len(), 2, "the two of pool b");
}

#[test]
fn pools_keep_their_numbers_and_removed_ones_have_no_workers() {
    let old = config(1, &[("x", 1), ("y", 2)], &[("/x", 1), ("/y", 2)]);
    let new = config(3, &[("z", 4), ("y", 5)], &[("/z", 1), ("/y", 2)]).following(&old);
    let pools: Vec<_> = new.pools.iter().map(|pool| (pool.name.as_str(), pool.workers)).collect();
    assert_eq!(pools, [("default", 3), ("x", 0), ("y", 5), ("z", 4)]);
    assert_eq!(["/x", "/y", "/z"].map(|resource| new.pool_of(resource)), [0, 2, 3]);
}
