//! Compares the header with the mirror in Rust, compilers, the C++ veneer, the
//! manual page and the examples; and checks that exceptions and panics do not leave
//! a handler. Needs no server.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "abi/header.rs"]
mod header;
#[path = "abi/loaded.rs"]
mod loaded;

#[allow(dead_code, missing_docs)]
#[path = "../include/rust/src/fake.rs"]
mod fake;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem::{align_of, offset_of, size_of};
use std::path::Path;
use std::process::Command;
use std::thread;

use fake::fake;
use fixtures::{compiler, fixture, root, run};
use header::{Header, rust_signature};
use loaded::{Loaded, calls};
use ws_handler::raw;

// ----------------------------------------------------- the header and the mirror

struct Layout {
    name: &'static str,
    size: usize,
    align: usize,
    members: &'static [(&'static str, usize, usize)],
}

const fn member_size<S, M>(_: fn(&S) -> &M) -> usize {
    size_of::<M>()
}

macro_rules! layout {
    ($name:ident: $($member:ident),* $(,)?) => {
        Layout {
            name: stringify!($name),
            size: size_of::<raw::$name>(),
            align: align_of::<raw::$name>(),
            members: &[$((
                stringify!($member),
                offset_of!(raw::$name, $member),
                member_size(|whole: &raw::$name| &whole.$member),
            )),*],
        }
    };
}

macro_rules! constants {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), raw::$name as i64)),*] };
}

const STRUCTS: &[Layout] = &[
    layout!(ws_bytes: data, size),
    layout!(ws_message: type_, flags, data, size),
    layout!(ws_address: family, port, text),
    layout!(ws_deflate_options: size, server_max_window_bits, client_max_window_bits, server_no_context_takeover, client_no_context_takeover, threshold, level),
    layout!(ws_handler: size, abi, flags, name, version, protocols, on_worker_start, on_worker_stop, do_extra_handshake, on_open, transfer_data, on_message, passive_closing_handshake, on_close, on_pong, on_writable, on_drain),
    layout!(ws_host: size, abi, worker, log, now, config, config_at, resource, path, query, authority, origin, method, header, header_at, requested_protocols, requested_extensions, version, remote_address, local_address, tls_fact, set_protocol, add_header, configure_deflate, refuse_extensions, accept, accept_and_close, reject, abort_handshake, protocol, extensions, deflate, receive, send, send_owned, ping, buffered, pause, resume, last_opcode, set_timer, clear_timer, post, close, abort, close_code, close_reason, set_user, user, set_state, state, is_resumed, attach_user, attach_state, query_param, cookie, host_version, workers, watch_fd, unwatch_fd, get_extension, send_raw, subscribe, unsubscribe, publish, subscribers, missed, remote_user),
];

const CONSTANTS: &[(&str, i64)] = constants![
    WS_ABI_MAJOR,
    WS_ABI_MINOR,
    WS_ABI,
    WS_TEXT,
    WS_BINARY,
    WS_FIRST,
    WS_LAST,
    WS_MORE,
    WS_UNCOMPRESSED,
    WS_FD_READ,
    WS_FD_WRITE,
    WS_FD_HANGUP,
    WS_UNIX,
    WS_IPV4,
    WS_IPV6,
    WS_OK,
    WS_CLOSED,
    WS_MESSAGE,
    WS_REJECTED,
    WS_ABORTED,
    WS_LATER,
    WS_E_GONE,
    WS_E_FULL,
    WS_E_TIMEOUT,
    WS_E_DRAINING,
    WS_E_INVALID,
    WS_E_PLACE,
    WS_E_LIMIT,
    WS_E_UNSUPPORTED,
    WS_E_FAILED,
    WS_E_ABSENT,
    WS_E_DENIED,
    WS_CLOSE_NORMAL,
    WS_CLOSE_GOING_AWAY,
    WS_CLOSE_PROTOCOL_ERROR,
    WS_CLOSE_UNSUPPORTED,
    WS_CLOSE_NO_CODE,
    WS_CLOSE_ABNORMAL,
    WS_CLOSE_INVALID_DATA,
    WS_CLOSE_POLICY,
    WS_CLOSE_TOO_BIG,
    WS_CLOSE_INTERNAL_ERROR,
    WS_CLOSE_RESTART,
    WS_CLOSE_TRY_LATER,
    WS_BY_PEER,
    WS_BY_HANDLER,
    WS_BY_HOST,
    WS_BY_MOVE,
    WS_TLS_VERSION,
    WS_TLS_CIPHER,
    WS_TLS_SERVER_NAME,
    WS_TLS_PEER_SUBJECT,
    WS_TLS_ALPN,
    WS_TLS_PEER_CHAIN,
    WS_TLS_RESUMED,
    WS_LOG_FINE,
    WS_LOG_DEBUG,
    WS_LOG_INFO,
    WS_LOG_WARN,
    WS_LOG_ERROR,
    WS_LOG_CRITICAL,
    WS_FOREVER,
    WS_STATE_MAX,
    WS_TOPIC_MAX,
    WS_PUBLISH_MAX,
    WS_NOT_SELF,
    WS_DROP,
    WS_KEEP_REQUEST,
    WS_STREAM,
    WS_NO_EXTENSIONS,
    WS_RESUMABLE
];

