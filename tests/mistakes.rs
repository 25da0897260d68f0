//! `mistakes.txt` is a transcript of mistakes in configuration and options, each with the exact message
//! and status. UPDATE_TRANSCRIPT in the environment updates it, for review.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TRANSCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mistakes.txt");
/// A user without rights.
const NOBODY: u32 = 65_534;
/// Time limit: an undetected mistake starts a server.
const TIMEOUT: Duration = Duration::from_secs(60);

/// One mistake: files and command line.
#[derive(Default)]
struct Mistake<'t> {
    /// All lines before the output.
    lines: Vec<&'t str>,
    output: Vec<&'t str>,
    status: &'t str,
}

fn mistakes(text: &str) -> Vec<Mistake<'_>> {
    let mut all = vec![Mistake::default()];
    for line in text.lines() {
        let last = all.last_mut().unwrap();
        match line.split_once(' ').unwrap_or((line, "")) {
            (">", output) => last.output.push(output),
            ("=", status) => {
                last.status = status;
                all.push(Mistake::default());
            }
            _ => last.lines.push(line),
        }
    }
    all.retain(|mistake| mistake.lines.iter().any(|line| line.starts_with('$')));
    all
}

impl Mistake<'_> {
    /// The output and status. None if this user cannot make the mistake.
    fn made(&self) -> Option<(String, String)> {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().canonicalize().unwrap();
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755)).unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let (mut file, mut as_nobody) = (None, false);
        let is_root = nix::unistd::geteuid().is_root();
        std::fs::create_dir(place.join("handlers")).unwrap();
        for line in &self.lines {
            let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
            match mark {
                "+" => {
                    std::fs::create_dir_all(place.join(rest).parent().unwrap()).unwrap();
                    std::fs::write(place.join(rest), "").unwrap();
                    file = Some(place.join(rest));
                }
                "|" => {
                    let path: &Path = file.as_deref().unwrap();
                    let text = std::fs::read_to_string(path).unwrap() + rest + "\n";
                    std::fs::write(path, text).unwrap();
                }
                "*" => match rest.split_whitespace().collect::<Vec<_>>()[..] {
                    ["root" | "nobody"] if !is_root => return None,
                    ["nobody"] => as_nobody = true,
                    ["root"] => {}
                    ["mode", mode, name] => {
                        let mode = u32::from_str_radix(mode, 8).unwrap();
                        let permissions = std::fs::Permissions::from_mode(mode);
                        std::fs::set_permissions(place.join(name), permissions).unwrap();
                    }
                    ["owner", id, name] => chown(place.join(name), id.parse().ok(), None).unwrap(),
                    ["directory", name] => std::fs::create_dir(place.join(name)).unwrap(),
                    _ => panic!("{line}"),
                },
                _ => {}
            }
        }
        let line = self.lines.iter().find_map(|line| line.strip_prefix("$ wshd")).unwrap();
        let line = line.replace("DIR", place.to_str().unwrap()).replace("PORT", &port);
        let mut command = Command::new(env!("CARGO_BIN_EXE_wshd"));
        if as_nobody {
            // The build directory may not be accessible to other users.
            std::fs::copy(env!("CARGO_BIN_EXE_wshd"), place.join("wshd")).unwrap();
            command = Command::new(place.join("wshd"));
            command.uid(NOBODY).gid(NOBODY);
        }
        command.args(words(&line)).current_dir(&place).env_remove("NOTIFY_SOCKET");
        let output = end_of(command.stdin(Stdio::null()));
        let text = String::from_utf8(output.1).unwrap();
        let text = text.replace(place.to_str().unwrap(), "DIR").replace(&port, "PORT");
        let shown: Vec<String> = text.lines().map(without_time).collect();
        Some((shown.join("\n"), output.0))
    }
}

/// Replaces the time and process of log lines.
fn without_time(line: &str) -> String {
    let is_log = line.get(4..5) == Some("-") && line.get(10..11) == Some("T") && line.contains("Z ");
    let Some((_, line)) = line.split_once("Z ").filter(|_| is_log) else { return line.to_owned() };
    let (level, rest) = line.split_once(char::is_whitespace).unwrap();
    let rest = rest.trim_start();
    let (process, rest) = rest.split_once(' ').unwrap();
    format!("TIME {level} {}[PID] {rest}", process.split('[').next().unwrap())
}

/// Splits words like a shell with single quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in line.split('\'').enumerate() {
        match number % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

/// Status and standard error of a program, which must end.
fn end_of(command: &mut Command) -> (String, Vec<u8>) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > TIMEOUT {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let status = output.status.code().map_or("it did not end".to_owned(), |code| code.to_string());
    (status, output.stderr)
}

#[test]
fn each_mistake_has_its_message_and_status() {
    let text = std::fs::read_to_string(TRANSCRIPT).unwrap();
    let mistakes = mistakes(&text);
    assert!(mistakes.len() >= 100, "{} mistakes", mistakes.len());
    let (mut wrong, mut written) = (String::new(), String::new());
    for mistake in &mistakes {
        let before = (mistake.output.join("\n"), mistake.status.to_owned());
        let made = mistake.made();
        let (output, status) = made.as_ref().unwrap_or(&before);
        mistake.lines.iter().for_each(|line| writeln!(written, "{line}").unwrap());
        output.lines().for_each(|line| writeln!(written, "> {line}").unwrap());
        writeln!(written, "= {status}").unwrap();
        if made.as_ref().is_some_and(|made| *made != before) {
            let lines = mistake.lines.join("\n");
            writeln!(wrong, "{lines}\nexpected {before:?}\ngot      {made:?}\n").unwrap();
        }
    }
    match std::env::var_os("UPDATE_TRANSCRIPT") {
        Some(_) => std::fs::write(TRANSCRIPT, written).unwrap(),
        None => assert!(wrong.is_empty(), "{wrong}"),
    }
}
