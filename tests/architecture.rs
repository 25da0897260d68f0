//! Rules for the sources, checked as text: files with `unsafe`, and the sizes of files and lines. Rules about which
//! room may use which are in `rooms.rs`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files that may contain `unsafe`, each for an allowed reason: plugin FFI, fork and process
/// titles, shared memory, signal handlers, raw descriptors.
const UNSAFE: &[&str] = &[
    "cgi/spawn.rs",
    "confine/mod.rs",
    "ffi/call.rs",
    "ffi/guarded.rs",
    "ffi/host.rs",
    "ffi/place.rs",
    "ffi/plugin.rs",
    "ffi/request.rs",
    "ffi/table.rs",
    "ffi/topics.rs",
    "fleet/memory/addresses/tests.rs",
    "fleet/memory/region.rs",
    "fleet/memory/scoreboard/tests.rs",
    "fleet/process/title.rs",
    "fleet/process/wipe.rs",
    "fleet/sockets/datagram.rs",
    "fleet/sockets/inbox.rs",
    "gateway/socket.rs",
    "handlers/program.rs",
    "kit/host/process.rs",
    "service/daemonize.rs",
    "service/listen_fds.rs",
    "service/mod.rs",
    "service/start_signals.rs",
    "supervisor/child.rs",
    "supervisor/spawn.rs",
    "supervisor/upgrade.rs",
    "worker/base/heap.rs",
    "worker/base/memory.rs",
    "worker/base/poll.rs",
    "worker/base/watch_set.rs",
    "worker/conn/extents.rs",
    "worker/conn/handoff.rs",
    "worker/conn/owned.rs",
    "worker/conn/receive.rs",
    "worker/conn/record.rs",
    "worker/conn/record/foreign.rs",
    "worker/crash/modules.rs",
    "worker/crash/report.rs",
    "worker/crash/rescue.rs",
    "worker/crash/signals.rs",
    "worker/crash/start.rs",
    "worker/crash/threads.rs",
    "worker/crash/traps.rs",
    "worker/process/zygote.rs",
    "worker/transfer/send.rs",
];

/// All sources below `src`, by their relative path.
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

/// Code without comments, up to a `#[cfg(test)]` at the start of a line.
fn code(text: &str) -> String {
    let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
    lines
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .fold(String::new(), |all, line| all + line + "\n")
}

#[test]
fn unsafe_is_in_listed_files_only_and_has_safety_comments() {
    let sources = sources();
    for (file, text) in &sources {
        let blocks = code(text).matches("unsafe {").count();
        let listed = UNSAFE.contains(&file.as_str());
        assert_eq!(blocks > 0, listed, "{file} has {blocks} unsafe blocks; is it listed here?");
        // Clippy requires one at each block; adjacent blocks may share it.
        assert!(blocks == 0 || text.contains("SAFETY:"), "{file}: no SAFETY comment");
    }
    assert!(UNSAFE.iter().all(|file| sources.contains_key(*file)), "a file that is listed is not there");
}

#[test]
fn files_are_not_too_long() {
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

/// What rustfmt does not see to.
#[test]
fn comments_are_not_too_wide() {
    let is_wide = |line: &&str| line.trim_start().starts_with("//") && line.chars().count() > 120;
    for (file, text) in sources() {
        assert_eq!(text.lines().find(is_wide), None, "{file}: a comment of more than 120 columns");
    }
}

#[test]
fn comments_and_tests_are_not_code() {
    assert_eq!(code("a // b\n// c\n#[cfg(test)]\nd"), "a \n\n");
}
