//! Probing plugins, valid and invalid ones.
#![allow(clippy::unwrap_used)]

#[path = "common/server.rs"]
mod daemon;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use daemon::{Dir, ECHO, Server};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use wshd::cli::{self, Command};
use wshd::config::Config;
use wshd::ffi::plugin::Style;
use wshd::fleet::routes::Routes;
use wshd::handlers::discover::discover_by;
use wshd::handlers::message::{Offer, Request};
use wshd::handlers::probe::{self, LIMIT, Report};

/// The program that probes.
const PROGRAM: &str = env!("CARGO_BIN_EXE_wshd");

/// The reports of these files, probed in parallel.
fn reports(requests: impl IntoIterator<Item = Request>) -> Vec<Report> {
    probe::probe(PROGRAM.as_ref(), requests.into_iter().collect(), &|| true).unwrap()
}

fn request(file: &Path, start: bool) -> Request {
    Request { file: file.into(), settings: Vec::new(), start, confinement: None }
}

fn report(file: &Path, start: bool) -> Report {
    reports([request(file, start)]).remove(0)
}

/// Probes a file without confinement.
fn probe(file: &Path) -> Result<Offer, String> {
    let Report { offer, fault, .. } = report(file, false);
    fault.map_or_else(|| Ok(offer.unwrap()), Err)
}

/// A handler with this code in a constructor.
fn constructor(code: &str) -> String {
    format!(
        "#define _GNU_SOURCE\n#include <signal.h>\n#include <stdlib.h>\n#include <unistd.h>\n#include <fcntl.h>\n#include <stdio.h>\n\
         __attribute__((constructor)) static void at_load(void) {{ {code} }}\n{ECHO}"
    )
}

/// A handler with this entry function.
fn entry(code: &str) -> String {
    format!(
        "#include <ws_handler.h>\n\
         static void on_message(ws_conn conn, const ws_message *msg) {{ (void)conn; (void)msg; }}\n\
         const ws_handler *ws_handler_entry_v1(const ws_host *host) {{ (void)host; {code} }}"
    )
}

/// The error of a handler with this source.
#[track_caller]
fn fault(source: &str) -> String {
    let dir = Dir::new();
    probe(&dir.handler("bad", source)).unwrap_err().to_string()
}

#[test]
fn an_offer_has_all_properties() {
    let dir = Dir::new();
    let event = dir.handler(
        "x",
        r#"
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; }
        WS_HANDLER(.name = "ch\u00e4t", .version = "2.1", .protocols = "chat.v2, chat.v1",
                   .flags = WS_STREAM | WS_KEEP_REQUEST | 0x100, .on_message = on_message);
        "#,
    );
    let offer = probe(&event).unwrap();
    assert_eq!(
        offer,
        Offer {
            name: "ch\u{e4}t".into(),
            version: "2.1".into(),
            style: Style::Event,
            flags: 0x3_0100,
            abi: 0x1_0000,
            protocols: vec!["chat.v2".into(), "chat.v1".into()],
            size: size_of::<wshd::ffi::raw::ws_handler>(),
            callbacks: vec!["on_message".into()],
        }
    );
    assert_eq!(offer.flag_names(), ["WS_KEEP_REQUEST", "WS_STREAM", "0x100 (unknown)"]);
    assert_eq!(offer.abi_version(), (1, 0));
}

#[test]
fn a_blocking_handler_without_a_name() {
    let dir = Dir::new();
    let source = r#"
        #include <ws_handler.h>
        static int32_t transfer_data(ws_conn conn) { (void)conn; return WS_OK; }
        WS_HANDLER(.transfer_data = transfer_data);
    "#;
    let offer = probe(&dir.handler("nameless", source)).unwrap();
    assert_eq!((offer.name.as_str(), offer.style), ("nameless", Style::Blocking));
    assert!(offer.version.is_empty() && offer.protocols.is_empty());
}

