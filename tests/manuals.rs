//! Compares the manual pages with the sources. `cli.rs` compares the options with wshd(8), `abi.rs` the
//! header with ws_handler(3).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const HOW_IT_WORKS: &str = include_str!("../man/wshd.7");
const README: &str = include_str!("../README.md");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_in(directory: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(directory)).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Words that begin with `src/`, `tests/` and so on.
fn paths_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "/._-".contains(c)));
    let rooms = ["src/", "tests/", "ctests/", "fuzz/", "benches/", "man/", "plugins/", "include/"];
    let paths = words.map(|word| word.trim_end_matches('.'));
    paths.filter(|word| rooms.iter().any(|room| word.starts_with(room))).collect()
}

#[test]
fn every_page_is_clean() {
    if Command::new("mandoc").arg("-Tlint").arg("/dev/null").output().is_err() {
        println!("skipped: mandoc is not installed (.ci/run installs it)");
        return;
    }
    let output =
        Command::new("mandoc").args(["-Tlint", "-W", "warning"]).args(files_in("man")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn every_file_that_is_named_exists() {
    for (page, text) in [("wshd.7", HOW_IT_WORKS), ("README.md", README)] {
        let paths = paths_in(text);
        assert!(!paths.is_empty(), "{page} names files");
        for path in paths {
            assert!(root().join(path).exists(), "{page} names {path}");
        }
    }
}

/// `.Xr NAME SECTION`, and the line before it.
fn references(text: &str) -> impl Iterator<Item = (&str, (&str, &str))> {
    let lines = text.lines().zip(text.lines().skip(1));
    lines.filter_map(|(before, line)| {
        let mut words = line.split("Xr ").nth(1)?.split(' ');
        Some((before, (words.next()?, words.next()?)))
    })
}

/// References to our own pages: the page exists, and has the section before it, as in "see RELOAD in wshd(8)".
#[test]
fn every_reference_has_its_target() {
    for page in files_in("man") {
        let text = std::fs::read_to_string(&page).unwrap();
        for (before, (name, section)) in references(&text) {
            if !name.starts_with("wshd") && name != "ws_handler" {
                continue;
            }
            let target = root().join(format!("man/{name}.{section}"));
            let Ok(target) = std::fs::read_to_string(target) else {
                panic!("{} refers to {name}({section})", page.display());
            };
            let is_heading = |word: &&str| word.chars().all(|c| c.is_ascii_uppercase() || c == '/');
            let heading = before.strip_suffix(" in").map(|before| {
                let words: Vec<&str> = before.rsplit(' ').take_while(is_heading).collect();
                words.into_iter().rev().collect::<Vec<_>>().join(" ")
            });
            if let Some(heading) = heading.filter(|heading| !heading.is_empty()) {
                let is_there = target.contains(&format!("\n.Sh {heading}\n"));
                assert!(is_there, "{} refers to {heading} in {name}({section})", page.display());
            }
        }
        for heading in text.lines().filter_map(|line| line.split(".Sx ").nth(1)) {
            let heading = heading.trim_end_matches([' ', '.', ',', ';', ':']);
            let is_there = ["Sh", "Ss"].iter().any(|kind| text.contains(&format!("\n.{kind} {heading}\n")));
            assert!(is_there, "{} refers to its {heading}", page.display());
        }
    }
}

/// The rooms of `src/`, directories and files.
#[test]
fn every_room_is_named() {
    let named = paths_in(HOW_IT_WORKS);
    for room in files_in("src") {
        let path = room.strip_prefix(root()).unwrap().to_str().unwrap();
        // The list of modules is not a room.
        if path == "src/lib.rs" {
            continue;
        }
        assert!(named.contains(path), "wshd(7) does not speak of {path}");
        let name = path.strip_prefix("src/").unwrap();
        let in_map = if room.is_dir() { format!("`{name}/`") } else { format!("`{name}`") };
        assert!(README.contains(&in_map), "the map in README.md does not have {in_map}");
    }
}

/// The handler in ten lines compiles and passes the check.
#[test]
fn the_handler_in_the_readme_works() {
    let block = README.split("\n\n    #include <ws_handler.h>\n").nth(1).unwrap();
    let indented = block.lines().take_while(|line| line.is_empty() || line.starts_with("    "));
    let dir = tempfile::tempdir().unwrap();
    let (source, object) = (dir.path().join("hello_wsh.c"), dir.path().join("hello_wsh.so"));
    let lines: Vec<&str> = ["#include <ws_handler.h>"].into_iter().chain(indented).collect();
    std::fs::write(&source, lines.join("\n")).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Iinclude"]).current_dir(root());
    assert!(cc.arg(&source).arg("-o").arg(&object).status().unwrap().success());
    let check = Command::new(env!("CARGO_BIN_EXE_wshd")).arg("check").arg(&object).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

/// The text between these lines is generated from the table of settings; UPDATE_MANUALS in the environment updates it.
#[test]
fn settings_match_the_table() {
    use wshd::settings::{Scope, manual};
    let parts = [
        ("man/wshd.8", "options", manual::options()),
        ("man/wshd.conf.5", "server", manual::keys(Scope::Server)),
        ("man/wshd.conf.5", "listener", manual::keys(Scope::Listener)),
        ("man/wshd.conf.5", "handler", manual::keys(Scope::Handler)),
        ("man/wshd.conf.5", "pool", manual::keys(Scope::Pool)),
    ];
    for (page, part, expected) in parts {
        let text = std::fs::read_to_string(root().join(page)).unwrap();
        let begin = format!(".\\\" settings: {part} (made by tests/manuals.rs)\n");
        let (before, rest) = text.split_once(&begin).unwrap();
        let (found, after) = rest.split_once(".\\\" end of settings\n").unwrap();
        if std::env::var_os("UPDATE_MANUALS").is_some() {
            let text = format!("{before}{begin}{expected}.\\\" end of settings\n{after}");
            std::fs::write(root().join(page), text).unwrap();
        } else {
            assert!(found == expected, "{page}: run UPDATE_MANUALS=1 cargo test --test manuals");
        }
    }
}

/// Command lines of this program in a page: after a prompt, or, in the README, indented.
fn command_lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let program = wshd::cli::command();
    text.lines().filter_map(move |line| {
        let line = [".Dl ", "    ", "$ ", "# "]
            .iter()
            .fold(line, |line, begin| line.strip_prefix(begin).unwrap_or(line));
        let line = line.rsplit("| ").next()?.split([';', '>', '&']).next()?.split(" #").next()?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_known = |word: &str| word.starts_with('-') || program.find_subcommand(word).is_some();
        (words.len() > 1 && words[0] == "wshd" && is_known(words[1])).then_some(words)
    })
}

#[test]
fn command_lines_are_valid() {
    let mut count = 0;
    for page in files_in("man").into_iter().chain([root().join("README.md")]) {
        let text = std::fs::read_to_string(&page).unwrap();
        for words in command_lines(&text) {
            let result = wshd::cli::parse(words.iter().map(Into::into), None);
            let is_wrong = matches!(&result, Err(wshd::cli::Error::Usage(error)) if error.use_stderr());
            assert!(!is_wrong, "{}: {words:?}: {}", page.display(), result.err().unwrap());
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}

/// `key = "value"` in the text of a page, and the displays of wshd.conf(5). Files that they name do not exist.
#[test]
fn configurations_have_existing_keys() {
    let dir = tempfile::tempdir().unwrap();
    let complaint = |text: &str| {
        let file = dir.path().join("wshd.conf");
        std::fs::write(&file, text).unwrap();
        let args = ["wshd", "-f", file.to_str().unwrap()].map(Into::into);
        wshd::cli::parse(args, None).err().map_or(String::new(), |error| error.to_string())
    };
    let is_unknown = |text: &str| complaint(text).contains("no such key");
    for page in files_in("man") {
        let text = std::fs::read_to_string(&page).unwrap().replace("\\(dq", "\"");
        let inline =
            text.lines().filter_map(|line| line.strip_prefix(".Ql ")).filter(|line| line.contains(" = "));
        for line in inline.map(|line| line.trim_end_matches([' ', '.', ',', ';', ':'])) {
            let is_wrong = is_unknown(line) && is_unknown(&format!("[handler.\"/a\"]\n{line}"));
            assert!(!is_wrong, "{}: {line}", page.display());
        }
        let displays = text.split("\n.Bd -literal").skip(1).filter(|_| page.ends_with("wshd.conf.5"));
        let displays =
            displays.map(|display| display.split("\n.Ed").next().unwrap().split_once('\n').unwrap().1);
        // tests/config_file.rs has the one under EXAMPLES, which needs its directories.
        let displays =
            displays.filter(|display| display.contains(" = ") && !display.contains("document_root"));
        for display in displays {
            let why = complaint(display);
            let is_wrong = ["no such key", "expected"].iter().any(|what| why.contains(what));
            assert!(!is_wrong, "{}: {why}\n{display}", page.display());
        }
    }
}

/// The requests in wshd-ctl(8) are valid.
#[test]
fn requests_are_valid() {
    let page = std::fs::read_to_string(root().join("man/wshd-ctl.8")).unwrap();
    let mut count = 0;
    for line in page.lines().filter(|line| line.starts_with("{\"command\"")) {
        let request = serde_json::from_str::<wshd::ctl::request::Request>(line);
        assert!(request.is_ok(), "{line}: {request:?}");
        count += 1;
    }
    assert_eq!(count, 17);
}
