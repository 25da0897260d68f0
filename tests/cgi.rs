//! CGI programs: their environment, responses and limits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;

use std::fs::{Permissions, create_dir_all, read_to_string, set_permissions, write};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use client::{Answer, Raw};
use daemon::{Dir, Server, children, memory_of, until};
use nix::unistd::geteuid;

/// Serves these programs below /cgi, with this configuration file. `$DIR` in a program is a writable directory.
#[track_caller]
fn serve(programs: &[(&str, &str)], text: &str) -> (Server, Dir) {
    let dir = Dir::new();
    let open = |path: &std::path::Path, mode| set_permissions(path, Permissions::from_mode(mode)).unwrap();
    open(dir.path(), 0o755);
    let (root, notes) = (dir.path().join("www"), dir.path().join("notes"));
    create_dir_all(root.join("cgi")).unwrap();
    create_dir_all(&notes).unwrap();
    open(&notes, 0o777);
    for (name, program) in programs {
        let path = root.join("cgi").join(name);
        write(&path, format!("#!/bin/sh\nDIR={}\n{program}\n", notes.display())).unwrap();
        open(&path, 0o755);
    }
    let user = if geteuid().is_root() { "cgi_user = 'nobody'\n" } else { "" };
    let text = format!("workers = 1\ndocument_root = '{}'\ncgi_paths = '/cgi'\n{user}{text}", root.display());
    let path = dir.path().join("wshd.conf");
    write(&path, text).unwrap();
    let server = Server::start(&dir, &["--config", path.to_str().unwrap()]);
    (server, dir)
}

#[track_caller]
fn request(server: &Server, method: &str, resource: &str, rest: &str) -> Raw {
    let mut raw = Raw::connect(&server.address());
    raw.send(format!("{method} {resource} HTTP/1.1\r\nHost: example.com:81\r\n{rest}").as_bytes());
    raw
}

#[track_caller]
fn get(server: &Server, resource: &str) -> Answer {
    request(server, "GET", resource, "\r\n").answer()
}

/// Decodes a chunked body.
fn content(answer: &Answer) -> String {
    assert_eq!(answer.header("Transfer-Encoding"), Some("chunked"), "{}", answer.head);
    let (mut left, mut text) = (&answer.body[..], Vec::new());
    loop {
        let end = left.windows(2).position(|bytes| bytes == b"\r\n").expect("a whole chunk");
        let size = usize::from_str_radix(std::str::from_utf8(&left[..end]).unwrap(), 16).unwrap();
        left = &left[end + 2..];
        if size == 0 {
            assert_eq!(left, b"\r\n");
            return String::from_utf8(text).unwrap();
        }
        text.extend_from_slice(&left[..size]);
        left = &left[size + 2..];
    }
}

/// The process that runs programs.
fn runner(server: &Server) -> i32 {
    let is_runner = |pid: &i32| {
        let title = read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        title.starts_with("wshd: cgi")
    };
    children(server.pid()).into_iter().find(is_runner).expect("wshd: cgi")
}