#[test]
fn tables_of_other_sizes() {
    let dir = Dir::new();
    let larger = entry(
        "static struct { ws_handler table; void *later[4]; } handler =\n\
         { { .size = sizeof handler, .abi = WS_ABI + 7, .on_message = on_message }, { 0 } };\n\
         return &handler.table;",
    );
    assert_eq!(probe(&dir.handler("larger", &larger)).unwrap().abi_version(), (1, 7));
    // It ends before `version`, an invalid pointer that must not be read.
    let older = entry(
        "static ws_handler handler = { .size = offsetof(ws_handler, version), .abi = WS_ABI, .name = \"old\",\n\
         .version = (const char *)1, .on_message = on_message };\n\
         return &handler;",
    );
    let error = probe(&dir.handler("older", &older)).unwrap_err().to_string();
    assert!(error.contains("neither transfer_data nor on_message"), "absent means absent: {error}");
    let cut = entry(
        "static ws_handler handler = { .size = offsetof(ws_handler, on_message) + sizeof(void *), .abi = WS_ABI,\n\
         .on_message = on_message, .on_worker_start = 0 };\n\
         return &handler;",
    );
    assert_eq!(probe(&dir.handler("cut", &cut)).unwrap().style, Style::Event);
}

#[test]
fn tables_that_are_wrong() {
    let both = r#"
        #include <ws_handler.h>
        static int32_t transfer_data(ws_conn conn) { (void)conn; return WS_OK; }
        static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; }
        WS_HANDLER(.transfer_data = transfer_data, .on_message = on_message);
    "#;
    assert!(fault(both).contains("both set, expected exactly one"));
    assert!(fault("#include <ws_handler.h>\nWS_HANDLER(.name = \"x\");").contains("expected exactly one"));
    assert!(fault(&entry("(void)on_message; return NULL;")).contains("returned NULL"));
    let table = |members: &str| {
        entry(&format!(
            "static const ws_handler handler = {{ {members}, .on_message = on_message }}; return &handler;"
        ))
    };
    let other = fault(&table(".size = sizeof(ws_handler), .abi = 2u << 16 | 3"));
    assert_eq!(other, "made for another ABI: got 2.3, expected 1.x");
    let small = fault(&table(".size = 8, .abi = WS_ABI"));
    assert!(small.contains("got 8 bytes, expected at least 16"), "{small}");
    let protocols = fault(&table(".size = sizeof(ws_handler), .abi = WS_ABI, .protocols = \"a b\""));
    assert!(protocols.contains("got \"a b\", expected tokens"), "{protocols}");
}

