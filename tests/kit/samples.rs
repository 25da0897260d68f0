//! The mistakes of `ctests/samples`: the tool that ws_handler(3) names finds each, with this message.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use landlock::{AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};

use super::daemon::{Dir, ECHO, output_of, wshd};
use super::ends;

/// The tool that finds a mistake.
#[derive(Clone, Copy)]
enum Tool {
    /// `wshd check`, with these options.
    Check(&'static [&'static str]),
    /// `wshd test` with this script.
    Test(&'static str),
}

const SAMPLES: [(&str, Tool, &str); 10] = [
    ("use_after_close", Tool::Check(&["--faults"]), "ws_send() was called after on_close of the connection"),
    (
        "double_close",
        Tool::Test(">! binary 00\n<! close 1003 text only\n"),
        "ws_close() was called after ws_close() or ws_abort() of the connection",
    ),
    (
        "wrong_thread",
        Tool::Test("> a\n= log outside of callbacks\n"),
        "was called outside of callbacks; it may be called only in a callback of this connection",
    ),
    (
        "oversize_send",
        Tool::Test(">! large 126\n= log ws_ping\n"),
        "ws_ping() of 126 bytes returned WS_E_INVALID",
    ),
    ("past_message", Tool::Test("> a;b\n< a\n> ab\n< ab\n"), "past the end of a message"),
    ("blocking_call", Tool::Check(&[]), "calls usleep(), which may wait"),
    ("leak", Tool::Check(&["--faults"]), "each connection leaves about"),
    (
        "forgotten_return",
        Tool::Test("<! status 403\n"),
        "returned WS_OK after ws_reject() or ws_abort_handshake(); rejected",
    ),
    ("kept_message", Tool::Test("> a\n> b\n< a\n"), "a message whose callback has returned"),
    ("shared_static", Tool::Check(&[]), "with every other handler that has it (STB_GNU_UNIQUE)"),
];