#[test]
fn the_mirror_has_the_layout_of_the_header() {
    let mut expected = Vec::new();
    for layout in STRUCTS {
        expected.push(format!("struct {} {} {}", layout.name, layout.size, layout.align));
        for (member, offset, size) in layout.members {
            expected.push(format!("member {} {} {offset} {size}", layout.name, member.trim_end_matches('_')));
        }
    }
    for (name, value) in CONSTANTS {
        expected.push(format!("constant {name} {value}"));
    }
    let printed = run_c_program("layout");
    let printed: Vec<&str> = printed.lines().filter(|line| !line.starts_with("defaults")).collect();
    for (printed, expected) in printed.iter().zip(&expected) {
        assert_eq!(printed, expected);
    }
    assert_eq!(printed.len(), expected.len());
}

#[test]
fn layout_and_mirror_have_all_members_and_constants() {
    let header = Header::read();
    let mut mirrored = BTreeMap::new();
    for layout in STRUCTS {
        let members: Vec<&str> = layout.members.iter().map(|member| member.0.trim_end_matches('_')).collect();
        mirrored.insert(layout.name, members);
    }
    let declared: BTreeMap<&str, Vec<&str>> = header
        .structs
        .iter()
        .map(|(name, members)| (name.as_str(), members.iter().map(|member| member.name.as_str()).collect()))
        .collect();
    assert_eq!(mirrored, declared);

    let constants: BTreeSet<&str> = CONSTANTS.iter().map(|constant| constant.0).collect();
    assert_eq!(constants, header.constants.iter().map(String::as_str).collect());
}

/// Compares the signatures as text, since offsets do not show a wrong argument.
#[test]
fn the_mirror_has_the_signatures_of_the_header() {
    let raw = fs::read_to_string(root().join("include/rust/src/raw.rs")).unwrap();
    let raw = raw.split_whitespace().collect::<Vec<_>>().join(" ").replace("( ", "(").replace(", )", ")");
    let header = Header::read();
    let mut compared = 0;
    for (name, members) in &header.structs {
        for member in members.iter().filter(|member| member.declaration.contains("(*")) {
            let signature = rust_signature(&member.declaration);
            let field = match name.as_str() {
                "ws_handler" => format!("pub {}: Option<{signature}>,", member.name),
                _ => format!("pub {}: {signature},", member.name),
            };
            assert!(raw.contains(&field), "{}: expected in raw.rs: {field}", member.name);
            compared += 1;
        }
    }
    assert!(compared > 50, "only {compared} functions were found in the header");
}

#[test]
fn the_safe_crate_begins_with_the_defaults_of_the_header() {
    let options = ws_handler::DeflateOptions::default();
    let expected = format!(
        "defaults {} {} {} {} {} {} {}",
        size_of::<raw::ws_deflate_options>(),
        options.server_max_window_bits,
        options.client_max_window_bits,
        u8::from(options.server_no_context_takeover),
        u8::from(options.client_no_context_takeover),
        options.threshold,
        options.level
    );
    assert_eq!(run_c_program("layout").lines().next(), Some(expected.as_str()));
}

