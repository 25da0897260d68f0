//! Probing plugins: good ones, and ones that do everything wrong.
#![allow(clippy::unwrap_used)]

#[path = "common/server.rs"]
mod daemon;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use daemon::{Dir, ECHO};
use wshd::ffi::plugin::Style;
use wshd::ffi::probe::{self, LIMIT, Offer, ProbeError, check};

/// Asks a file what it offers, with all rights.
fn probe(file: &Path) -> Result<Offer, ProbeError> {
    probe::probe(file, &|| Ok(()))
}

/// A handler with this code in a constructor.
fn constructor(code: &str) -> String {
    format!(
        "#include <signal.h>\n#include <stdlib.h>\n#include <unistd.h>\n#include <fcntl.h>\n\
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

/// Why a handler with this source can not be used.
#[track_caller]
fn fault(source: &str) -> String {
    let dir = Dir::new();
    probe(&dir.handler("bad", source)).unwrap_err().to_string()
}

#[test]
fn an_offer_tells_all() {
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
            flags: 0x103,
            abi: 0x1_0000,
            protocols: vec!["chat.v2".into(), "chat.v1".into()],
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
    // It ends before `version`, which holds what no reader survives.
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
fn files_that_are_no_handlers() {
    let dir = Dir::new();
    let text = dir.path().join("text_wsh.so");
    std::fs::write(&text, "#!/bin/sh\n").unwrap();
    let error = probe(&text).unwrap_err().to_string();
    assert!(error.contains("got a file that begins with [23, 21, 2f, 62], expected 7f 45 4c 46"), "{error}");
    std::fs::write(&text, "").unwrap();
    assert!(probe(&text).unwrap_err().to_string().contains("begins with []"));
    std::fs::write(&text, b"\x7fELF and nothing else").unwrap();
    assert!(probe(&text).unwrap_err().to_string().starts_with("can not be loaded: "));
    assert!(probe(dir.path()).unwrap_err().to_string().contains("expected one"));
    let error = probe(&dir.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");

    let error = fault("int answer = 42;");
    assert_eq!(error, "exports no ws_handler_entry_v1: is WS_HANDLER(...) missing?");
    let error = fault(&constructor("extern void nobody_has_this(void); nobody_has_this();"));
    assert!(error.contains("undefined symbol: nobody_has_this"), "{error}");
}

#[test]
fn constructors_that_end_the_process() {
    assert_eq!(fault(&constructor("raise(SIGSEGV);")), "died of signal 11 (SIGSEGV) while loading");
    assert_eq!(fault(&constructor("abort();")), "died of signal 6 (SIGABRT) while loading");
    assert_eq!(fault(&constructor("exit(3);")), "ended the process with status 3 while loading");
    assert_eq!(fault(&constructor("_exit(0);")), "ended the process with status 0 while loading");
}

#[test]
fn a_constructor_without_end() {
    let begun = Instant::now();
    let error = fault(&constructor("for (;;) pause();"));
    assert_eq!(error, "did not come back within 5 s while loading");
    assert!(begun.elapsed() >= LIMIT && begun.elapsed() < LIMIT + Duration::from_secs(5));
}

#[test]
fn a_constructor_that_closes_everything_gives_no_answer() {
    let error = fault(&constructor("for (int fd = 0; fd < 256; fd++) close(fd);"));
    assert!(error.ends_with("while loading"), "{error}");
}

#[test]
fn a_constructor_that_answers_itself_is_not_believed() {
    for junk in ["offer", "offer\\0x\\0y\\0maybe\\0-1\\0z\\0\\0end", "end", "started\\0x", "\\377\\0\\0\\0"] {
        let size = junk.replace("\\377", "x").replace("\\0", "0").len() + 1;
        let code = format!(
            "for (int fd = 3; fd < 64; fd++) if (write(fd, \"{junk}\", {size}) < 0) continue; _exit(9);"
        );
        let error = fault(&constructor(&code));
        assert!(!error.is_empty(), "{junk}: {error}");
    }
}

#[test]
fn a_process_that_a_constructor_leaves_behind_does_not_delay_the_answer() {
    let dir = Dir::new();
    let path = dir.handler("forks", &constructor("if (fork() == 0) { sleep(20); _exit(0); }"));
    let begun = Instant::now();
    assert_eq!(probe(&path).unwrap().name, "echo");
    assert!(begun.elapsed() < LIMIT);
}

#[test]
fn no_probe_is_left_behind() {
    let dir = Dir::new();
    let good = dir.handler("good", ECHO);
    let bad = dir.handler("bad", &constructor("raise(SIGSEGV);"));
    for _ in 0..10 {
        assert!(probe(&good).is_ok() && probe(&bad).is_err());
    }
    // Tests run side by side and probe as well, so only zombies count.
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
        let (offer, fault) = check(&path);
        assert_eq!(offer.unwrap().name, "started");
        fault.map(|fault| fault.to_string())
    };
    assert_eq!(start("ok", "return ws_worker() == 0 && ws_config(\"x\").data == NULL ? 1 : -1;"), None);
    let fault = start("fails", "return WS_E_FAILED;");
    assert_eq!(fault.as_deref(), Some("on_worker_start returned -9, expected 0 or more"));
    let fault = start("crashes", "raise(SIGFPE); return 0;");
    assert_eq!(fault.as_deref(), Some("died of signal 8 (SIGFPE) in on_worker_start"));
    let fault = start("exits", "exit(0);");
    assert_eq!(fault.as_deref(), Some("ended the process with status 0 in on_worker_start"));
    let fault = start("loops", "for (;;) continue;");
    assert_eq!(fault.as_deref(), Some("did not come back within 5 s in on_worker_start"));
}