/// Compiles a sample.
fn compile(dir: &Path, name: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = |kind| root.join(format!("ctests/samples/{name}_wsh.{kind}"));
    let is_c = source("c").exists();
    // Without -fvisibility=hidden, which would hide the mistake in the C++ sample.
    let mut compiler = Command::new(if is_c { "cc" } else { "c++" });
    compiler.args(["-shared", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror", "-I"]);
    compiler.arg(root.join("include")).arg(source(if is_c { "c" } else { "cc" }));
    ends(&output_of(compiler.arg("-o").arg(dir.join(format!("{name}_wsh.so")))).unwrap(), 0, "");
}

fn find(dir: &Path, name: &str, tool: Tool) -> Output {
    let object = format!("{name}_wsh.so");
    let mut command = wshd();
    match tool {
        Tool::Check(options) => command.args(["check", "--strict"]).args(options).arg(object),
        Tool::Test(script) => {
            let file = format!("{name}.test");
            std::fs::write(dir.join(&file), script).unwrap();
            // The mistake of this one is that nothing comes.
            let limit = if name == "seventeen_mebibytes" { "2s" } else { "25s" };
            command.args(["test", "--timeout", limit]).args([object, file])
        }
    };
    output_of(command.current_dir(dir)).unwrap()
}

#[test]
fn every_mistake_of_the_samples_is_found() {
    let manual = include_str!("../../man/ws_handler.3");
    let dir = Dir::new();
    thread::scope(|scope| {
        for (name, tool, said) in SAMPLES {
            assert!(
                manual.contains(&format!(".It {}", name.replace('_', " "))),
                "ws_handler(3) without {name}"
            );
            assert!(manual.contains(said), "ws_handler(3) does not say {said:?}");
            let dir = dir.path();
            scope.spawn(move || {
                compile(dir, name);
                let output = find(dir, name, tool);
                let out = String::from_utf8_lossy(&output.stdout);
                assert!(out.contains(said), "{name}: {out}\n{}", String::from_utf8_lossy(&output.stderr));
                if let Tool::Check(_) = tool {
                    assert_eq!(output.status.code(), Some(6), "{name}: {out}");
                }
            });
        }
    });
    let samples = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("ctests/samples")).unwrap();
    assert_eq!(samples.count(), SAMPLES.len());
}

/// Variants of these mistakes: the tool, its exit status, its message, and the handler without its last line.
const VARIANTS: [(&str, Tool, i32, &str, &str); 5] = [
    (
        "no_on_close",
        Tool::Test("a> hi\na< hi\na>! close\na<! close\nb>! open\n= log after on_close\n"),
        0,
        "",
        "static ws_conn last;
         static int32_t on_open(ws_conn conn) { if (last) ws_send_text(last, \"new\"); last = conn; return WS_OK; }
         static void on_message(ws_conn conn, const ws_message *msg) { ws_send(conn, msg->type, msg->data, msg->size); }
         WS_HANDLER(.on_open = on_open,",
    ),
    (
        "rejects_with_200",
        Tool::Check(&["--faults"]),
        6,
        "SIGABRT in do_extra_handshake",
        "static int32_t do_extra_handshake(ws_conn conn, ws_handshake *hs)
         { (void)conn; ws_reject(hs, 200); return WS_OK; }
         static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; }
         WS_HANDLER(.do_extra_handshake = do_extra_handshake,",
    ),
    (
        "waits",
        Tool::Check(&["--faults"]),
        6,
        "on_message repeatedly blocks the event loop",
        "#include <poll.h>\n
         static void on_message(ws_conn conn, const ws_message *msg) { (void)conn; (void)msg; poll(0, 0, 200); }
         WS_HANDLER(",
    ),
    (
        "message_kept_for_a_timer",
        Tool::Test("> a\n< a\n"),
        6,
        "a message whose callback has returned",
        "static const ws_message *kept;
         static void tick(ws_conn conn, void *arg) { (void)arg; ws_send(conn, WS_TEXT, kept->data, 1); }
         static void on_message(ws_conn conn, const ws_message *msg)
         { static ws_message copy; copy = *msg; kept = &copy; ws_set_timer(conn, 1, tick, 0); }
         WS_HANDLER(",
    ),
    (
        "seventeen_mebibytes",
        Tool::Test("> a\n< a\n"),
        6,
        "got       ",
        "#include <stdlib.h>\n
         static void on_message(ws_conn conn, const ws_message *msg)
         { size_t size = (size_t)17 << 20; char *large = calloc(1, size); (void)msg;
           ws_send(conn, WS_BINARY, large, size); free(large); }
         WS_HANDLER(",
    ),
];

#[test]
fn variants_of_the_mistakes_are_found() {
    let dir = Dir::new();
    thread::scope(|scope| {
        for (name, tool, status, said, source) in VARIANTS {
            let dir = &dir;
            scope.spawn(move || {
                let source = format!(
                    "#include <ws_handler.h>\n{source} .name = \"{name}\", .on_message = on_message);"
                );
                dir.handler(name, &source);
                let output = find(dir.path(), name, tool);
                let out = String::from_utf8_lossy(&output.stdout);
                assert!(out.contains(said), "{name}: {out}\n{}", String::from_utf8_lossy(&output.stderr));
                assert_eq!(output.status.code(), Some(status), "{name}: {out}");
            });
        }
    });
}

#[test]
fn a_correct_handler_passes_all_fault_tests() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let output =
        output_of(wshd().args(["check", "--strict", "--faults", "echo_wsh.so"]).current_dir(dir.path()));
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn faults_crash_a_handler_that_ignores_results() {
    let dir = Dir::new();
    let source = r#"
        #include <stdlib.h>
        #include <ws_handler.h>
        static void later(ws_conn conn, void *arg)
        {
            (void)conn, (void)arg;
        }
        static int32_t on_open(ws_conn conn)
        {
            ws_bytes greeting = ws_config("greeting");
            if (ws_set_timer(conn, 10, later, NULL) < 0)
                abort();
            return greeting.size > 99 ? WS_E_FAILED : WS_OK;
        }
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            (void)conn, (void)msg;
        }
        WS_HANDLER(.name = "rash", .on_open = on_open, .on_message = on_message);
    "#;
    dir.handler("rash", source);
    let output =
        output_of(wshd().args(["check", "--json", "--faults", "rash_wsh.so"]).current_dir(dir.path()));
    let output = output.unwrap();
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = result[0]["findings"].as_array().unwrap();
    let found = |level: &str, rule: &str, said: &str| {
        findings.iter().any(|finding| {
            finding["level"] == level
                && finding["rule"] == rule
                && finding["message"].as_str().unwrap().contains(said)
        })
    };
    assert!(found("fault", "host-calls", "its worker crashed: SIGABRT in on_open of rash"), "{result}");
    assert!(found("note", "settings", "ws_config(\"greeting\"): no such setting is configured"), "{result}");
    assert_eq!(output.status.code(), Some(6));
}

/// Attacks files, network and processes, and reports what succeeded.
const VANDAL: &str = r#"
    #include <arpa/inet.h>
    #include <fcntl.h>
    #include <signal.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <unistd.h>
    #include <ws_handler.h>

    static void write_into(const char *place)
    {
        char path[4096];
        int  fd;
        snprintf(path, sizeof path, "%s/%s", getenv("VANDAL_DIR"), place);
        fd = open(path, O_WRONLY | O_CREAT, 0600);
        if (fd >= 0)
            close(fd);
    }
    __attribute__((constructor)) static void construct(void)
    {
        write_into("constructed");
    }
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(getenv("VANDAL_PORT")))};
        static int once;
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        write_into("served");
        inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
        connect(fd, (struct sockaddr *)&to, sizeof to);
        close(fd);
        kill(atoi(getenv("VANDAL_VICTIM")), SIGKILL);
        while ((int)getuid() != atoi(getenv("VANDAL_UID")) && msg->size > 2 && memcmp(msg->data, "%n", 2) == 0 && once++ < 400) {
            pid_t child = fork();
            if (child == 0) {
                setsid();
                for (;;)
                    pause();
            }
            if (child < 0)
                ws_close(conn, 1011, "no more processes");
        }
    }
    WS_HANDLER(.name = "vandal", .on_message = on_message);
"#;

#[test]
fn a_checked_handler_is_confined() {
    let dir = Dir::new();
    dir.handler("vandal", VANDAL);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut victim = Command::new("sleep").arg("600").spawn().unwrap();
    let room = Dir::new();
    std::fs::set_permissions(room.path(), Permissions::from_mode(0o777)).unwrap();
    let mut check = wshd();
    check.args(["check", "--faults", "vandal_wsh.so"]).current_dir(dir.path());
    // Without another user the limit would include processes of other tests.
    check.env("VANDAL_UID", nix::unistd::getuid().to_string());
    check.env("VANDAL_DIR", room.path()).env("VANDAL_VICTIM", victim.id().to_string());
    check.env("VANDAL_PORT", listener.local_addr().unwrap().port().to_string());
    let output = output_of(&mut check).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let is_alive = victim.try_wait().unwrap().is_none();
    let _ = victim.kill(); // it may have ended
    let _ = victim.wait();
    let is_root = nix::unistd::getuid().is_root();
    assert_eq!(said.contains("processes behind: end them"), is_root, "{said}");
    let is_there = |process: &std::io::Result<std::fs::DirEntry>| {
        let cwd =
            process.as_ref().ok().and_then(|process| std::fs::read_link(process.path().join("cwd")).ok());
        cwd.is_some_and(|cwd| cwd == dir.path())
    };
    assert!(
        !std::fs::read_dir("/proc").unwrap().any(|process| is_there(&process)),
        "processes are left behind"
    );
    if is_confining() {
        assert!(is_alive, "a process outside was killed");
        assert_eq!(std::fs::read_dir(room.path()).unwrap().count(), 0, "a file was written");
        assert!(listener.accept().is_err(), "somebody was reached");
    }
}

/// Whether the kernel can keep a process from writing, from TCP and from signals.
fn is_confining() -> bool {
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let rules = rules.scope(Scope::Signal).and_then(|rules| rules.handle_access(AccessNet::ConnectTcp));
    let can = rules.and_then(Ruleset::create).is_ok();
    if !can {
        println!("partly skipped: this kernel does not support all of Landlock");
    }
    can
}