// --------------------------------------------------------------------- compilers

const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"];

#[test]
fn header_and_plugins_are_clean_in_every_standard() {
    let dir = tempfile::tempdir().unwrap();
    let header = dir.path().join("header_alone.c");
    let veneer = dir.path().join("veneer_alone.cc");
    fs::write(&header, "#include <ws_handler.h>\n#include <ws_handler.h>\n").unwrap();
    fs::write(&veneer, "#include <ws_handler.hpp>\n#include <ws_handler.hpp>\n").unwrap();

    let mut jobs = Vec::new();
    for (c, cxx) in compilers() {
        for standard in ["-std=c99", "-std=c11"] {
            let mut command = strict(&c, standard);
            command.arg(&header).args(sources("plugins", "c")).arg(root().join("ctests/echo_unit.c"));
            jobs.push(command);
        }
        for standard in ["-std=c++11", "-std=c++14", "-std=c++17", "-std=c++20"] {
            let mut command = strict(&cxx, standard);
            command.args(["-x", "c++"]).arg(&header).arg(&veneer).args(sources("plugins", "cc"));
            command.args(sources("ctests/fixtures", "cc"));
            jobs.push(command);
        }
    }
    thread::scope(|scope| {
        for mut job in jobs {
            scope.spawn(move || run(&mut job));
        }
    });
}

#[test]
fn a_misspelt_signature_does_not_compile_in_cpp() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("misspelt.cc");
    let handler = |member: &str| {
        format!("#include <ws_handler.hpp>\nstruct h {{ {member} }};\nWS_HANDLER_CPP(h, name = \"h\");\n")
    };
    let compiles = |member: &str| {
        fs::write(&source, handler(member)).unwrap();
        let cxx = compiler("CXX", "c++");
        is_compiled(strict(&cxx, "-std=c++11").arg(&source))
    };
    assert!(compiles("void on_message(ws::conn, const ws::message &) {}"));
    assert!(!compiles("void on_message(ws::conn, int *) {}"));
    assert!(!compiles("void on_message(ws::conn, const ws::message &) {} void on_pong(int) {}"));
    assert!(!compiles("void on_open(ws::conn) {}"), "neither style");
    let echo = "void on_message(ws::conn, const ws::message &) {}";
    let accepts = "static int32_t do_extra_handshake(ws::conn, ws::handshake) { return WS_OK; }";
    assert!(compiles(&format!("{echo} {accepts}")));
    let silent = "static void do_extra_handshake(ws::conn, ws::handshake hs) { (void)hs; }";
    assert!(!compiles(&format!("{echo} {silent}")), "a handshake without a result");
    let forgets =
        "static int32_t do_extra_handshake(ws::conn, ws::handshake hs) { hs.reject(401); return WS_OK; }";
    assert!(!compiles(&format!("{echo} {forgets}")), "a rejection that is not returned");
}

#[test]
fn a_rejection_that_is_not_returned_is_a_warning_in_c() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("forgets.c");
    let compiles = |body: &str| {
        let function = format!("#include <ws_handler.h>\nint32_t f(ws_handshake *hs) {{ {body} }}\n");
        fs::write(&source, function).unwrap();
        is_compiled(strict(&compiler("CC", "cc"), "-std=c99").arg(&source))
    };
    assert!(compiles("return ws_reject(hs, 401);"));
    for forgotten in
        ["ws_reject(hs, 401)", "ws_reject_body(hs, 401, \"a/b\", \"\", 0)", "ws_abort_handshake(hs)"]
    {
        assert!(!compiles(&format!("{forgotten}; return WS_OK;")), "{forgotten}");
    }
}

