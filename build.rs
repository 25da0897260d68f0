//! Builds the example handlers of `plugins/` into `<target>/<profile>/handlers`.
//!
//! C and C++ go to `$CC` and `$CXX` (else `cc` and `c++`, with `$CFLAGS`,
//! `$CXXFLAGS` and `$LDFLAGS`), Rust to `$RUSTC`. `WSHD_SKIP_PLUGINS=1` builds
//! none. Nothing here is part of the server: without the handlers it is complete.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::SystemTime;

/// What all handlers of a language are built from; a change rebuilds them.
const C_INPUTS: [&str; 2] = ["include/ws_handler.h", "build.rs"];
const CC_INPUTS: [&str; 3] = ["include/ws_handler.h", "include/ws_handler.hpp", "build.rs"];
const RUST_INPUTS: [&str; 3] = ["include/rust/src", "include/rust/Cargo.toml", "build.rs"];

fn main() {
    // A handler's _exit and pthread_create are the server's (src/worker/crash/{traps,threads}.rs): its end is noticed, its
    // threads are known, and connections are saved.
    for function in ["_exit", "_Exit", "pthread_create"] {
        println!("cargo::rustc-link-arg-bins=-Wl,--export-dynamic-symbol={function}");
    }
    for input in ["build.rs", "plugins", "include"] {
        println!("cargo::rerun-if-changed={input}");
    }
    for variable in ["CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "WSHD_SKIP_PLUGINS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(error) = list_the_crate() {
        println!("cargo::error={error}");
        std::process::exit(1);
    }
    if env::var_os("WSHD_SKIP_PLUGINS").is_some_and(|value| value == "1") {
        return;
    }
    if let Err(error) = build_handlers() {
        println!("cargo::error={}", error.replace('\n', "\ncargo::error="));
        std::process::exit(1);
    }
}

/// The crate ws-handler as part of the server, for `wshd new`: paths and texts (src/kit/interface.rs).
fn list_the_crate() -> Result<(), String> {
    let root = path_of("CARGO_MANIFEST_DIR")?.join("include/rust");
    let cannot = |error: io::Error| format!("{}: {error}", root.display());
    let entries = fs::read_dir(root.join("src")).map_err(cannot)?;
    let names = entries.map(|entry| Ok(format!("src/{}", entry?.file_name().to_string_lossy())));
    let mut names = names.collect::<io::Result<Vec<String>>>().map_err(cannot)?;
    names.push("Cargo.toml".to_owned());
    names.sort();
    // A checkout may be moved, and its target directory with it.
    let text_of = |name: &String| format!("concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/include/rust/{name}\")");
    let pair = |name: &String| format!("({name:?}, include_str!({})),\n", text_of(name));
    let list: String = names.iter().map(pair).collect();
    fs::write(path_of("OUT_DIR")?.join("ws_handler_crate.rs"), format!("&[\n{list}]\n")).map_err(cannot)
}

fn build_handlers() -> Result<(), String> {
    let out = path_of("OUT_DIR")?;
    let built = out.join("handlers");
    // OUT_DIR is <target>/<profile>/build/<package>/out.
    let placed = out.ancestors().nth(3).ok_or("OUT_DIR is too short")?.join("handlers");
    for dir in [&built, &placed] {
        fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    }

    let sources = sources()?;
    remove_orphans(&sources, &built, &placed)?;
    // Taken from the end: the slow ones first.
    let queue = Mutex::new(sources);
    let failures = Mutex::new(Vec::new());
    let next = || queue.lock().map(|mut queue| queue.pop()).unwrap_or(None);
    thread::scope(|scope| {
        for _ in 0..parallel_jobs() {
            scope.spawn(|| {
                while let Some(source) = next() {
                    let result = compile(&source, &built).and_then(|library| place(&library, &placed));
                    if let (Err(error), Ok(mut failures)) = (result, failures.lock()) {
                        failures.push(error);
                    }
                }
            });
        }
    });
    match failures.into_inner() {
        Ok(failures) if failures.is_empty() => Ok(()),
        Ok(mut failures) => {
            failures.sort();
            failures.dedup(); // a missing compiler fails every handler
            Err(failures.join("\n"))
        }
        Err(_) => Err("a build thread has failed".to_owned()),
    }
}

/// `plugins/*_wsh.{c,cc,rs}`, sorted by what takes long.
fn sources() -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir("plugins").map_err(|error| format!("plugins: {error}"))?;
    let mut sources: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            name.ends_with("_wsh") && matches!(extension(path), "c" | "cc" | "rs")
        })
        .collect();
    sources.sort_by_key(|path| {
        (["c", "cc", "rs"].iter().position(|kind| *kind == extension(path)), path.clone())
    });
    Ok(sources)
}

/// Compiles one handler, unless its library is newer than all it is made of.
fn compile(source: &Path, built: &Path) -> Result<PathBuf, String> {
    let stem = source.file_stem().unwrap_or_default();
    let library = built.join(stem).with_extension("so");
    match extension(source) {
        "c" => compile_c(source, &library, ("CC", "cc", "CFLAGS"), &C_INPUTS)?,
        "cc" => compile_c(source, &library, ("CXX", "c++", "CXXFLAGS"), &CC_INPUTS)?,
        _ => compile_rust(source, &library, built)?,
    }
    Ok(library)
}

