//! The tutorial and the porting guide: their examples are compiled and tested.

use std::collections::BTreeSet;

use super::daemon::{Dir, output_of, wshd};
use super::ends;

const TUTORIAL: &str = include_str!("../../man/wshd-tutorial.7");
const PORTING: &str = include_str!("../../man/wshd-porting.7");

/// The displays (`.Bd` to `.Ed`) of a manual page, as printed.
fn displays(page: &str) -> impl Iterator<Item = String> {
    let displays = page.split("\n.Bd ").skip(1);
    displays.map(|display| {
        let text = display.split_once('\n').unwrap().1.split("\n.Ed").next().unwrap();
        format!("{}\n", text.replace("\\e", "\\"))
    })
}

/// The display that begins with this.
fn display(begins: &str) -> String {
    displays(TUTORIAL).find(|text| text.starts_with(begins)).unwrap_or_else(|| panic!("no {begins:?}"))
}

/// Compiles the source and runs a conversation.
#[track_caller]
fn talk(dir: &Dir, file: &str, script: &str) {
    std::fs::write(dir.path().join("chat.test"), script).unwrap();
    let mut test = wshd();
    test.args(["test", "--timeout", "25s", file, "chat.test"]).current_dir(dir.path());
    test.env("CFLAGS", "-std=c99 -pedantic -Werror").env("CXXFLAGS", "-std=c++11 -pedantic -Werror");
    let output = output_of(&mut test).unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stdout));
    ends(&output, 0, "");
}

#[test]
fn every_step_of_the_tutorial_compiles_and_passes_its_test() {
    let dir = Dir::new();
    for step in 1..=4 {
        std::fs::write(dir.path().join("chat_wsh.c"), display(&format!("/* chat_wsh.c, step {step}")))
            .unwrap();
        // The last step keeps the script.
        talk(&dir, "chat_wsh.c", &display(&format!("# chat.test, step {}", step.min(3))));
    }
    std::fs::write(dir.path().join("chat_wsh.cc"), display("// chat_wsh.cc")).unwrap();
    talk(&dir, "chat_wsh.cc", &display("# chat.test, step 3"));
}

#[test]
#[ignore = "runs cargo"]
fn the_chat_in_rust_passes_the_same_test() {
    let dir = Dir::new();
    ends(&output_of(wshd().args(["new", "chat", "-l", "rust"]).current_dir(dir.path())).unwrap(), 0, "");
    std::fs::write(dir.path().join("chat/src/lib.rs"), display("// src/lib.rs")).unwrap();
    talk(&dir, "chat", &display("# chat.test, step 3"));
}

#[test]
fn the_porting_guide_names_existing_functions_and_its_examples_work() {
    let header = include_str!("../../include/ws_handler.h");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: BTreeSet<&str> = PORTING.split(|c| !is_name(c)).collect();
    let functions = words.iter().filter(|word| word.starts_with("WS_") || word.starts_with("ws_"));
    // These are attributes of mod_pywebsocket's request.
    let theirs = ["ws_extension_processors", "ws_stream"];
    for name in functions.filter(|name| !theirs.contains(name)) {
        assert!(header.contains(name), "{name} is not in ws_handler.h");
    }
    let dir = Dir::new();
    let examples: Vec<String> =
        displays(PORTING).filter(|text| text.starts_with("#include <ws_handler.h>")).collect();
    let scripts = [
        "> a\n< a\n> Goodbye\n< Goodbye\n<! close 1000\n",
        "> a\n< a\n",
        "ann> a\nann< a\nbob> b\nann< b\nbob< b\n",
    ];
    assert_eq!(examples.len(), scripts.len());
    for (example, script) in examples.iter().zip(scripts) {
        std::fs::write(dir.path().join("chat_wsh.c"), example).unwrap();
        talk(&dir, "chat_wsh.c", script);
    }
}