/// An older host has a smaller table: the header returns defaults for missing members, and reads no byte past the
/// table.
#[test]
fn the_header_reads_no_member_that_an_older_host_lacks() {
    run_c_program("older_host");
    let header = Header::read();
    let members = header.structs["ws_host"].iter().map(|member| member.name.as_str());
    let optional: Vec<&str> = members.skip_while(|name| *name != "is_resumed").skip(1).collect();
    assert!(optional.len() >= 16, "{optional:?}");
    for file in ["ws_handler.h", "ws_handler.hpp"] {
        let text = fs::read_to_string(root().join("include").join(file)).unwrap();
        for (at, _) in text.match_indices("ws_host_->") {
            let name =
                text[at + "ws_host_->".len()..].split(|c: char| c != '_' && !c.is_alphanumeric()).next();
            let name = name.unwrap();
            let function = &text[text[..at].rfind('{').unwrap()..at];
            let asks = function.contains(&format!("WS_HOST_HAS({name})"));
            assert!(asks || !optional.contains(&name), "{file}: {name} is used without WS_HOST_HAS");
        }
    }
}

#[test]
fn the_examples_of_the_header_compile() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["example_event", "example_blocking"] {
        let library = dir.path().join(format!("{name}.so"));
        let source = root().join(format!("ctests/{name}_wsh.c"));
        let cc = compiler("CC", "cc");
        run(Command::new(&cc[0])
            .args(&cc[1..])
            .args(["-shared", "-fPIC", "-I"])
            .arg(root().join("include"))
            .arg(source)
            .arg("-o")
            .arg(&library));
        assert_needs_only_libc(&library);
        assert_eq!(exported(&library), ["ws_handler_entry_v1"]);
    }
}

#[test]
fn handlers_export_one_symbol_and_need_only_libc() {
    for source in sources("plugins", "c") {
        let library = fixture(handler_name(&source));
        assert_needs_only_libc(&library);
        assert_eq!(exported(&library), ["ws_handler_entry_v1"], "{}", source.display());
    }
    for name in ["echo_cpp", "echo_rust"] {
        assert_eq!(exported(&fixture(name)), ["ws_handler_entry_v1"], "{name}");
    }
}

#[test]
fn a_handler_can_be_unit_tested_in_c() {
    run_c_program("echo_unit");
}

// ---------------------------------------------------- exceptions and panics

#[test]
fn exceptions_do_not_leave_a_cpp_handler() {
    let handler = Loaded::new("veneer");
    assert_eq!(handler.open(), raw::WS_OK);
    assert_eq!(handler.message("hello"), ["send 1 1 0 hello"]);
    assert_eq!(handler.message("throw"), ["log 1 50 exception in on_message: on demand", "close 1 1011 "]);
    assert_eq!(
        handler.message("throw_int"),
        ["log 1 50 exception in on_message that is not a std::exception", "close 1 1011 "]
    );
    assert_eq!(handler.message("object"), ["send 1 1 0 messages 4"], "the object lives on");

    assert_eq!(handler.message("timer_throw"), ["set_timer 1"]);
    assert_eq!(handler.run_timers(), ["log 1 50 exception in a timer: in a timer", "close 1 1011 "]);
    assert_eq!(handler.message("post_throw"), ["post"]);
    assert_eq!(handler.run_posts(), ["log 1 50 exception in a posted task: in a task", "close 1 1011 "]);
    assert_eq!(handler.close(), ["log 1 30 closed 1 1000", "log 0 30 destroyed"]);
    assert_eq!(handler.close(), [""; 0], "destroyed once");
}

#[test]
fn exceptions_around_the_handshake_become_results() {
    let handler = Loaded::new("veneer");
    fake(|fake| fake.query = Some("throw=do_extra_handshake"));
    assert_eq!(handler.handshake(), raw::WS_E_FAILED);
    fake(|fake| fake.query = Some("throw=constructor"));
    assert_eq!(handler.open(), raw::WS_E_FAILED);
    assert_eq!(handler.close(), [""; 0], "there is no object to destroy");
    fake(|fake| fake.query = Some("throw=on_open"));
    assert_eq!(handler.open(), raw::WS_E_FAILED);
    fake(|fake| fake.query = Some("throw=passive_closing_handshake"));
    assert_eq!(handler.passive_closing_handshake(), raw::WS_E_FAILED);
    fake(|fake| fake.query = Some("throw=on_close"));
    assert_eq!(
        handler.close(),
        [
            "log 1 30 closed 1 1000",
            "log 1 50 exception in on_close: as asked, in on_close",
            "log 0 30 destroyed"
        ]
    );
}

