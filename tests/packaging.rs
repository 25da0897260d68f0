//! Installation: `make install` compared with the Debian package, and the files of `packaging` compared with the
//! program. `.ci/package` builds and installs the package itself.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::de::DeTable;
use wshd::cli;
use wshd::config::Config;
use wshd::exit::Exit;

const CONFIGURATION: &str = include_str!("../packaging/wshd.conf");
const UNIT: &str = include_str!("../packaging/wshd.service");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_wshd"))
}

/// Runs `make install`; false if there is no make(1).
fn install(variables: &[&str]) -> bool {
    let built = format!("BUILT={}", program().parent().unwrap().display());
    let mut make = Command::new("make");
    let Ok(output) = make.current_dir(root()).args(["install", &built]).args(variables).output() else {
        println!("skipped: make is not installed (.ci/run installs it)");
        return false;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    true
}

/// All files below a directory with their modes, by their paths from there.
fn files_in(dir: &Path) -> BTreeSet<(String, u32)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let mut found = Vec::new();
    walk(dir, &mut found);
    let named = |path: PathBuf| {
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        (path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned(), mode)
    };
    found.into_iter().map(named).collect()
}

/// The files of the Debian package, from its description.
fn packaged() -> BTreeSet<(String, u32)> {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest = DeTable::parse(&text).unwrap().into_inner();
    let deb = ["package", "metadata", "deb"]
        .iter()
        .fold(&manifest, |table, key| table.get(*key).unwrap().get_ref().as_table().unwrap());
    let assets = deb.get("assets").unwrap().get_ref().as_array().unwrap();
    let described = assets.iter().flat_map(|asset| {
        let asset = asset.get_ref().as_array().unwrap();
        let [source, target, mode] = [0, 1, 2].map(|at| asset.get(at).unwrap().get_ref().as_str().unwrap());
        let mode = u32::from_str_radix(mode, 8).unwrap();
        let sources = match source.split_once("/*.rs") {
            Some((directory, _)) => {
                files_in(&root().join(directory)).into_iter().map(|(name, _)| name).collect()
            }
            None => {
                assert!(
                    source.starts_with("target/") || root().join(source).exists(),
                    "there is no {source}"
                );
                vec![source.to_owned()]
            }
        };
        sources.into_iter().map(move |source| {
            let name = Path::new(&source).file_name().unwrap().to_str().unwrap();
            (if target.ends_with('/') { format!("{target}{name}") } else { target.to_owned() }, mode)
        })
    });
    // cargo deb adds these itself.
    let added = [
        "lib/systemd/system/wshd.service",
        "lib/sysusers.d/wshd.conf",
        "lib/tmpfiles.d/wshd.conf",
        "share/doc/wshd/copyright",
    ];
    // Only Debian's tools read these.
    let is_ours = |(path, _): &(String, u32)| !path.starts_with("usr/share/lintian/");
    described.chain(added.map(|path| (format!("usr/{path}"), 0o644))).filter(is_ours).collect()
}

#[test]
fn make_installs_the_files_of_the_package() {
    let stage = tempfile::tempdir().unwrap();
    if install(&[&format!("DESTDIR={}", stage.path().display()), "PREFIX=/usr"]) {
        assert_eq!(files_in(stage.path()), packaged());
    }
}

#[test]
fn installed_files_can_be_removed() {
    let stage = tempfile::tempdir().unwrap();
    let variables = [format!("DESTDIR={}", stage.path().display()), "SYSCONFDIR=/usr/local/etc".to_owned()];
    let variables: Vec<&str> = variables.iter().map(String::as_str).collect();
    if !install(&variables) {
        return;
    }
    let uninstall =
        Command::new("make").current_dir(root()).arg("uninstall").args(&variables).output().unwrap();
    assert!(uninstall.status.success(), "{}", String::from_utf8_lossy(&uninstall.stderr));
    // The administrator's file stays.
    let left: Vec<String> = files_in(stage.path()).into_iter().map(|(path, _)| path).collect();
    assert_eq!(left, ["usr/local/etc/wshd/wshd.conf"]);
    assert!(!stage.path().join("usr/local/lib/wshd").exists());
}

/// The crate is installed as source: a handler builds against it without a registry.
#[test]
fn the_installed_crate_needs_no_other() {
    let manifest = fs::read_to_string(root().join("include/rust/Cargo.toml")).unwrap();
    assert!(!manifest.contains("dependencies") && !manifest.contains("workspace"), "{manifest}");
}

#[test]
fn a_prefix_is_respected() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().to_str().unwrap();
    let variables = [format!("PREFIX={prefix}"), format!("SYSCONFDIR={prefix}/etc")];
    let variables: Vec<&str> = variables.iter().map(String::as_str).collect();
    if !install(&variables) {
        return;
    }
    let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
    assert!(read("lib/pkgconfig/wshd.pc").contains(&format!("\nprefix={prefix}\n")));
    assert!(read("lib/systemd/system/wshd.service").contains(&format!("\nExecStart={prefix}/bin/wshd ")));
    let handlers = format!("\nwebsock_handlers = \"{prefix}/lib/wshd/handlers\"\n");
    assert!(read("etc/wshd/wshd.conf").contains(&handlers));
    // Installed by the administrator.
    fs::write(dir.path().join("etc/wshd/wshd.conf"), "changed").unwrap();
    assert!(install(&variables));
    assert_eq!(read("etc/wshd/wshd.conf"), "changed");

    let unit = dir.path().join("lib/systemd/system/wshd.service");
    match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output() {
        Err(_) => println!("skipped: systemd-analyze is not installed"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !said.contains("wshd"), "{said}");
        }
    }
}

