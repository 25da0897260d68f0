//! Which room of `src/` may use which: `ARROWS` is the exact list. wshd(7) has a shorter one.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A room, or a file with more rights than its room, and the modules that it may use. All may use `log`, `config`,
/// `exit` and `time`, which are values.
const ARROWS: &[(&str, &[&str])] = &[
    ("main.rs", &["cli", "ctl", "kit", "service", "supervisor", "handlers", "fleet::process"]),
    ("cli", &["proto", "ctl", "kit", "settings"]),
    ("kit/check", &["confine", "handlers", "ffi::plugin", "ffi::raw"]),
    (
        "kit/host",
        &[
            "bus",
            "clock",
            "confine",
            "ffi::callback_name",
            "ffi::is_start",
            "ffi::strict",
            "fleet",
            "handlers::discover",
            "handlers::probe::own",
            "settings",
            "supervisor::bus",
            "supervisor::death",
            "worker",
        ],
    ),
    ("kit/test", &["ctl::record", "worker"]),
    (
        "kit",
        &[
            "clock",
            "ctl::answer",
            "ctl::ask",
            "ctl::record",
            "ctl::request",
            "handlers::scan::is_path_byte",
            "proto",
            "settings::value",
            "supervisor::crash_record",
        ],
    ),
    ("settings", &["auth", "proto"]),
    ("ctl", &["fleet::sockets::datagram", "proto::ws::close"]),
    ("auth", &["proto::http1::head"]),
    ("config", &["auth", "cgi::Cgi", "proto", "fleet::sockets::listener"]),
    ("exit.rs", &[]),
    ("log", &[]),
    ("service/pid_file.rs", &["clock", "fleet::process::alone::is_alone"]), // its tests
    ("service", &["clock"]),
    (
        "control",
        &[
            "clock",
            "fleet",
            "ffi::callback_name",
            "ctl::request",
            "ctl::answer",
            "ctl::filter",
            "ctl::publish",
            "ctl::record",
            "ctl::topics",
        ],
    ),
    ("supervisor/child.rs", &["worker", "metrics", "confine", "service", "fleet"]),
    ("supervisor/spawn.rs", &["worker", "cgi", "gateway", "metrics", "bus", "fleet", "clock"]),
    ("supervisor/dry_run.rs", &["gateway", "confine", "service", "fleet"]),
    ("supervisor/bus.rs", &["bus", "fleet"]),
    (
        "supervisor",
        &[
            "auth",
            "clock",
            "control",
            "service",
            "fleet",
            "handlers",
            "confine",
            "ffi::callback_name",
            "ffi::guarded",
            "ffi::is_start",
            "ctl::request",
            "ctl::answer",
            "settings::outside",
        ],
    ),
    ("handlers", &["clock", "fleet::process::proc", "fleet::routes", "ffi", "confine", "service::open_null"]),
    ("confine", &[]),
    ("gateway", &["clock", "fleet", "proto", "http"]),
    ("bus", &["clock", "fleet", "proto::ws", "ctl::topics"]),
    (
        "worker",
        &[
            "auth",
            "cgi::covers",
            "cgi::handover",
            "clock",
            "fleet",
            "proto",
            "http",
            "ffi",
            "ctl::request",
            "ctl::answer",
            "ctl::filter",
        ],
    ),
    ("cgi", &["clock", "fleet", "http", "proto"]),
    ("metrics", &["clock", "fleet", "proto", "http", "ffi::callback_name"]),
    ("http", &["proto"]),
    ("clock.rs", &[]),
    ("time.rs", &["clock"]),
    ("fleet", &["clock"]),
    ("ffi", &["clock"]),
    ("proto/fuzzing.rs", &["proto"]),
    ("proto/http1", &[]),
    ("proto/ws", &["proto::http1::field", "proto::http1::head"]),
    ("", &[]),
];
const VALUES: [&str; 4] = ["config", "exit", "log", "time"];

/// The rooms of a worker, from the top down: each may use those below it. The files beside them, which wire them and
/// run the event loop, may use all.
const WORKER: &[&str] = &[
    "process",
    "transfer",
    "handshake",
    "session",
    "host",
    "blocking",
    "topics",
    "listen",
    "connections",
    "crash",
    "conn",
    "commands",
    "base",
];

/// What is shared over a fork, likewise.
const FLEET: &[&str] = &["sockets", "memory", "process", "routes", "refusal", "peer"];

/// The files of the supervisor, from the top down: each may use those below it, and the items of `mod.rs`.
const SUPERVISOR: &[&str] = &[
    "dry_run",
    "control",
    "reports",
    "workers",
    "reload",
    "next_generation",
    "prepare",
    "upgrade",
    "postmortem",
    "maintenance",
    "certificates",
    "mail",
    "drain",
    "auxiliary",
    "rolling",
    "pools",
    "logs",
    "errand",
    "spawn",
    "child",
    "generation",
    "bus",
    "crash_record",
    "death",
    "processes",
    "relay",
    "policy",
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The paths after `crate::` (or `wshd::`, in `main.rs`) in code, not in comments.
fn uses(text: &str) -> BTreeSet<String> {
    paths(text, &["crate::", "wshd::"])
}

fn paths(text: &str, prefixes: &[&str]) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut found = BTreeSet::new();
    for line in code {
        for after in prefixes.iter().flat_map(|name| line.split(name).skip(1)) {
            let items = after.strip_prefix('{').map_or(vec![after], |list| list.split(", ").collect());
            for item in items {
                let is_path = |c: &char| c.is_ascii_alphanumeric() || "_:".contains(*c);
                found.insert(item.chars().take_while(is_path).collect());
            }
        }
    }
    found
}