#[test]
fn the_cpp_veneer_passes_results_on() {
    let handler = Loaded::new("veneer");
    fake(|fake| fake.query = Some("reject"));
    assert_eq!(handler.handshake(), raw::WS_REJECTED);
    fake(|fake| fake.query = Some("abort"));
    assert_eq!(handler.handshake(), raw::WS_ABORTED);
    calls();
    fake(|fake| fake.query = Some("close"));
    assert_eq!(handler.handshake(), raw::WS_OK);
    assert_eq!(calls(), ["accept_and_close 4000 why"]);
    fake(|fake| fake.query = None);
    assert_eq!(handler.handshake(), raw::WS_OK);
    assert_eq!(
        calls(),
        ["set_timer 0", "configure_deflate 15,15,0,1,128,1", "add_header X-Veneer: yes", "accept"]
    );
    fake(|fake| fake.timers.clear());

    handler.open();
    assert_eq!(handler.message("timer 5"), ["set_timer 5"]);
    assert_eq!(handler.run_timers(), ["send 1 1 0 timer"]);
    assert_eq!(handler.message("fragments"), ["send 1 1 1 a", "send 1 1 1 b", "send 1 1 0 c"]);
    assert_eq!(handler.message("attached"), ["send 1 1 0 attached"]);
    assert_eq!(handler.message("param"), ["send 1 1 0 blue moon"]);
    assert_eq!(handler.message("interval"), ["set_timer 3 every 3"]);
    let (_, task, arg) = fake(|fake| fake.timers.pop().unwrap());
    for _ in 0..2 {
        // SAFETY: as a host does, until it was cleared.
        unsafe { task.unwrap()(1, arg) };
    }
    assert_eq!(calls(), ["send 1 1 0 tick 1", "send 1 1 0 tick 2", "clear_timer 3"]);
    assert_eq!(handler.message("state x"), ["send 1 1 0 x"]);
    assert_eq!(handler.message("close"), ["close 1 3000 bye"]);
    assert_eq!(handler.message("owned").len(), 1);
    handler.close();
}

#[test]
fn a_veneer_sets_only_what_the_class_defines() {
    let full = Loaded::new("veneer");
    assert!(full.table().on_worker_start.is_some() && full.table().on_drain.is_some());
    let echo = Loaded::new("echo_cpp");
    let table = echo.table();
    assert!(table.on_message.is_some() && table.transfer_data.is_none());
    assert!(table.do_extra_handshake.is_none() && table.on_worker_start.is_none());
    assert!(table.passive_closing_handshake.is_none() && table.on_pong.is_none());
    assert!(table.on_writable.is_none() && table.on_drain.is_none());
}

#[test]
fn panics_do_not_leave_a_rust_handler() {
    let handler = Loaded::new("panic");
    fake(|fake| fake.query = Some("handshake"));
    assert_eq!(handler.handshake(), raw::WS_E_FAILED);
    fake(|fake| fake.query = Some("open"));
    assert_eq!(handler.open(), raw::WS_E_FAILED);
    fake(|fake| fake.query = Some("close"));
    assert_eq!(handler.open(), raw::WS_OK);
    assert_eq!(handler.message("panic"), ["log 1 50 panic in on_message: on demand", "close 1 1011 "]);
    assert_eq!(handler.message("still here"), ["send 1 1 0 still here"]);
    handler.message("timer");
    assert_eq!(handler.run_timers(), ["log 1 50 panic in a timer: in a timer", "close 1 1011 "]);
    handler.message("post");
    assert_eq!(handler.run_posts(), ["log 1 50 panic in a posted task: in a task", "close 1 1011 "]);
    assert_eq!(handler.close(), ["log 1 50 panic in on_close: as asked, in close"]);
}

