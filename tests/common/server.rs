//! A server under test, its directory, and handlers compiled from C for it.
#![allow(dead_code, unsafe_code, clippy::unwrap_used)] // each test program uses a part

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Upper bound for each step of a test.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Time that a process of the server needs on a busy machine, unless a test gives the setting itself.
const PATIENCE: [&str; 2] = ["stop_timeout=25s", "worker_timeout=1m"];

/// A temporary directory, which is kept and printed when the test fails.
pub struct Dir(Option<tempfile::TempDir>);

impl Dir {
    pub fn new() -> Self {
        Self(Some(tempfile::Builder::new().prefix("wshd-test-").tempdir().unwrap()))
    }

    pub fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }

    /// Compiles `NAME_wsh.so`; NAME may have directories.
    pub fn handler(&self, name: &str, source: &str) -> PathBuf {
        let object = self.path().join(format!("{name}_wsh.so"));
        std::fs::create_dir_all(object.parent().unwrap()).unwrap();
        let file = object.with_extension("c");
        std::fs::write(&file, source).unwrap();
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-O0", "-I"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/include"))
            .args([&file, Path::new("-o"), &object])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        object
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let path = self.0.take().unwrap().keep();
            eprintln!("kept: {}", path.display());
        }
    }
}

/// The smallest handler.
pub const ECHO: &str = r#"
    #include <ws_handler.h>
    static void on_message(ws_conn conn, const ws_message *msg)
    {
        ws_send(conn, msg->type, msg->data, msg->size);
    }
    WS_HANDLER(.name = "echo", .on_message = on_message);
"#;

/// The program under test.
pub fn wshd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wshd"));
    command.stdin(Stdio::null());
    command
}

/// Like [`Command::output`], but kills a command that does not end, and returns an error.
pub fn output_of(command: &mut Command) -> std::io::Result<Output> {
    output_within(TIMEOUT, command)
}

/// The same with another time limit.
pub fn output_within(limit: Duration, command: &mut Command) -> std::io::Result<Output> {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = Pid::from_raw(child.id() as i32);
    let (sender, output) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    output.recv_timeout(limit).unwrap_or_else(|_| {
        // It is reaped only after its output has ended, so the pid is still its own.
        let _ = kill(pid, Signal::SIGKILL);
        Err(std::io::Error::other(format!("killed after {limit:?}: {command:?}")))
    })
}

/// Runs it to its end.
pub fn run(args: &[&str]) -> Output {
    output_of(wshd().args(args)).unwrap()
}

/// Runs `wshd ctl` against the server with this control socket.
pub fn ctl(socket: &Path, args: &[&str]) -> Output {
    output_of(wshd().args(["ctl", "--control-socket"]).arg(socket).args(args)).unwrap()
}

/// Kills the process when the thread that starts it ends, so that a killed test leaves nothing behind.
pub fn bound(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) }
}

/// A running server. Killed at the end of the test if it still runs; its workers then exit.
pub struct Server {
    pub child: Child,
    /// The line it printed when it was ready.
    pub ready: String,
    log: PathBuf,
}

impl Server {
    /// Serves the handlers in `dir` on a free port and waits until it is ready.
    pub fn start(dir: &Dir, args: &[&str]) -> Self {
        Self::spawn(dir, args).when_ready()
    }