fn may_use(file: &str, used: &str) -> bool {
    let in_room = |room: &str| file.starts_with(room);
    let (room, allowed) = ARROWS.iter().find(|(room, _)| in_room(room)).unwrap();
    let own = room.split(['/', '.']).next().filter(|own| !own.is_empty());
    allowed
        .iter()
        .chain(&VALUES)
        .copied()
        .chain(own)
        .any(|name| used.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
}

#[test]
fn rooms_use_what_their_arrows_allow() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 40);
    let mut wrong = Vec::new();
    for path in files {
        let file = path.strip_prefix(&root).unwrap().to_str().unwrap();
        for used in uses(&std::fs::read_to_string(&path).unwrap()) {
            if !may_use(file, &used) {
                wrong.push(format!("{file} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whether a file of an inner room uses one above it, or a file beside these rooms. Paths begin with the outer room.
fn goes_up(outer: &str, inner: &[&str], file: &str, used: &str) -> bool {
    let name = |path: &str| Some(path.strip_prefix(outer)?.trim_start_matches([':', '/']).to_owned());
    let floor = |path| {
        let path = name(path)?;
        inner.iter().position(|room| path.split([':', '/', '.']).next() == Some(room))
    };
    match (floor(file), floor(used)) {
        (Some(from), Some(to)) => to < from,
        (Some(_), None) => used.starts_with(outer),
        (None, _) => false,
    }
}

fn upward_uses(outer: &str, inner: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root.join(outer), &mut files);
    let mut wrong = Vec::new();
    for path in files {
        let file = path.strip_prefix(&root).unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let upwards = uses(&text).into_iter().filter(|used| goes_up(outer, inner, file, used));
        wrong.extend(upwards.map(|used| format!("{file} uses {used}")));
        // Within a room `super` names siblings; modules further up need their full path.
        if text.contains("super::super::") {
            wrong.push(format!("{file} uses super::super::"));
        }
    }
    for room in std::fs::read_dir(root.join(outer)).unwrap().map(|entry| entry.unwrap()) {
        let name = room.file_name().into_string().unwrap();
        if room.path().is_dir() && !inner.contains(&name.as_str()) {
            wrong.push(format!("{outer}/{name} is not in the list"));
        }
    }
    wrong
}

#[test]
fn inner_rooms_use_what_is_below_them() {
    let wrong = [upward_uses("worker", WORKER), upward_uses("fleet", FLEET)].concat();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// wshd(7) has these lists, too, with a sentence for each.
#[test]
fn the_manual_has_the_inner_rooms_in_their_order() {
    let manual = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("man/wshd.7")).unwrap();
    let lists: Vec<Vec<&str>> = manual
        .split(".Bd -literal -offset indent\n")
        .filter_map(|after| after.split_once("\n.Ed"))
        .map(|(list, _)| list.lines().filter_map(|line| line.split_whitespace().next()).collect())
        .collect();
    assert!(lists.contains(&WORKER.to_vec()), "{lists:#?}");
    assert!(lists.contains(&FLEET.to_vec()), "{lists:#?}");
}

#[test]
fn files_of_the_supervisor_use_what_is_below_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/supervisor");
    let floor = |name: &str| SUPERVISOR.iter().position(|known| *known == name);
    let mut wrong = Vec::new();
    let entries: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    for path in entries.iter().filter(|path| path.is_file() && !path.ends_with("mod.rs")) {
        let file = path.file_stem().unwrap().to_str().unwrap();
        let Some(from) = floor(file) else { panic!("supervisor/{file}.rs is not in the list") };
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for used in paths(code, &["super::", "crate::supervisor::"]) {
            let name = used.split("::").next().unwrap();
            if floor(name).is_some_and(|to| to < from) {
                wrong.push(format!("{file} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_protocol_forbids_unsafe_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("src/proto/mod.rs")).unwrap();
    assert!(text.contains("\n#![forbid(unsafe_code)]\n"));
}

#[test]
fn the_log_does_not_use_clap() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/log"), &mut files);
    assert!(!files.is_empty());
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("clap"), "{}", path.display());
    }
}

#[test]
fn policy_is_pure() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/supervisor/policy");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 4);
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for word in ["nix::", "libc::", "rustix", "clock", "std::io", "std::fs", "std::os", "unsafe", "log::"]
        {
            let found = code.iter().find(|line| line.contains(word));
            assert_eq!(found, None, "{}: {word}", path.display());
        }
    }
}

#[test]
fn violations_are_detected() {
    assert!(
        may_use("worker/handshake/request.rs", "http::Site") && !may_use("proto/ws/frame.rs", "http::Site")
    );
    assert!(may_use("supervisor/spawn.rs", "worker::Start") && !may_use("supervisor/mod.rs", "worker"));
    assert!(!may_use("supervisor/mod.rs", "ffi::host") && !may_use("supervisor/mod.rs", "workers"));
    let goes_up = |file, used| goes_up("worker", WORKER, file, used);
    assert!(goes_up("worker/conn/table.rs", "worker::session::Session"));
    assert!(goes_up("worker/base/poll.rs", "worker::Worker"));
    assert!(!goes_up("worker/session/mod.rs", "worker::conn::table"));
    assert!(!goes_up("worker/mod.rs", "worker::base"));
    let text = "use crate::http::{self, Body};\n// crate::worker\nlet a = crate::fleet::now();";
    assert_eq!(uses(text), ["fleet::now".to_owned(), "http::".to_owned()].into());
}