fn compile_c(
    source: &Path,
    library: &Path,
    (variable, default, flags): (&str, &str, &str),
    inputs: &[&str],
) -> Result<(), String> {
    let compiler = env::var(variable).unwrap_or_else(|_| default.to_owned());
    let hidden: &[&str] = if variable == "CXX" { &["-fvisibility=hidden", "-fno-gnu-unique"] } else { &[] };
    // clang does not know the second, and has no need of it.
    let hidden =
        if compiler.contains("clang") { hidden.get(..hidden.len() / 2).unwrap_or_default() } else { hidden };
    let mut words = compiler.split_whitespace(); // CC may be "ccache gcc"
    let mut command = Command::new(words.next().unwrap_or(default));
    command.args(words).args(["-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Iinclude"]);
    command.args(hidden).args(env::var(flags).unwrap_or_default().split_whitespace());
    command.arg(source).arg("-o").arg(library);
    command.args(env::var("LDFLAGS").unwrap_or_default().split_whitespace());
    run_if_stale(command, library, source, inputs, &|error| {
        format!(
            "cannot run the compiler \"{compiler}\": {error}. Install gcc and g++ (Debian: apt install \
             gcc g++), name another with CC and CXX, or leave the example handlers out with \
             WSHD_SKIP_PLUGINS=1"
        )
    })
}

/// The crate ws-handler as a library for this handler alone, then the handler.
fn compile_rust(source: &Path, library: &Path, built: &Path) -> Result<(), String> {
    let crate_root = Path::new("include/rust/src/lib.rs");
    let rlib = built.join("libws_handler.rlib");
    let rustc = || -> Result<Command, String> {
        let mut command = Command::new(path_of("RUSTC")?);
        command.args(["--edition=2024", "-Copt-level=2", "-Cpanic=unwind", "-Cstrip=symbols"]);
        if env::var("TARGET") != env::var("HOST") {
            command.args(["--target".to_owned(), env::var("TARGET").unwrap_or_default()]);
        }
        Ok(command)
    };
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let turn = ONE_AT_A_TIME.lock();
    let mut interface = rustc()?;
    interface.args(["--crate-type=rlib", "--crate-name=ws_handler"]).arg(crate_root).arg("-o").arg(&rlib);
    run_if_stale(interface, &rlib, crate_root, &RUST_INPUTS, &|error| format!("cannot run rustc: {error}"))?;
    drop(turn);

    let mut handler = rustc()?;
    handler.arg("--crate-type=cdylib").arg("--extern").arg(format!("ws_handler={}", rlib.display()));
    handler.arg(source).arg("-o").arg(library);
    run_if_stale(handler, library, source, &RUST_INPUTS, &|error| format!("cannot run rustc: {error}"))
}

/// Runs the command if `output` is older than its inputs or was made by another
/// command. Warnings of the compiler are shown, its errors returned.
fn run_if_stale(
    mut command: Command,
    output: &Path,
    source: &Path,
    inputs: &[&str],
    not_run: &dyn Fn(io::Error) -> String,
) -> Result<(), String> {
    let made_by = output.with_extension("command");
    let line = format!("{command:?}");
    let newest = inputs.iter().map(Path::new).chain([source]).map(newest_below).max().flatten();
    let fresh = modified(output).is_some_and(|built| Some(built) > newest);
    if fresh && fs::read_to_string(&made_by).is_ok_and(|before| before == line) {
        return Ok(());
    }
    let _ = fs::remove_file(&made_by);
    let result = command.output().map_err(not_run)?;
    let said = String::from_utf8_lossy(&result.stderr);
    if !result.status.success() {
        return Err(format!("{} is not built ({}):\n{said}", source.display(), result.status));
    }
    for line in said.lines() {
        println!("cargo::warning={line}");
    }
    fs::write(&made_by, line).map_err(|error| format!("{}: {error}", made_by.display()))
}

/// Puts a library beside the server by rename, so that a running server keeps
/// the file that it has mapped.
fn place(library: &Path, dir: &Path) -> Result<(), String> {
    let name = library.file_name().unwrap_or_default();
    let target = dir.join(name);
    if modified(&target).is_some_and(|placed| Some(placed) >= modified(library)) {
        return Ok(());
    }
    let passing = dir.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    fs::copy(library, &passing)
        .and_then(|_| fs::rename(&passing, &target))
        .map_err(|error| format!("{}: {error}", target.display()))
}

/// Takes away what was built from a source that is no longer there.
fn remove_orphans(sources: &[PathBuf], built: &Path, placed: &Path) -> Result<(), String> {
    let entries = fs::read_dir(built).map_err(|error| format!("{}: {error}", built.display()))?;
    for library in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
        let has_source = sources.iter().any(|source| source.file_stem() == library.file_stem());
        if extension(&library) == "so" && !has_source {
            let _ = fs::remove_file(&library);
            let _ = fs::remove_file(placed.join(library.file_name().unwrap_or_default()));
        }
    }
    Ok(())
}

fn parallel_jobs() -> usize {
    env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(2).clamp(1, 16)
}

fn path_of(variable: &str) -> Result<PathBuf, String> {
    env::var_os(variable).map(PathBuf::from).ok_or_else(|| format!("{variable} is not set"))
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

/// The time of the youngest file at or below `path`.
fn newest_below(path: &Path) -> Option<SystemTime> {
    match fs::read_dir(path) {
        Ok(entries) => entries.filter_map(|entry| newest_below(&entry.ok()?.path())).max(),
        Err(_) => modified(path),
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}