#[test]
fn blocking_handlers_turn_exceptions_and_panics_into_results() {
    for (name, command) in [("veneer_blocking", "throw"), ("panic_blocking", "panic")] {
        let handler = Loaded::new(name);
        handler.open();
        let inbox = |texts: &[&str]| {
            fake(|fake| {
                fake.inbox = texts.iter().map(|text| (raw::WS_MESSAGE, (*text).to_owned())).collect()
            });
            calls();
            // SAFETY: as a host does.
            unsafe { handler.table().transfer_data.unwrap()(1) }
        };
        assert_eq!(inbox(&["hello"]), raw::WS_OK, "{name}");
        assert_eq!(calls(), ["receive -1", "send 1 1 0 hello", "receive -1"], "{name}");
        assert_eq!(inbox(&[command]), raw::WS_E_FAILED, "{name}");
        assert!(calls().last().unwrap().ends_with("on demand"), "{name}");
        assert_eq!(inbox(&["fail"]), raw::WS_E_FAILED, "{name}");
        handler.close();
    }
}

#[test]
fn the_four_echoes_do_the_same() {
    for name in ["echo", "echo_noext", "echo_cpp", "echo_rust"] {
        let handler = Loaded::new(name);
        handler.open();
        assert_eq!(handler.message("hello"), ["send 1 1 0 hello"], "{name}");
        assert_eq!(handler.message("Goodbye"), ["send 1 1 0 Goodbye", "close 1 1000 "], "{name}");
        fake(|fake| fake.results.insert("send", raw::WS_E_FULL));
        assert_eq!(handler.message("x").last().unwrap(), "close 1 1013 you do not read", "{name}");
        handler.close();
    }
}

/// A handler compiled against the first release.
#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn the_frozen_handler_still_loads() {
    let path = root().join("ctests/frozen/abi_1_0_echo_wsh.so.x86_64");
    let handler = Loaded::from(&path);
    let table = handler.table();
    assert_eq!((table.abi, table.size), (1 << 16, 128));
    assert_eq!(handler.message("hello"), ["send 1 1 0 hello"]);
    assert_eq!(handler.message("Goodbye"), ["send 1 1 0 Goodbye", "close 1 1000 "]);
    let tail = ["subscribe 1 news 0", "publish news 1 late 256", "send 1 1 0 0 0 1 4 1 fake 1.0"];
    assert_eq!(handler.message("Tail"), tail);
}

/// Members and constants of the first release keep their offsets and values; the tables grow only at their end.
#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn the_first_release_keeps_its_layout() {
    let now = run_c_program("layout");
    let now: BTreeSet<&str> = now.lines().collect();
    let frozen = fs::read_to_string(root().join("ctests/frozen/abi_1_0_layout.x86_64")).unwrap();
    let grows = ["struct ws_handler ", "struct ws_host ", "struct ws_deflate_options ", "defaults "];
    let versions = ["constant WS_ABI ", "constant WS_ABI_MINOR "];
    let may_change = |line: &&str| grows.iter().chain(&versions).any(|start| line.starts_with(start));
    let gone: Vec<&str> = frozen.lines().filter(|line| !may_change(line) && !now.contains(line)).collect();
    assert_eq!(gone, [""; 0]);
    assert!(frozen.lines().count() > 100);
}

#[test]
fn every_fixture_compiles() {
    for kind in ["c", "cc", "rs"] {
        for source in sources("ctests/fixtures", kind) {
            assert!(fixture(handler_name(&source)).exists());
        }
    }
}

#[test]
fn handlers_have_the_paths_of_their_resources() {
    let dir = fixtures::handlers_dir(&["echo", "a/b=close"]);
    assert!(dir.path().join("echo_wsh.so").is_file());
    assert!(dir.path().join("a/b_wsh.so").is_file());
}

// ---------------------------------------------------------------- the manual page