/// The process ids that a program has recorded.
fn noted(dir: &Dir, name: &str) -> Vec<i32> {
    let text = read_to_string(dir.path().join("notes").join(name)).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn is_running(pid: i32) -> bool {
    let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

const TEXT: &str = "printf 'Content-Type: text/plain\\n\\n'\n";

#[test]
fn a_program_gets_the_request_and_no_state_of_the_server() {
    let env = format!(
        "{TEXT}env | sort\necho uid $(id -u)\necho fds $(ls /proc/self/fd)\necho group $(ps -o pgid= -p $$) $$"
    );
    let echo = format!("{TEXT}echo $REQUEST_METHOD $CONTENT_LENGTH $PATH_INFO; cat");
    let (mut server, dir) = serve(
        &[("env", &env), ("echo", &echo)],
        "basic_auth_credential = 'ann:secret'\naccess_log = 'ACCESS'\n"
            .replace("ACCESS", "/dev/null")
            .as_str(),
    );
    let login = "Authorization: Basic YW5uOnNlY3JldA==\r\n";
    assert_eq!(get(&server, "/cgi/env").status, 401);
    let answer =
        request(&server, "GET", "/cgi/env/a%20b?x=1", &format!("{login}Cookie: k=v\r\nProxy: evil\r\n\r\n"))
            .answer();
    let text = content(&answer);
    let root = dir.path().join("www");
    for line in [
        "AUTH_TYPE=Basic",
        "GATEWAY_INTERFACE=CGI/1.1",
        "HTTP_COOKIE=k=v",
        "PATH_INFO=/a b",
        &format!("PATH_TRANSLATED={}/a b", root.display()),
        "QUERY_STRING=x=1",
        "REMOTE_ADDR=127.0.0.1",
        "REMOTE_USER=ann",
        "REQUEST_METHOD=GET",
        "SCRIPT_NAME=/cgi/env",
        "SERVER_NAME=example.com",
        "SERVER_PORT=81",
        "SERVER_PROTOCOL=HTTP/1.1",
    ] {
        assert!(text.lines().any(|known| known == line), "{line}: {text}");
    }
    // The shell adds PWD and others.
    for name in text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name) {
        let is_known =
            ["PATH", "PWD", "OLDPWD", "SHLVL", "_", "DIR", "AUTH_TYPE", "DOCUMENT_ROOT", "QUERY_STRING"]
                .contains(&name)
                || ["HTTP_COOKIE", "HTTP_HOST"].contains(&name)
                || ["SERVER_", "REMOTE_", "SCRIPT_", "REQUEST_", "PATH_", "GATEWAY_"]
                    .iter()
                    .any(|start| name.starts_with(start));
        assert!(is_known, "{name}: {text}");
    }
    assert!(!text.contains("YW5u") && !text.contains("\nuid 0\n"), "{text}");
    assert!(text.contains("\nfds 0 1 2 3\n"), "ls opens the fourth: {text}");
    let group = text.lines().find_map(|line| line.strip_prefix("group ")).unwrap();
    let (group, pid) = group.split_once(' ').unwrap();
    assert_eq!(group, pid, "a process group of its own");

    let post = format!("{login}Content-Length: 5\r\n\r\nhello, which is more than 5");
    assert_eq!(content(&request(&server, "POST", "/cgi/echo/p", &post).answer()), "POST 5 /p\nhello");
    let answer = request(&server, "HEAD", "/cgi/echo", &format!("{login}\r\n")).answer();
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    // HTTP/1.0 has no chunks.
    let mut raw = Raw::connect(&server.address());
    raw.send(format!("GET /cgi/echo HTTP/1.0\r\n{login}\r\n").as_bytes());
    let answer = raw.answer();
    assert_eq!((answer.header("Transfer-Encoding"), &answer.body[..]), (None, &b"GET\n"[..]));
    for (method, rest, status) in [
        ("PUT", "\r\n", 405),
        ("XYZ", "\r\n", 501),
        ("POST", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        ("POST", "Content-Length: 99999999\r\n\r\n", 413),
    ] {
        let answer = request(&server, method, "/cgi/echo", &format!("{login}{rest}")).answer();
        assert_eq!(answer.status, status, "{method} {rest}");
    }
    server.stop();
}

#[test]
fn responses_of_programs() {
    let (mut server, dir) = serve(
        &[
            ("moved", "printf 'Location: https://example.com/x\\n\\n'"),
            ("gone", "printf 'Status: 410 Gone\\nContent-Type: text/plain\\r\\n\\r\\nno more'"),
            ("short", "printf 'Content-Type: a/b\\nContent-Length: 3\\n\\nabcdef'"),
            ("none", "exit 3"),
            ("words", "echo hello"),
            ("split", "printf 'Content-Type: text/plain\\nX-A: b\\rSet-Cookie: evil=1\\n\\n'"),
            (
                "smuggled",
                "printf 'Content-Type: a/b\\nTransfer-Encoding: chunked\\nConnection: keep-alive\\nX-A: b\\n\\n0\\r\\n\\r\\n'",
            ),
        ],
        "",
    );
    let answer = get(&server, "/cgi/moved");
    assert_eq!((answer.status, answer.header("Location")), (302, Some("https://example.com/x")));
    let answer = get(&server, "/cgi/gone");
    assert_eq!((answer.status, content(&answer)), (410, "no more".to_owned()));
    let answer = get(&server, "/cgi/short");
    assert_eq!((answer.header("Content-Length"), &answer.body[..]), (Some("3"), &b"abc"[..]));
    for bad in ["none", "words", "split"] {
        let answer = get(&server, &format!("/cgi/{bad}"));
        assert_eq!((answer.status, answer.header("Set-Cookie")), (502, None), "{bad}");
    }
    let answer = get(&server, "/cgi/smuggled");
    assert_eq!((content(&answer), answer.header("Connection")), ("0\r\n\r\n".to_owned(), Some("close")));
    server.says("cgi /cgi/none: output ended within the header");

    // No file below the directory can be read.
    let www = dir.path().join("www");
    write(www.join("cgi/data"), "secret").unwrap();
    write(www.join("page.txt"), "page").unwrap();
    for (resource, status) in [
        ("/cgi/data", 403),
        ("/c%67i/data", 403),
        ("/cgi/", 403),
        ("/cgi", 403),
        ("/cgi/nothing", 404),
        ("/cgi/../cgi/data", 404),
        ("/page.txt", 200),
        ("/page.txt/x", 404),
    ] {
        let answer = get(&server, resource);
        assert_eq!(answer.status, status, "{resource}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("secret"));
    }
    server.stop();
}

#[test]
fn output_is_streamed_and_a_program_ends_with_its_client() {
    let stream = "printf 'Content-Type: text/event-stream\\n\\ndata: one\\n\\n'\necho $$ >> $DIR/stream\n\
                  while [ ! -e $DIR/go ]; do sleep 0.02; done\nprintf 'data: two\\n\\n'\n";
    let endless = format!("{TEXT}echo $$ >> $DIR/endless\nexec yes");
    let silent = "sleep 1000 &\necho $! >> $DIR/silent\necho $$ >> $DIR/silent\nwait";
    let (mut server, dir) = serve(&[("stream", stream), ("endless", &endless), ("silent", silent)], "");
    let mut raw = request(&server, "GET", "/cgi/stream", "\r\n");
    let (mut first, mut byte) = (Vec::new(), [0]);
    while !first.ends_with(b"\r\n\r\nb\r\ndata: one\n\n\r\n") {
        raw.stream.read_exact(&mut byte).unwrap();
        first.push(byte[0]);
    }
    write(dir.path().join("notes/go"), "").unwrap();
    assert_eq!(String::from_utf8_lossy(&raw.rest()), "b\r\ndata: two\n\n\r\n0\r\n\r\n");

    // A program that prints continuously is blocked by its client. It ends with its client, as does one that prints
    // nothing.
    let mut raw = request(&server, "GET", "/cgi/endless", "\r\n");
    raw.head();
    let silent = request(&server, "GET", "/cgi/silent", "\r\n");
    until("they run", || noted(&dir, "silent").len() == 2 && noted(&dir, "endless").len() == 1);
    let pids = [noted(&dir, "silent"), noted(&dir, "endless")].concat();
    assert!(pids.iter().all(|pid| is_running(*pid)));
    assert!(memory_of(runner(&server), "RssAnon") < 20_000);
    drop((raw, silent));
    until("they have ended", || !pids.iter().any(|pid| is_running(*pid)));
    server.stop();
}

/// What is left of the body does not fit into the buffers, and the client has closed its end: nothing can be done before
/// the program reads.
#[test]
fn a_client_that_hangs_up_before_its_body_was_read_costs_no_time() {
    let deaf =
        format!("echo $$ >> $DIR/deaf\nwhile [ ! -e $DIR/go ]; do sleep 0.1; done\n{TEXT}echo without it");
    let (mut server, dir) = serve(&[("deaf", &deaf)], "");
    let size = 176 * 1024;
    let mut raw = request(&server, "POST", "/cgi/deaf", &format!("Content-Length: {size}\r\n\r\n"));
    raw.send(&vec![b'x'; size]);
    raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
    until("it runs", || noted(&dir, "deaf").len() == 1);
    std::thread::sleep(Duration::from_millis(100)); // the buffers fill
    let before = ticks(runner(&server));
    std::thread::sleep(Duration::from_secs(1));
    let used = ticks(runner(&server)) - before;
    assert!(used < 10, "{used} ticks of processor time in a second");
    write(dir.path().join("notes/go"), "").unwrap();
    assert_eq!(content(&raw.answer()), "without it\n");
    server.stop();
}

/// The processor time that a process has used, in hundredths of a second.
fn ticks(pid: i32) -> u64 {
    let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn time_is_bounded() {
    let (mut server, dir) = serve(
        &[
            ("silent", "sleep 1000 &\necho $! >> $DIR/silent\necho $$ >> $DIR/silent\nwait"),
            ("early", &format!("{TEXT}echo all\necho $$ >> $DIR/early\nexec >&-\nexec sleep 1000")),
        ],
        "cgi_timeout = '1s'\ncgi_processes = 2\n",
    );
    // No response in time.
    let begun = Instant::now();
    let silent = [0; 2].map(|_| request(&server, "GET", "/cgi/silent", "\r\n"));
    for mut raw in silent {
        assert_eq!(raw.answer().status, 504);
    }
    assert!(begun.elapsed() >= Duration::from_secs(1));
    until("all of their processes have ended", || !noted(&dir, "silent").iter().any(|pid| is_running(*pid)));
    server.says("cgi /cgi/silent: no input or output for cgi_timeout; killed");

    // The response ends when the output is closed; the program has cgi_timeout to exit. One that gets no processor for
    // so long before is killed.
    until("it has answered", || {
        let answer = get(&server, "/cgi/early");
        answer.status == 200 && answer.body == b"4\r\nall\n\r\n0\r\n\r\n"
    });
    until("it was killed", || !noted(&dir, "early").iter().any(|pid| is_running(*pid)));
    server.says("after closing its output (cgi_timeout); killed");
    server.stop();
}

#[test]
fn output_and_number_of_programs_are_bounded() {
    let (mut server, dir) = serve(
        &[
            ("silent", "echo $$ >> $DIR/silent\nexec sleep 1000"),
            ("large", &format!("{TEXT}head -c 1073741824 /dev/zero")),
            (
                "loud",
                &format!("{TEXT}i=0; while [ $i -lt 150 ]; do echo line $i >&2; i=$((i+1)); done; echo end"),
            ),
            (
                "late",
                "printf 'Content-Type: text/plain\\nContent-Length: 2\\n\\nok'\n\
                 yes 0123456789012345678901234567890123456789 | head -n 3000 >&2\necho 7 > $DIR/late",
            ),
            ("hello", &format!("{TEXT}echo hello")),
        ],
        "cgi_max_output = '4M'\ncgi_processes = 2\naccess_log = '-'\n",
    );
    let silent = [0; 2].map(|_| request(&server, "GET", "/cgi/silent", "\r\n"));
    until("they run", || noted(&dir, "silent").len() == 2);
    let answer = get(&server, "/cgi/hello");
    assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("1")), "two run already");
    server.says("resource=/cgi/hello status=503 ");
    drop(silent);
    until("there is room", || get(&server, "/cgi/hello").status == 200);

    // Too much output: the client sees a truncated response.
    let answer = get(&server, "/cgi/large");
    assert!(answer.body.len() < 5 << 20 && !answer.body.ends_with(b"0\r\n\r\n"), "{}", answer.body.len());
    server.says("cgi /cgi/large: output exceeds cgi_max_output; killed");

    assert_eq!(content(&get(&server, "/cgi/loud")), "end\n");
    server.says("cgi /cgi/loud: 50 more lines on standard error");

    // It is read until the program has exited, although the response is complete.
    assert_eq!(get(&server, "/cgi/late").body, b"ok");
    server.says("cgi /cgi/late: 2900 more lines on standard error");
    until("it was not blocked and killed", || noted(&dir, "late") == [7]);
    server.stop();
}

#[test]
fn processes_are_limited_and_none_is_left_behind() {
    let daemon = "setsid sh -c 'echo $$ >> $DIR/left; sleep 1000 & echo $! >> $DIR/left; wait' >$DIR/out 2>&1 &\n\
                  while [ ! -e $DIR/left ] || [ $(wc -l <$DIR/left) -lt 2 ]; do sleep 0.02; done\n";
    let (mut server, dir) = serve(&[("daemon", &format!("export DIR\n{daemon}{TEXT}echo done"))], "");
    assert_eq!(content(&get(&server, "/cgi/daemon")), "done\n");
    until("what it has left behind was killed", || {
        let left = noted(&dir, "left");
        left.len() == 2 && !left.iter().any(|pid| is_running(*pid))
    });
    server.stop();
    let (mut server, _dir) =
        serve(&[("forks", &format!("{TEXT}echo before\n/bin/true\necho after"))], "cgi_max_processes = 1\n");
    assert_eq!(content(&get(&server, "/cgi/forks")), "before\n");
    server.says("Cannot fork");
    server.stop();
}

#[test]
fn landlock_confines_programs_to_installed_files() {
    let looks = format!(
        "{TEXT}for file in /etc/passwd $0 $DIR/secret $DIR/../cgi_wsh.so; do\n\
                         head -c 1 $file >/dev/null 2>&1 && echo yes || echo no\ndone\n\
                         (echo >$DIR/new) 2>/dev/null || echo no"
    );
    for (text, expected) in [("landlock = true\n", "yes\nyes\nno\nno\nno\n"), ("", "yes\nyes\nyes\nyes\n")] {
        let (mut server, dir) = serve(&[("looks", &looks)], text);
        write(dir.path().join("notes/secret"), "secret").unwrap();
        write(dir.path().join("cgi_wsh.so"), "no handler").unwrap();
        assert_eq!(content(&get(&server, "/cgi/looks")), expected, "{text}");
        server.stop();
    }
}

#[test]
fn programs_end_with_the_server_and_survive_a_reload() {
    let wait = format!("{TEXT}echo $$ >> $DIR/wait\nwhile [ ! -e $DIR/go ]; do sleep 0.02; done\necho done");
    let (mut server, dir) = serve(&[("wait", &wait)], "");
    let mut raw = request(&server, "GET", "/cgi/wait", "\r\n");
    until("it runs", || noted(&dir, "wait").len() == 1);
    let (old, conf) = (runner(&server), dir.path().join("wshd.conf"));
    write(&conf, read_to_string(&conf).unwrap() + "cgi_processes = 3\n").unwrap();
    server.signal(nix::sys::signal::Signal::SIGHUP);
    server.says("reload: done");
    write(dir.path().join("notes/go"), "").unwrap();
    assert_eq!(content(&raw.answer()), "done\n");
    until("the old process has left", || !is_running(old));
    // The new process is killed and replaced; requests wait meanwhile.
    let pid = runner(&server);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(content(&get(&server, "/cgi/wait")), "done\n");
    std::fs::remove_file(dir.path().join("notes/go")).unwrap();
    let _raw = request(&server, "GET", "/cgi/wait", "\r\n");
    until("it runs", || noted(&dir, "wait").len() == 3);
    server.stop();
    until("it has ended", || !noted(&dir, "wait").iter().any(|pid| is_running(*pid)));
}

#[test]
fn a_server_without_directories_of_programs_serves_files() {
    let dir = Dir::new();
    let root = dir.path().join("www");
    create_dir_all(root.join("cgi")).unwrap();
    write(root.join("cgi/a"), "file").unwrap();
    let mut server = Server::start(&dir, &["--document-root", root.to_str().unwrap()]);
    assert_eq!(get(&server, "/cgi/a").body, b"file");
    server.stop();
    for (args, expected) in [
        (&["--cgi-paths", "/cgi"][..], "--cgi-paths: needs document_root"),
        (&["--cgi-paths", "/../x", "-d", "/"], "expected directories relative to the document root"),
    ] {
        let output = daemon::run(args);
        assert!(String::from_utf8_lossy(&output.stderr).contains(expected), "{output:?}");
    }
}

#[test]
#[ignore = "curl"]
fn curl_sends_a_large_body_after_100_continue() {
    let (mut server, dir) = serve(&[("count", &format!("{TEXT}wc -c"))], "cgi_max_body = '4M'\n");
    let body = dir.path().join("body");
    write(&body, vec![b'x'; 3 << 20]).unwrap();
    let url = format!("http://{}/cgi/count", server.address());
    let output = Command::new("curl")
        .args([
            "-sS",
            "-v",
            "--data-binary",
            &format!("@{}", body.display()),
            "-H",
            "Expect: 100-continue",
            &url,
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), (3 << 20).to_string());
    assert!(String::from_utf8_lossy(&output.stderr).contains("HTTP/1.1 100 Continue"));
    server.stop();
}

#[test]
fn the_access_log_has_the_bytes_sent() {
    let hello = format!("{TEXT}printf 'hello, world'");
    let (mut server, _dir) =
        serve(&[("hello", &hello)], "access_log = '-'\naccess_log_fields = 'reply_bytes'\n");
    assert_eq!(content(&get(&server, "/cgi/hello")), "hello, world");
    let missing = get(&server, "/cgi/missing");
    assert_eq!(missing.status, 404);
    let bytes = missing.body.len();
    for line in ["resource=/cgi/hello status=200 ", "resource=/cgi/missing status=404 "] {
        server.says(line);
    }
    let log = server.log();
    let of = |resource: &str| log.lines().find(|line| line.contains(resource)).unwrap();
    assert!(of("resource=/cgi/hello").ends_with("reply_bytes=12"), "{log}");
    assert!(of("resource=/cgi/missing").ends_with(&format!("reply_bytes={bytes}")), "{log}");
    server.stop();
}
