//! From `wshd new` to a browser that uses the handler, in a root with only a compiler, make and the installed `wshd`:
//! the transcript of wshd-new(1), in each language. Prints the time that it took.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::daemon::{Dir, output_of, output_within};
use super::webdriver::Browser;
use super::{Running, ends};

/// The root directory of a new user.
const COMMANDS: usize = 5;
const TIME: Duration = Duration::from_secs(300);

/// An empty root with the packages gcc, g++ and make, and what `make install` installs.
struct Root {
    dir: Dir,
    /// The toolchain of Rust, which is at `/rust` in it.
    toolchain: PathBuf,
}

impl Root {
    /// `None` if it cannot be created: not Debian, or no permission to mount.
    fn new() -> Option<Self> {
        if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success()) {
            return None;
        }
        Command::new("apt-cache").arg("--version").output().ok()?;
        let dir = Dir::new();
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut copy = Command::new("sh");
        copy.arg(source.join("tests/kit/root.sh")).arg(dir.path()).args(["gcc", "g++", "make"]);
        ends(&output_within(TIME, &mut copy).unwrap(), 0, "");
        let built = Path::new(env!("CARGO_BIN_EXE_wshd")).parent().unwrap();
        let mut install = Command::new("make");
        install.current_dir(source).args(["install", "PREFIX=/usr"]).env_remove("MAKEFLAGS");
        install.arg(format!("DESTDIR={}", dir.path().display())).arg(format!("BUILT={}", built.display()));
        ends(&output_of(&mut install).unwrap(), 0, "");
        let sysroot = output_of(Command::new("rustc").args(["--print", "sysroot"])).unwrap();
        let toolchain = PathBuf::from(String::from_utf8(sysroot.stdout).unwrap().trim());
        Some(Root { dir, toolchain })
    }

    /// Runs a command line in a directory of it.
    fn command(&self, dir: &str, line: &str) -> Command {
        const SCRIPT: &str = r#"
            mount --rbind /proc "$1/proc"
            mount --rbind /dev "$1/dev"
            mount --bind "$2" "$1/rust"
            exec chroot "$1" /usr/bin/env -i PATH=/usr/bin:/rust/bin HOME=/root sh -ec 'cd "$1"; eval "$2"' sh "$3" "$4"
        "#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", SCRIPT, "sh"]).arg(self.dir.path()).arg(&self.toolchain);
        command.args([dir, line]).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, dir: &str, line: &str) -> Output {
        println!("$ {line}");
        let output = output_within(TIME, &mut self.command(dir, line)).unwrap();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        output
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Follows the instructions of `wshd new`.
fn begins(root: &Root, lang: &str) {
    let begun = Instant::now();
    let home = format!("/root/{lang}");
    std::fs::create_dir(root.dir.path().join(format!("root/{lang}"))).unwrap();
    let said = text(&root.run(&home, &format!("wshd new hello --lang {lang}")).stdout);
    let next: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let [cd, make, run] = next[..] else { panic!("{said}") };
    assert_eq!(cd, "cd hello");
    let dir = format!("{home}/hello");
    let tested = text(&root.run(&dir, make).stdout);
    assert!(tested.contains("hello.test: passed, 12 steps"), "{tested}");

    // On a free port, as other tests run beside this one.
    let run = run.strip_prefix("wshd run ").unwrap();
    let running = Running::of(root.command(&dir, &format!("exec wshd run --port 0 {run}")));
    let address = running.address();
    let said = root.run(&dir, &format!("echo hello | wshd cat ws://{address}/hello"));
    assert_eq!(text(&said.stdout), "hello\n");
    println!("{lang}: {} commands, {:.1} s", next.len() + 2, begun.elapsed().as_secs_f32());
    assert!(next.len() + 2 <= COMMANDS && begun.elapsed() < TIME);

    let browser = Browser::start(1280, 800);
    browser.open(&format!("http://{address}/console.html#/hello"));
    browser.click("#connect");
    browser.wait("document.querySelector('#state').dataset.state === 'open'");
    browser.fill("#text", "from a browser");
    browser.click("#send");
    browser.wait("document.querySelector('.row.received')?.textContent.includes('from a browser')");
}

#[test]
#[ignore = "needs Debian, chromium and the right to mount; runs cargo"]
fn a_newcomer_needs_five_commands() {
    let Some(root) = Root::new() else {
        println!("skipped: needs Debian, and the right to mount");
        return;
    };
    let root = &root;
    std::thread::scope(|scope| {
        for lang in ["c", "c++", "rust"] {
            scope.spawn(move || begins(root, lang));
        }
    });
}