#[test]
fn the_manual_page_names_everything_in_the_header() {
    let page = fs::read_to_string(root().join("man/ws_handler.3")).unwrap();
    let header = Header::read();
    let named: BTreeSet<&str> = page
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
        .collect();
    let callbacks = header.structs["ws_handler"].iter().map(|member| &member.name);
    let options = header.structs["ws_deflate_options"].iter().map(|member| &member.name);
    let macros = ["WS_HANDLER", "WS_DEFLATE_DEFAULTS", "ws_handler_entry_v1", "ws_task"].map(str::to_owned);
    let all = header.functions.iter().chain(&header.constants).chain(header.structs.keys());
    let missing: Vec<&String> = all
        .chain(callbacks)
        .chain(options)
        .chain(&macros)
        .filter(|name| !named.contains(name.as_str()))
        .collect();
    assert!(header.functions.len() > 50);
    assert_eq!(missing, [""; 0]);
}

#[test]
fn the_manual_page_prints_the_echo_of_plugins() {
    let page = fs::read_to_string(root().join("man/ws_handler.3")).unwrap();
    let from = page.find(".Bd -literal -offset indent\n/*\n").expect("the example begins");
    let example = &page[from..];
    let example = &example[example.find('\n').unwrap() + 1..example.find("\n.Ed").unwrap() + 1];
    let example = example.replace("\\&", "").replace("\\e", "\\");
    assert_eq!(example, fs::read_to_string(root().join("plugins/echo_wsh.c")).unwrap());
}

#[test]
fn the_manual_page_is_clean() {
    let Ok(output) = Command::new("mandoc")
        .args(["-Tlint", "-W", "warning"])
        .arg(root().join("man/ws_handler.3"))
        .output()
    else {
        return; // mandoc is not installed
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

// ------------------------------------------------------------------------ helpers

/// gcc (or CC and CXX), and clang if it is installed.
fn compilers() -> Vec<(Vec<String>, Vec<String>)> {
    let mut compilers = vec![(compiler("CC", "cc"), compiler("CXX", "c++"))];
    if Command::new("clang++").arg("--version").output().is_ok_and(|output| output.status.success()) {
        compilers.push((vec!["clang".to_owned()], vec!["clang++".to_owned()]));
    }
    compilers
}

fn strict(compiler: &[String], standard: &str) -> Command {
    let mut command = Command::new(&compiler[0]);
    command.args(&compiler[1..]).arg(standard).args(STRICT).arg("-I").arg(root().join("include"));
    command
}

/// Compiles to an object: the warning about an unused result needs more than a syntax check.
fn is_compiled(command: &mut Command) -> bool {
    command.args(["-fno-syntax-only", "-c", "-o", "/dev/null"]).output().unwrap().status.success()
}

/// The handlers of a directory, by language.
fn sources(dir: &str, kind: &str) -> Vec<std::path::PathBuf> {
    let ending = format!("_wsh.{kind}");
    let mut sources: Vec<_> = fs::read_dir(root().join(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(&ending))
        .collect();
    sources.sort();
    assert!(!sources.is_empty(), "no {ending} in {dir}");
    sources
}

fn handler_name(source: &Path) -> &str {
    source.file_stem().unwrap().to_str().unwrap().strip_suffix("_wsh").unwrap()
}

fn run_c_program(name: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join(name);
    let cc = compiler("CC", "cc");
    run(Command::new(&cc[0])
        .args(&cc[1..])
        .args(["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-I"])
        .arg(root().join("include"))
        .arg(root().join(format!("ctests/{name}.c")))
        .arg("-o")
        .arg(&program));
    run(&mut Command::new(&program))
}

/// Exported symbols, without the weak copies of std templates in C++.
fn exported(library: &Path) -> Vec<String> {
    let symbols = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library));
    let symbols = symbols.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    symbols
        .filter(|fields| fields[1] == "T" || fields[1] == "D" || fields[1] == "B")
        .map(|fields| fields[2].to_owned())
        .collect()
}

fn assert_needs_only_libc(library: &Path) {
    let symbols = run(Command::new("nm").args(["-D", "--undefined-only"]).arg(library));
    for line in symbols.lines() {
        let weak = line.split_whitespace().next() == Some("w"); // the C runtime's own
        assert!(weak || line.contains("@GLIBC_"), "{}: {line}", library.display());
    }
}
