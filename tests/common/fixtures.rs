//! Handlers for tests, compiled on demand from `ctests/fixtures` and
//! `plugins`.
//!
//! A library is built once for all tests and test processes, which may run in
//! parallel: each builds a copy and renames it. Its directory is named after a hash
//! of all sources, so that a change causes a rebuild. A source sets flags of its
//! own with a line `fixture-flags: ...`.
#![allow(dead_code)] // not every test that includes this needs all of it
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use tempfile::TempDir;

/// The library of `ctests/fixtures/NAME_wsh.*` or `plugins/NAME_wsh.*`.
pub fn fixture(name: &str) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock();
    let source = source_of(name);
    let library = built_dir().join(format!("{name}_wsh.so"));
    match source.extension().and_then(|extension| extension.to_str()) {
        Some("rs") => compile_rust(&source, &library),
        Some("cc") => compile_c(&source, &library, &compiler("CXX", "c++"), "-std=c++11"),
        _ => compile_c(&source, &library, &compiler("CC", "cc"), "-std=gnu99"),
    }
    library
}

/// A directory of handlers for `--websock-handlers`. Each name is that of
/// a fixture, served as `/NAME`, or `PATH=NAME`, served as `/PATH`.
pub fn handlers_dir(names: &[&str]) -> TempDir {
    let dir = TempDir::with_prefix("wshd-handlers-").unwrap();
    for name in names {
        let (path, name) = name.split_once('=').unwrap_or((name, name));
        add_handler(dir.path(), path, name);
    }
    dir
}

/// Installs a fixture in a handler directory as the resource `/path`; an existing one
/// is replaced by rename.
pub fn add_handler(dir: &Path, path: &str, name: &str) {
    let target = dir.join(format!("{path}_wsh.so"));
    let passing = dir.join(format!("{path}_wsh.so.new"));
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    // A copy, since the real path of a link would be outside of the directory.
    fs::copy(fixture(name), &passing).unwrap();
    fs::rename(&passing, &target).unwrap();
}

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The command of a compiler: from the environment, or the default.
pub fn compiler(variable: &str, default: &str) -> Vec<String> {
    let words = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    words.split_whitespace().map(str::to_owned).collect()
}

/// The directory for files that tests build.
pub fn built_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let mut hasher = DefaultHasher::new();
        for input in ["include", "plugins", "ctests", "tests/common/fixtures.rs"] {
            hash_below(&root().join(input), &mut hasher);
        }
        for variable in ["CC", "CXX", "RUSTC"] {
            std::env::var_os(variable).hash(&mut hasher);
        }
        let name = format!("fixtures-{:016x}", hasher.finish());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    })
}

/// Runs a command, which must succeed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn source_of(name: &str) -> PathBuf {
    ["ctests/fixtures", "plugins", "ctests"]
        .iter()
        .flat_map(|dir| ["c", "cc", "rs"].map(|kind| root().join(dir).join(format!("{name}_wsh.{kind}"))))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("there is no fixture {name}_wsh.c, .cc or .rs"))
}

fn compile_c(source: &Path, library: &Path, compiler: &[String], standard: &str) {
    build(library, |output| {
        let mut command = Command::new(&compiler[0]);
        command.args(&compiler[1..]).args([standard, "-O1", "-g", "-shared", "-fPIC", "-pthread"]);
        command.args(["-Wall", "-Wextra", "-fvisibility=hidden", "-I"]).arg(root().join("include"));
        command.args(own_flags(source)).arg(source).arg("-o").arg(output);
        command
    });
}

fn compile_rust(source: &Path, library: &Path) {
    let rustc = || {
        let mut command = Command::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned()));
        command.args(["--edition=2024", "-Copt-level=1"]);
        command
    };
    let rlib = built_dir().join("libws_handler.rlib");
    build(&rlib, |output| {
        let mut command = rustc();
        command.args(["--crate-type=rlib", "--crate-name=ws_handler"]);
        command.arg(root().join("include/rust/src/lib.rs")).arg("-o").arg(output);
        command
    });
    build(library, |output| {
        let mut command = rustc();
        command.args(["--crate-type=cdylib", "--crate-name=fixture", "--extern"]);
        command.arg(format!("ws_handler={}", rlib.display())).args(own_flags(source));
        command.arg(source).arg("-o").arg(output);
        command
    });
}

fn own_flags(source: &Path) -> Vec<String> {
    let text = fs::read_to_string(source).unwrap();
    let flags = text.split_once("fixture-flags:").and_then(|(_, rest)| rest.lines().next());
    flags.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Builds a missing library.
fn build(output: &Path, command: impl FnOnce(&Path) -> Command) {
    if output.exists() {
        return;
    }
    // The name keeps its suffix, by which rustc recognises libraries.
    let dir = built_dir().join(std::process::id().to_string());
    fs::create_dir_all(&dir).unwrap();
    let passing = dir.join(output.file_name().unwrap());
    run(&mut command(&passing));
    fs::rename(&passing, output).unwrap();
    let _ = fs::remove_dir(&dir);
}

fn hash_below(path: &Path, hasher: &mut DefaultHasher) {
    let Ok(entries) = fs::read_dir(path) else {
        fs::read(path).unwrap().hash(hasher);
        return;
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        path.file_name().hash(hasher);
        hash_below(&path, hasher);
    }
}