/// Builds, tests and installs the example with CMake and with Meson.
#[test]
#[ignore = "needs cmake, meson and pkg-config"]
fn the_examples_are_built_by_cmake_and_by_meson() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("usr");
    let variables = ["PREFIX", "SYSCONFDIR"].map(|name| format!("{name}={}", prefix.display()));
    assert!(install(&[&variables[0], &variables[1]]), "make is needed");
    let sources = prefix.join("share/doc/wshd/examples");
    let path = format!("{}:{}", prefix.join("bin").display(), std::env::var("PATH").unwrap());
    let run = |line: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-ec", line, "sh"]).arg(&sources).current_dir(dir.path());
        shell.env("PATH", &path).env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")).env_remove("MAKEFLAGS");
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    };
    let installed = prefix.join("lib/wshd/handlers/echo_wsh.so");
    for lines in [
        ["cmake -S \"$1\" -B c && cmake --build c && ctest --test-dir c", "cmake --install c"],
        ["meson setup m \"$1\" && meson test -C m", "meson install -C m"],
    ] {
        fs::remove_file(&installed).unwrap();
        lines.into_iter().for_each(run);
        assert!(Command::new(program()).arg("check").arg(&installed).output().unwrap().status.success());
    }
}

/// The configuration from the text of a file, with directories that exist.
fn parse(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wshd.conf");
    let text = ["/usr/lib/wshd/handlers", "/srv/www", "/var/lib/wshd", "/var/log/wshd"]
        .iter()
        .fold(text.to_owned(), |text, place| text.replace(place, dir.path().to_str().unwrap()));
    fs::write(&path, &text).unwrap();
    match cli::parse(["wshd".into(), "-f".into(), OsString::from(path)], None) {
        Ok(cli::Command::Serve(config)) => *config,
        other => panic!("{other:?}\n{text}"),
    }
}

#[test]
fn the_default_configuration_is_valid() {
    let config = parse(CONFIGURATION);
    assert_eq!(config.listen.len(), 1);
    assert!(config.crash_records.is_some());
}

#[test]
fn the_commented_settings_of_the_default_configuration_are_valid() {
    let lines = CONFIGURATION.lines().map(|line| {
        let is_proposal = |text: &&str| text.starts_with('[') || text.contains(" = ");
        line.strip_prefix("# ").filter(is_proposal).unwrap_or(line)
    });
    // A key that is already set has a commented alternative.
    let proposed = lines.clone().filter(|line| line.starts_with("server_host")).count();
    assert_eq!(proposed, 2);
    let text: Vec<&str> = lines.filter(|line| *line != "server_host = \"127.0.0.1\"").collect();
    let config = parse(&text.join("\n"));
    assert_eq!((config.pools.len(), config.listen.len()), (2, 2));
    assert_eq!(config.settings["/chat"].len(), 1);
}

#[test]
fn the_unit_knows_the_exit_codes() {
    let line = UNIT.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus=")).unwrap();
    assert_eq!(line, format!("{} {}", Exit::Usage.code(), Exit::Config.code()));
}

#[test]
fn the_pkg_config_file_has_the_version() {
    let file = include_str!("../packaging/wshd.pc");
    assert!(file.contains(concat!("\nVersion: ", env!("CARGO_PKG_VERSION"), "\n")));
}

#[test]
fn the_shell_completes() {
    let script = r#"
        source packaging/completions/wshd.bash
        complete -p wshd >/dev/null || exit 1
        COMP_WORDS=(wshd --pid) COMP_CWORD=1 COMPREPLY=()
        _wshd wshd --pid wshd
        echo "${COMPREPLY[@]}"
    "#;
    let path = format!("{}:{}", program().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output =
        Command::new("bash").current_dir(root()).args(["-c", script]).env("PATH", path).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "--pid-file\n", "{output:?}");
}

/// Names of metrics in a text, without the endings that their kinds add.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names = text.split(|c| !is_name(c)).filter(|word| word.starts_with("wshd_"));
    let without = |name, end| str::strip_suffix(name, end).unwrap_or(name);
    names.map(|name| ["_total", "_bucket", "_info"].into_iter().fold(name, without)).collect()
}

#[test]
fn dashboard_and_alerts_use_existing_metrics() {
    let families = [include_str!("../src/metrics/families.rs"), include_str!("../src/metrics/processes.rs")];
    let known: BTreeSet<&str> = families.into_iter().flat_map(metrics_in).collect();
    let (dashboard, rules) = (
        include_str!("../packaging/examples/grafana.json"),
        include_str!("../packaging/examples/prometheus-rules.yml"),
    );
    for (text, least) in [(dashboard, 15), (rules, 6)] {
        let asked = metrics_in(text);
        assert!(asked.len() >= least);
        assert_eq!(asked.difference(&known).collect::<Vec<_>>(), Vec::<&&str>::new());
    }
    serde_json::from_str::<serde_json::Value>(dashboard).unwrap();
}

#[test]
fn instances_have_their_own_unit() {
    let unit = include_str!("../packaging/wshd@.service");
    let of_instance = |line: &str| {
        let line = line.replace("/%i.conf", "/wshd.conf").replace(" --instance %i", "").replace("-%i", "");
        line.replace("server %i", "server")
    };
    let settings = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#')).map(of_instance).collect()
    };
    assert_eq!(settings(unit), settings(UNIT), "but for the name of the instance they are the same");
}