    /// Waits until it is ready.
    pub fn when_ready(mut self) -> Self {
        let server = &mut self;
        let stdout = server.child.stdout.take().unwrap();
        let (sender, line) = mpsc::channel();
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut text = String::new();
            let _ = stdout.read_line(&mut text);
            let _ = sender.send(text);
            let _ = stdout.read_to_end(&mut Vec::new());
        });
        server.ready = line.recv_timeout(TIMEOUT).unwrap_or_default();
        assert!(server.ready.starts_with("wshd: ready on "), "{:?}\n{}", server.ready, server.log());
        self
    }

    /// The same without waiting.
    pub fn spawn(dir: &Dir, args: &[&str]) -> Self {
        let log = dir.path().join("log");
        let mut command = wshd();
        command.args(["--port", "0", "--log-level", "debug", "--websock-handlers"]).arg(dir.path());
        command.arg("--log-file").arg(&log).args(args);
        let is_given = |setting: &str| {
            let name = setting.split('=').next().unwrap();
            args.iter().any(|arg| arg.trim_start_matches("-o").split('=').next() == Some(name))
        };
        for setting in PATIENCE.into_iter().filter(|setting| !is_given(setting)) {
            command.args(["-o", setting]);
        }
        Self::launch(command, log)
    }

    /// Runs a command that becomes a server and logs to this file.
    pub fn launch(mut command: Command, log: PathBuf) -> Self {
        bound(command.stdout(Stdio::piped()));
        let mut child = None;
        // A new executable may still be open for writing in a child that another test has just forked.
        until("it can be started", || match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => false,
            started => {
                child = Some(started.unwrap());
                true
            }
        });
        Self { child: child.unwrap(), ready: String::new(), log }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Its standard error, which includes the log.
    pub fn log(&self) -> String {
        let read = |path: &Path| std::fs::read(path).unwrap_or_default();
        let text = [read(&self.log), read(&self.log.with_file_name("stderr"))].concat();
        String::from_utf8_lossy(&text).into_owned()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// The first address in the ready line: `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        let rest = self.ready.trim_start_matches("wshd: ready on ");
        rest.split([',', ' ']).next().unwrap_or_default().to_owned()
    }

    /// Waits until the log contains this.
    #[track_caller]
    pub fn says(&self, text: &str) {
        until(&format!("the log says {text:?}"), || self.log().contains(text));
    }

    /// The pid of its only worker.
    #[track_caller]
    pub fn worker(&self) -> i32 {
        let mut only = 0;
        // A replaced one may still be running.
        until("there is one worker", || match self.workers()[..] {
            [pid] => {
                only = pid;
                true
            }
            _ => false,
        });
        only
    }

    /// The output of `wshd ctl` at this control socket; it must succeed.
    #[track_caller]
    pub fn ctl_says(&self, socket: &Path, args: &[&str]) -> String {
        let output = ctl(socket, args);
        assert!(output.status.success(), "{args:?}: {output:?}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error of a `wshd ctl` command that the server refuses.
    #[track_caller]
    pub fn ctl_refuses(&self, socket: &Path, args: &[&str]) -> String {
        let output = ctl(socket, args);
        assert_eq!(output.status.code(), Some(9), "{args:?}: {output:?}");
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }

    /// Stops it, and asserts that it ends properly: exit code 0, no process left, no panic.
    #[track_caller]
    pub fn stop(&mut self) {
        let workers = self.workers();
        self.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(self.wait().code(), Some(0), "{}", self.log());
        assert!(workers.iter().all(|pid| !is_alive(*pid)), "workers are left");
        let log = self.log();
        assert!(!log.contains("panicked at"), "{log}");
    }

    /// The pids of its workers and of zygotes, in any order, found by their titles, since the supervisor has other
    /// children too, such as one that writes a crash record.
    pub fn workers(&self) -> Vec<i32> {
        let is_worker = |pid: &i32| {
            let title = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            title
                .split_once(": ")
                .is_some_and(|(_, part)| part.starts_with("worker ") || part.starts_with("parent "))
        };
        children(self.pid()).into_iter().filter(is_worker).collect()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the server ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the server:\n{}", self.log());
        }
        let children = children(self.pid());
        let _ = self.child.kill();
        let _ = self.child.wait();
        for child in children {
            // A process that a test has stopped must continue to see the signal.
            let _ = kill(Pid::from_raw(child), Signal::SIGCONT);
        }
    }
}

/// Polls until the condition holds.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < TIMEOUT, "still not so after {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The pids of a process's children, zombies included.
pub fn children(pid: i32) -> Vec<i32> {
    let read = || std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut text = read();
    // If one is reaped during it, another may be missing (proc_pid_children(5)).
    loop {
        let again = read();
        if again == text {
            return text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        }
        text = again;
    }
}

/// A kind of memory of a process, such as VmRSS or RssAnon (proc_pid_status(5)); KiB.
pub fn memory_of(pid: i32, kind: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.strip_prefix(kind).is_some_and(|rest| rest.starts_with(':')));
    line.unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// How many descriptors a process has open.
pub fn descriptors_of(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Whether all threads of a process sleep, so that it has no work left. False if it has ended.
pub fn is_idle(pid: i32) -> bool {
    // They are looked at one after another: all of them slept at the same time only if none has run in between.
    let first = sleeping(pid);
    first.is_some() && first == sleeping(pid)
}

/// The threads of a process and how often each was switched from (proc_pid_status(5)); none unless all of them sleep.
fn sleeping(pid: i32) -> Option<Vec<String>> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        let path = task.ok()?.path();
        let status = std::fs::read_to_string(path.join("status")).ok()?;
        let switches = status.lines().filter(|line| line.contains("_ctxt_switches:"));
        let seen = switches.fold(path.display().to_string(), |seen, line| seen + " " + line);
        status.contains("\nState:\tS ").then_some(seen)
    };
    tasks.map(of_task).collect::<Option<Vec<_>>>().filter(|tasks| !tasks.is_empty())
}

/// Whether the process exists and is not a zombie.
pub fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map_or("", |(_, fields)| fields.split(' ').next().unwrap());
    !matches!(state, "" | "Z" | "X")
}
