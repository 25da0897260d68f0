//! Workers confined to the files and system calls that they need. Skipped if the kernel has no Landlock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;

use std::path::Path;

use client::Raw;
use daemon::{Dir, Server};
use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};

/// Executes commands: `read PATH`, `write PATH`, `lookup NAME`, `run COMMAND`, `crash`. Answers with 0
/// or errno.
const HANDLER: &str = r#"
    #include <ws_handler.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <netdb.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <unistd.h>

    /* Also when the server looks at what there is to serve. */
    __attribute__((constructor)) static void construct(void)
    {
        int fd = open("TOUCHED", O_WRONLY | O_CREAT, 0600);
        if (fd >= 0)
            close(fd);
    }

    static void on_message(ws_conn conn, const ws_message *msg)
    {
        const char *text = (const char *)msg->data, *path = strchr(text, ' ') + 1;
        char        answer[32];
        int         result = 0, fd;
        if (strncmp(text, "crash ", 6) == 0)
            abort();
        if (strncmp(text, "lookup ", 7) == 0) {
            struct addrinfo *found;
            result = getaddrinfo(path, "http", NULL, &found);
        } else if (strncmp(text, "run ", 4) == 0) {
            result = system(path);
        } else {
            fd = text[0] == 'r' ? open(path, O_RDONLY) : open(path, O_WRONLY | O_CREAT, 0600);
            if (fd < 0)
                result = errno;
            else
                close(fd);
        }
        snprintf(answer, sizeof answer, "%d", result);
        ws_send(conn, WS_TEXT, answer, strlen(answer));
    }

    WS_HANDLER(.name = "files", .on_message = on_message);
"#;

fn is_supported() -> bool {
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let supported = rules.handle_access(AccessFs::from_all(ABI::V1)).and_then(Ruleset::create).is_ok();
    if !supported {
        println!("skipped: this kernel has no Landlock");
    }
    supported
}

#[track_caller]
fn tell(raw: &mut Raw, what: &str, path: &Path) -> i32 {
    raw.ask(&format!("{what} {}", path.display())).parse().unwrap()
}

#[test]
fn handlers_can_use_allowed_files_only() {
    if !is_supported() {
        return;
    }
    let (dir, other) = (Dir::new(), Dir::new());
    let made = |name: &str| {
        let path = other.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("file"), "content").unwrap();
        path
    };
    let [read, write, none, root] = ["read", "write", "none", "root"].map(made);
    let paths =
        [format!("-olandlock_read={}", read.display()), format!("-olandlock_write={}", write.display())];
    let args = |confined: bool| {
        let root = root.to_str().unwrap();
        let paths = paths.each_ref().map(String::as_str);
        let confined = if confined { [&["-olandlock=true"][..], &paths].concat() } else { Vec::new() };
        [&["--workers", "1", "--document-root", root, "-o", "quarantine_deaths=0"], &confined[..]].concat()
    };
    let touched = none.join("touched");
    let handler = dir.handler("files", &HANDLER.replace("TOUCHED", touched.to_str().unwrap()));
    const OK: i32 = 0;
    for is_confined in [true, false] {
        let denied = if is_confined { libc::EACCES } else { OK };
        let mut server = Server::start(&dir, &args(is_confined));
        assert_ne!(touched.exists(), is_confined, "by the probe or the worker");
        let mut raw = Raw::open(&server.address(), "/files");
        for _ in 0..2 {
            for (what, path, expected) in [
                ("read", handler.clone(), OK),
                ("write", handler.with_file_name("new"), denied),
                ("read", read.join("file"), OK),
                ("write", read.join("file"), denied),
                ("read", write.join("file"), OK),
                ("write", write.join("new"), OK),
                ("read", none.join("file"), denied),
                ("read", "/etc".into(), denied),
                ("read", root.join("file"), OK),
                ("write", root.join("file"), denied),
                ("write", "/dev/null".into(), OK),
                ("read", "/proc/self/status".into(), OK),
            ] {
                assert_eq!(tell(&mut raw, what, &path), expected, "{is_confined}: {what} {}", path.display());
            }
            // The files that the C library needs are allowed.
            assert_eq!(tell(&mut raw, "lookup", Path::new("localhost")), OK);
            // Programs are confined too: this one cannot even be executed.
            let failed = tell(&mut raw, "run", Path::new("true")) != 0;
            assert_eq!(failed, is_confined);
            // The rescue works, and the replacement is confined too.
            let mut culprit = Raw::open(&server.address(), "/files");
            culprit.text("crash now");
            culprit.expect_close(1011);
        }
        let mut page = Raw::connect(&server.address());
        page.send(b"GET /file HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(page.answer().body, b"content");
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.worker())).unwrap();
        assert_eq!(status.contains("NoNewPrivs:\t1"), is_confined);
        drop((raw, page));
        server.stop();
    }
}