#[test]
fn files_that_are_not_handlers() {
    let dir = Dir::new();
    let text = dir.path().join("text_wsh.so");
    std::fs::write(&text, "#!/bin/sh\n").unwrap();
    let error = probe(&text).unwrap_err().to_string();
    assert!(error.contains("got a file that begins with [23, 21, 2f, 62], expected 7f 45 4c 46"), "{error}");
    std::fs::write(&text, "").unwrap();
    assert!(probe(&text).unwrap_err().to_string().contains("begins with []"));
    std::fs::write(&text, b"\x7fELF and nothing else").unwrap();
    assert!(probe(&text).unwrap_err().to_string().starts_with("cannot be loaded: "));
    assert!(probe(dir.path()).unwrap_err().to_string().contains("not a regular file"));
    let error = probe(&dir.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");

    let error = fault("int answer = 42;");
    assert_eq!(error, "exports no ws_handler_entry_v1: is WS_HANDLER(...) missing?");
    let error = fault(&constructor("extern void nobody_has_this(void); nobody_has_this();"));
    assert!(error.contains("undefined symbol: nobody_has_this"), "{error}");
}

#[test]
fn constructors_that_exit_or_crash() {
    let loading = "while loading (constructors, ws_handler_entry_v1), expected to return";
    for (code, expected) in [
        ("raise(SIGSEGV);", "killed by signal 11 (SIGSEGV)"),
        ("*(volatile int *)8 = 1;", "killed by signal 11 (SIGSEGV)"),
        ("abort();", "killed by signal 6 (SIGABRT)"),
        ("raise(SIGRTMIN);", "killed by signal 34"),
        ("exit(3);", "exited with status 3"),
        ("_exit(0);", "exited with status 0"),
    ] {
        assert_eq!(fault(&constructor(code)), format!("{expected} {loading}"), "{code}");
    }
}

#[test]
fn a_constructor_that_hangs() {
    let begun = Instant::now();
    let error = fault(&constructor("for (;;) pause();"));
    assert_eq!(error, "did not return within 5 s while loading (constructors, ws_handler_entry_v1)");
    assert!(begun.elapsed() >= LIMIT);
}

#[test]
fn a_constructor_that_closes_all_descriptors_gives_no_answer() {
    let error = fault(&constructor("for (int fd = 0; fd < 256; fd++) close(fd);"));
    assert!(error.starts_with("exited with status 1 while loading"), "{error}");
}

#[test]
fn a_forged_answer_of_a_constructor_is_rejected() {
    let dir = Dir::new();
    let offer = r#"{\"offer\":{\"name\":\"x\",\"version\":\"\",\"style\":\"event\",\"flags\":0,\"abi\":65536,\"protocols\":[]}}\n"#;
    let forged = format!("00000000000000000000000000000000{offer}");
    let junk = ["x", "\\n", "\\377\\n", offer, &forged, "{\\\"started\\\":0}\\n", "offer\\0x\\0y\\0end\\0"];
    let cases = junk.iter().flat_map(|junk| ["", "_exit(0);"].map(|end| (*junk, end)));
    let cases: Vec<(&str, &str)> = cases.chain([("x", "for (;;) pause();")]).collect();
    let requests = cases.iter().enumerate().map(|(number, (junk, end))| {
        let code = format!(
            "static const char junk[] = \"{junk}\"; \
             for (int fd = 0; fd < 64; fd++) if (write(fd, junk, sizeof junk - 1) < 0) continue; {end}"
        );
        request(&dir.handler(&number.to_string(), &constructor(&code)), true)
    });
    for (report, case) in reports(requests.collect::<Vec<_>>()).into_iter().zip(cases) {
        let error = report.fault.unwrap().to_string();
        let names_it = error.contains("into a descriptor that is not its own");
        assert!(names_it || !case.1.is_empty(), "{case:?}: {error}");
        assert_eq!(report.offer, None, "{case:?}");
    }
}

/// A handler whose constructor checks a condition and exits with 0 if it holds.
#[track_caller]
fn constructor_finds(expected: &str, request: impl Fn(&Path) -> Request) {
    let dir = Dir::new();
    let code = format!("if (!({expected})) _exit(9);");
    let path = dir.handler("finds", &constructor(&code));
    assert_eq!(reports([request(&path)]).remove(0).fault, None, "{expected}");
}

#[test]
fn a_probe_inherits_nothing() {
    // A descriptor without close-on-exec.
    let kept = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&kept, rustix::io::FdFlags::empty()).unwrap();
    let request = |path: &Path| request(path, false);
    // 0 to 2, and one for the answer.
    let open = "({ int open = 0; for (int fd = 0; fd < 1024; fd++) open += fcntl(fd, F_GETFD) >= 0; open; })";
    constructor_finds(&format!("{open} == 4"), request);
    constructor_finds("read(0, (char[1]){0}, 1) == 0 && write(1, \"x\", 1) == 1", request);
    constructor_finds("getpgid(0) == getpid()", request);
    let blocked = "({ sigset_t set; sigprocmask(SIG_BLOCK, NULL, &set); sigisemptyset(&set); })";
    constructor_finds(blocked, request);
    drop(kept);
}

#[test]
fn a_probe_gets_its_settings_neither_by_argument_nor_by_environment() {
    let dir = Dir::new();
    let source = r#"
        #include <ws_handler.h>
        #include <fcntl.h>
        #include <string.h>
        #include <unistd.h>
        static int has(const char *file, const char *text)
        {
            static char bytes[1 << 16];
            int fd = open(file, O_RDONLY);
            ssize_t size = read(fd, bytes, sizeof bytes);
            close(fd);
            return size <= 0 || memmem(bytes, (size_t)size, text, strlen(text)) != NULL;
        }
        static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; }
        static int32_t start(void)
        {
            if (!ws_bytes_equal(ws_config("secret"), "of this one"))
                return -1;
            return has("/proc/self/cmdline", "of this one") || has("/proc/self/environ", "of this one") ? -2 : 0;
        }
        WS_HANDLER(.name = "settings", .on_message = on_message, .on_worker_start = start);
    "#;
    let file = dir.handler("settings", &format!("#define _GNU_SOURCE\n{source}"));
    let settings = vec![("secret".to_owned(), "of this one".to_owned())];
    let report = reports([Request { settings, ..request(&file, true) }]).remove(0);
    assert_eq!(report.fault, None);
}

#[test]
fn what_a_handler_writes_to_standard_error_is_kept_up_to_a_bound() {
    let dir = Dir::new();
    let path = dir.handler("talks", &constructor("if (write(2, \"no licence\\n\", 11)) abort();"));
    assert_eq!(report(&path, false).log, "no licence\n");
    let flood = "static char line[1 << 12]; for (int i = 0; i < 1 << 12; i++) line[i] = 'x'; \
                 for (int i = 0; i < 100; i++) if (write(2, line, sizeof line) < 0) _exit(1);";
    let log = report(&dir.handler("floods", &constructor(flood)), false).log;
    assert!(log.len() < 5000 && log.ends_with("x\n(405504 bytes more)"), "{log}");
}

