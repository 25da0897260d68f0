//! The rules that hold the rooms of `src/` apart: who may import whom, where `unsafe` may stand, and how long a file
//! may be. Reads the sources as text.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may import besides itself. The arrows of the architecture, and these, agreed on later:
///
/// - `exit` (numbers) and `log` (the sink) are for all processes: supervisor and worker may name them.
/// - `config` is made of the types of those whose settings it holds: proto, fleet's listener, log.
/// - `supervisor` sees `proto` through `config` only, and of `ffi` the probe and the style it reports.
/// - `worker` reads `config`, which it inherits over fork, and ends with the numbers of `exit`.
const ARROWS: [(&str, &[&str]); 11] = [
    ("main", &["cli", "config", "exit", "fleet", "log", "supervisor"]),
    ("cli", &["config", "log", "proto"]),
    ("config", &["fleet", "log", "proto"]),
    ("exit", &[]),
    ("log", &[]),
    ("supervisor", &["config", "exit", "ffi", "fleet", "log"]),
    ("worker", &["config", "exit", "ffi", "fleet", "http", "log", "proto"]),
    ("http", &["proto"]),
    ("proto", &[]),
    ("ffi", &[]),
    ("fleet", &[]),
];

/// Files that may contain `unsafe`, each for one of the reasons that are allowed: plugin FFI, fork and process
/// titles, memory shared between processes, signal handlers, descriptors that come as numbers.
const UNSAFE: [&str; 18] = [
    "ffi/call.rs",
    "ffi/host.rs",
    "ffi/plugin.rs",
    "ffi/probe.rs",
    "ffi/table.rs",
    "fleet/evidence.rs",
    "fleet/gates.rs",
    "fleet/inbox.rs",
    "fleet/scoreboard.rs",
    "fleet/title.rs",
    "supervisor/spawn.rs",
    "worker/accept.rs",
    "worker/evidence.rs",
    "worker/handover.rs",
    "worker/modules.rs",
    "worker/record.rs",
    "worker/rescue.rs",
    "worker/moving.rs",
];

/// All sources below `src`, by their path from there.
fn sources() -> BTreeMap<String, String> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => walk(&entry.path(), found),
                false if entry.path().extension().is_some_and(|kind| kind == "rs") => {
                    found.push(entry.path())
                }
                false => {}
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    let named = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    found.into_iter().map(named).collect()
}

/// The room a file belongs to: `worker/conn.rs` to worker, `cli.rs` to cli.
fn room(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

/// Code only: comments cut off, and what follows `#[cfg(test)]` at the start of a line.
fn code(text: &str) -> String {
    let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
    lines
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .fold(String::new(), |all, line| all + line + "\n")
}

/// The paths that a file takes from the crate's root: "fleet::listener::Listen" and so on, groups spelled out.
fn imports(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for start in ["crate::", "wshd::"] {
        for (at, _) in text.match_indices(start) {
            let whole_word = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let rest = &text[at + start.len()..];
            match rest.strip_prefix('{') {
                Some(group) if whole_word => found.extend(split_group(group)),
                _ if whole_word => {
                    let end = rest
                        .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
                        .unwrap_or(rest.len());
                    found.insert(rest[..end].trim_end_matches(':').to_owned());
                }
                _ => {}
            }
        }
    }
    found
}

/// "a::b, c::{d, e}}..." becomes "a::b" and "c::".
fn split_group(group: &str) -> Vec<String> {
    let mut depth = 1;
    let mut parts = vec![String::new()];
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => parts.push(String::new()),
            c if depth == 1 => parts.last_mut().unwrap().push(c),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    // Without "as NAME".
    let paths = parts.iter().filter_map(|part| part.split_whitespace().next());
    paths.map(str::to_owned).collect()
}

#[test]
fn imports_follow_the_arrows() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (file, text) in sources().iter().filter(|(file, _)| *file != "lib.rs") {
        let from = room(file);
        let allowed =
            arrows.get(from).unwrap_or_else(|| panic!("{file} belongs to no room that this test knows"));
        for path in imports(&code(text)) {
            let to = path.split(':').next().unwrap();
            seen += 1;
            // Two doors that stand open for one visitor each.
            let forks = file == "supervisor/spawn.rs" && to == "worker";
            let probes = from != "supervisor"
                || to != "ffi"
                || ["ffi::probe", "ffi::plugin::Style"].iter().any(|door| path.starts_with(door));
            if to != from && !forks && !(allowed.contains(&to) && probes) {
                wrong.push(format!("{file} imports {path}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 50, "{seen} imports: is this test reading the sources?");
}

#[test]
fn the_protocol_forbids_unsafe() {
    let sources = sources();
    assert!(sources["proto/mod.rs"].contains("#![forbid(unsafe_code)]"));
    for room in ["http/", "cli", "config", "exit", "proto/", "supervisor/plan", "main"] {
        for (file, text) in sources.iter().filter(|(file, _)| file.starts_with(room)) {
            assert!(!text.contains("allow(unsafe_code)"), "{file}");
        }
    }
}

#[test]
fn unsafe_stands_in_the_named_files_only_and_says_why() {
    let sources = sources();
    for (file, text) in &sources {
        let blocks = code(text).matches("unsafe {").count();
        let listed = UNSAFE.contains(&file.as_str());
        assert_eq!(blocks > 0, listed, "{file} has {blocks} unsafe blocks; is it listed here?");
        // Clippy asks for one at each block; neighbours may share it.
        assert!(blocks == 0 || text.contains("SAFETY:"), "{file}: no SAFETY comment");
    }
    assert!(UNSAFE.iter().all(|file| sources.contains_key(*file)), "a file that is listed is not there");
}

#[test]
fn files_are_of_a_size_to_be_read() {
    let mut long = Vec::new();
    for (file, text) in sources() {
        let (all, without_tests) =
            (text.lines().count(), text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count());
        if all > 600 || without_tests > 500 {
            long.push(format!("{file}: {all} lines, {without_tests} of them without tests"));
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn what_this_test_reads_is_what_is_written() {
    let text = "use crate::{log as sink, worker::{a, b}};\nuse crate::proto::{deflate, head};\nlet x = crate::ffi::host::now();";
    let found: Vec<String> = imports(text).into_iter().collect();
    assert_eq!(found, ["ffi::host::now", "log", "proto", "worker::"]);
    assert_eq!(code("a // b\n// c\n#[cfg(test)]\nd"), "a \n\n");
}