/// Makes the named system call with harmless arguments: answers with 0 or errno.
const CALLS: &str = r#"
    #define _GNU_SOURCE
    #include <ws_handler.h>
    #include <errno.h>
    #include <pthread.h>
    #include <sched.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/ptrace.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    static void *nothing(void *arg) { return arg; }

    static long call(const char *name)
    {
        pthread_t thread;
        if (strcmp(name, "thread") == 0)
            return pthread_create(&thread, NULL, nothing, NULL) || pthread_join(thread, NULL);
        if (strcmp(name, "program") == 0)
            return system("true");
        if (strcmp(name, "crash") == 0)
            abort();
        if (strcmp(name, "setuid") == 0)
            return setuid(getuid());
        if (strcmp(name, "ptrace") == 0)
            return ptrace(PTRACE_ATTACH, 0, NULL, NULL); /* no such process */
        if (strcmp(name, "clone") == 0)
            return syscall(SYS_clone, CLONE_NEWUSER | CLONE_FS, NULL, NULL, NULL, NULL); /* no such combination */
        if (strcmp(name, "clone3") == 0)
            return syscall(SYS_clone3, NULL, 0);
        if (strcmp(name, "bpf") == 0)
            return syscall(SYS_bpf, -1, NULL, 0);
        if (strcmp(name, "io_uring_setup") == 0)
            return syscall(SYS_io_uring_setup, 0, NULL);
    #ifdef __x86_64__
        if (strcmp(name, "x32 ptrace") == 0)
            return syscall(0x40000000 + 521, PTRACE_ATTACH, 0, NULL, NULL);
    #endif
        errno = EPERM;
        return -1;
    }

    static void on_message(ws_conn conn, const ws_message *msg)
    {
        char name[32] = "", answer[32];
        memcpy(name, msg->data, msg->size < sizeof name ? msg->size : sizeof name - 1);
        errno = 0;
        long result = call(name);
        snprintf(answer, sizeof answer, "%ld", result < 0 ? errno : result);
        ws_send(conn, WS_TEXT, answer, strlen(answer));
    }

    WS_HANDLER(.name = "calls", .on_message = on_message);
"#;

#[test]
fn handlers_can_make_allowed_system_calls_only() {
    let dir = Dir::new();
    let handler = dir.handler("shared", CALLS);
    for other in ["open_wsh.so", "single_wsh.so"] {
        std::fs::copy(&handler, handler.with_file_name(other)).unwrap();
    }
    let config = dir.path().join("w.conf");
    let text = "workers = 1\nseccomp = true\nquarantine_deaths = 0\nprocess_timeout = '1m'\n\
                [handler.'/open']\nisolation = 'pool'\n[pool.open]\nseccomp = false\n\
                [handler.'/single']\nisolation = 'connection'\n";
    std::fs::write(&config, text).unwrap();
    let mut server = Server::start(&dir, &["--config", config.to_str().unwrap()]);
    for resource in ["/shared", "/single", "/shared"] {
        let mut raw = Raw::open(&server.address(), resource);
        for (call, expected) in [
            ("setuid", libc::EPERM),
            ("ptrace", libc::EPERM),
            ("x32 ptrace", libc::EPERM),
            ("bpf", libc::EPERM),
            ("io_uring_setup", libc::EPERM),
            ("clone", libc::EPERM),
            ("clone3", libc::ENOSYS),
            ("thread", 0),
            ("program", 0),
        ] {
            assert_eq!(raw.ask(call), expected.to_string(), "{resource}: {call}");
        }
        // The rescue works, and the replacement is confined too.
        raw.text("crash");
        raw.expect_close(1011);
    }
    let mut open = Raw::open(&server.address(), "/open");
    for (call, expected) in [("setuid", 0), ("ptrace", libc::ESRCH)] {
        assert_eq!(open.ask(call), expected.to_string(), "{call}");
    }
    drop(open);
    assert!(!server.log().contains("process_vm_readv"), "the rescue cannot look at memory");
    server.stop();
}