#[test]
fn many_are_probed_in_parallel() {
    let dir = Dir::new();
    let (number, all) = (8, dir.path().join("all"));
    // Each one waits for all others.
    let code = format!(
        "int fd = open(\"{}\", O_CREAT | O_APPEND | O_WRONLY, 0600); if (write(fd, \".\", 1) < 0) abort(); \
         while (lseek(fd, 0, SEEK_END) < {number}) usleep(1000);",
        all.display()
    );
    let slow = dir.handler("slow", &constructor(&code));
    let reports = reports((0..number).map(|_| request(&slow, false)));
    assert!(reports.iter().all(|report| report.fault.is_none()), "{reports:?}");
}

#[test]
fn a_process_that_a_constructor_leaves_behind_does_not_delay_the_answer() {
    let dir = Dir::new();
    for (end, expected) in [("", None), ("_exit(7);", Some("exited with status 7"))] {
        let pid = dir.path().join("pid");
        let code = format!(
            "int child = fork(); if (child == 0) {{ sleep(60); _exit(0); }} \
             dprintf(open(\"{}\", O_CREAT | O_WRONLY, 0600), \"%d\", child); {end}",
            pid.display()
        );
        let path = dir.handler("forks", &constructor(&code));
        let is_quick = |_| {
            let begun = Instant::now();
            let error = probe(&path).map(|_| ()).map_err(|error| error.to_string());
            let time = begun.elapsed();
            assert_eq!(error.as_ref().err().map(|error| &error[..20]), expected);
            let left: i32 = std::fs::read_to_string(&pid).unwrap().parse().unwrap();
            daemon::until("what it left behind is gone", || !daemon::is_alive(left));
            std::fs::remove_file(&pid).unwrap();
            time < LIMIT
        };
        assert!((0..5).any(is_quick), "it is waited for");
    }
}

#[test]
fn no_probe_is_left_behind() {
    let dir = Dir::new();
    let good = dir.handler("good", ECHO);
    let bad = dir.handler("bad", &constructor("raise(SIGSEGV);"));
    for _ in 0..10 {
        assert!(probe(&good).is_ok() && probe(&bad).is_err());
    }
    // Other tests probe at the same time, so only zombies count.
    let zombies: Vec<i32> = daemon::children(std::process::id() as i32);
    daemon::until("no zombie is left", || {
        zombies.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    });
}

#[test]
fn a_file_by_a_relative_path_or_a_link() {
    let dir = Dir::new();
    let path = dir.handler("a", ECHO);
    symlink(&path, dir.path().join("b_wsh.so")).unwrap();
    assert_eq!(probe(&dir.path().join("b_wsh.so")).unwrap().name, "echo");
    let up = "../".repeat(std::env::current_dir().unwrap().components().count());
    let relative = format!("{up}{}", path.canonicalize().unwrap().display());
    assert_eq!(probe(relative.as_ref()).unwrap().name, "echo");
}

#[test]
fn a_check_starts_the_handler_too() {
    let dir = Dir::new();
    let start = |name: &str, code: &str| {
        let source = format!(
            "#include <signal.h>\n#include <stdlib.h>\n#include <ws_handler.h>\n\
             static void on_message(ws_conn conn, const ws_message *msg) {{ (void)conn; (void)msg; }}\n\
             static int32_t start(void) {{ {code} }}\n\
             WS_HANDLER(.name = \"started\", .on_message = on_message, .on_worker_start = start);"
        );
        let path = dir.handler(name, &source);
        assert_eq!(probe(&path).unwrap().name, "started", "a probe does not start it");
        let Report { offer, fault, .. } = report(&path, true);
        assert_eq!(offer.unwrap().name, "started");
        fault
    };
    assert_eq!(start("ok", "return ws_worker() == 0 && ws_config(\"x\").data == NULL ? 1 : -1;"), None);
    let fault = start("fails", "return WS_E_FAILED;");
    assert_eq!(fault.as_deref(), Some("on_worker_start returned -9, expected 0 or more"));
    let fault = start("crashes", "raise(SIGFPE); return 0;");
    assert_eq!(fault.as_deref(), Some("killed by signal 8 (SIGFPE) in on_worker_start, expected to return"));
    let fault = start("exits", "exit(0);");
    assert_eq!(fault.as_deref(), Some("exited with status 0 in on_worker_start, expected to return"));
    let fault = start("loops", "for (;;) continue;");
    assert_eq!(fault.as_deref(), Some("did not return within 5 s in on_worker_start"));
}

fn config(dir: &Dir) -> Config {
    let args = ["wshd".into(), "-w".into(), dir.path().into()];
    let Command::Serve(config) = cli::parse(args, None).unwrap() else { unreachable!() };
    *config
}

#[test]
fn a_discovery_can_be_interrupted_and_leaves_nothing_behind() {
    let dir = Dir::new();
    let pids = dir.path().join("pids");
    let code = format!(
        "dprintf(open(\"{}\", O_CREAT | O_APPEND | O_WRONLY, 0600), \"%d\\n\", getpid());",
        pids.display()
    );
    for name in ["a", "b", "c"] {
        dir.handler(name, &constructor(&format!("{code} for (;;) pause();")));
    }
    let are_few = || std::fs::read_to_string(&pids).unwrap_or_default().lines().count() < 3;
    let found = discover_by((PROGRAM.as_ref(), None), &config(&dir), &Routes::default(), &are_few);
    assert_eq!(found.err().as_deref(), Some("interrupted"));
    for pid in std::fs::read_to_string(&pids).unwrap().lines() {
        let status = waitpid(Pid::from_raw(pid.parse().unwrap()), None).unwrap();
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
    }
}

#[test]
fn a_discovery_ends_in_routes_and_faults() {
    let dir = Dir::new();
    for (name, source) in [("good", ECHO), ("bad", "int x;"), ("dies", &constructor("abort();"))] {
        dir.handler(name, source);
    }
    symlink(dir.path().join("good_wsh.so"), dir.path().join("link_wsh.so")).unwrap();
    symlink(dir.path().join("dies_wsh.so"), dir.path().join("later_wsh.so")).unwrap();
    let find = |program: &str, known: &Routes| {
        discover_by((program.as_ref(), None), &config(&dir), known, &|| true).unwrap()
    };
    let (routes, faults) = find(PROGRAM, &Routes::default());
    let resources: Vec<&str> = routes.resources().map(|(resource, _)| resource).collect();
    assert_eq!(resources, ["/good", "/link"]);
    let name = |name: &str| format!("handler {}/{name}_wsh.so: ", dir.path().display());
    assert!(faults[0].starts_with(&(name("bad") + "exports no ws_handler_entry_v1")), "{faults:?}");
    assert!(faults[1].starts_with(&(name("dies") + "killed by signal 6 (SIGABRT)")), "{faults:?}");
    assert!(faults[1].ends_with("; /dies is not served"), "{faults:?}");
    assert_eq!(faults[2], "/later is not served: it is another name of /dies");
    // Unchanged files are not probed again.
    std::fs::remove_file(dir.path().join("bad_wsh.so")).unwrap();
    std::fs::remove_file(dir.path().join("dies_wsh.so")).unwrap();
    std::fs::remove_file(dir.path().join("later_wsh.so")).unwrap();
    let (again, faults) = find("/nowhere", &routes);
    assert_eq!((again.resources().len(), faults), (2, vec![]));
    let (_, faults) = find("/nowhere", &Routes::default());
    assert!(faults[0].contains("cannot be probed: No such file"), "{faults:?}");
}

#[test]
fn a_server_probes_with_its_own_executable_and_logs_standard_error() {
    let dir = Dir::new();
    let program = dir.path().join("wshd");
    std::fs::copy(env!("CARGO_BIN_EXE_wshd"), &program).unwrap();
    let handlers = dir.path().join("handlers");
    std::fs::create_dir(&handlers).unwrap();
    let log = dir.path().join("log");
    let mut command = std::process::Command::new(&program);
    command.args(["-p", "0", "--workers", "1", "-w"]).arg(&handlers).arg("--log-file").arg(&log);
    let mut server = Server::launch(command, log).when_ready();
    std::fs::remove_file(&program).unwrap();
    let talks = constructor("if (write(2, \"no licence\\n\", 11)) return;");
    dir.handler("handlers/talks", &talks);
    server.signal(Signal::SIGHUP);
    server.says("reload: done, 1 resource");
    server.says("talks_wsh.so (probe): no licence");
    server.stop();
}
