//! Files and errors over plain HTTP, from the real server, byte by byte.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/server.rs"]
mod daemon;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use daemon::{Dir, ECHO, Server, TIMEOUT, until};
use nix::sys::stat::Mode;

/// A server with one worker, the handler `/echo` and a document root.
struct Site {
    dir: Dir,
    server: Server,
    address: String,
}

impl Site {
    fn start() -> Self {
        let dir = Dir::new();
        dir.handler("echo", ECHO);
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("a.txt"), "0123456789").unwrap();
        fs::write(root.join("sub/index.html"), "<p>sub").unwrap();
        fs::write(dir.path().join("outside.txt"), "outside").unwrap();
        let server = Server::start(&dir, &["--workers", "1", "--document-root", root.to_str().unwrap()]);
        let address =
            server.ready.trim_start_matches("wshd: ready on ").split(',').next().unwrap().to_owned();
        Self { dir, server, address }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    /// Sends the request line and header lines given, and reads to the end of the connection.
    #[track_caller]
    fn ask(&self, request: &str) -> Answer {
        let mut stream = self.connect();
        write!(stream, "{request}\r\nHost: {}\r\n\r\n", self.address).unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        Answer::split(reply)
    }

    #[track_caller]
    fn get(&self, target: &str) -> Answer {
        self.ask(&format!("GET {target} HTTP/1.1"))
    }

    /// Private memory of the only worker.
    fn worker_kib(&self) -> u64 {
        let [worker] = self.server.workers()[..] else { panic!("one worker is expected") };
        let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    fn split(mut reply: Vec<u8>) -> Self {
        let end = reply.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a whole reply head") + 4;
        let body = reply.split_off(end);
        let head = String::from_utf8(reply).unwrap();
        Self { status: head[9..12].parse().unwrap(), head, body }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

#[test]
fn a_file_and_its_headers() {
    let site = Site::start();
    let get = site.get("/a.txt?x");
    assert_eq!((get.status, &get.body[..]), (200, &b"0123456789"[..]));
    assert_eq!(get.header("Content-Type"), Some("text/plain; charset=utf-8"));
    assert_eq!(get.header("Content-Length"), Some("10"));
    assert_eq!(get.header("Connection"), Some("close"));
    let head = site.ask("HEAD /a.txt HTTP/1.1");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("Content-Length"), Some("10"));
    assert_eq!(site.ask("GET /a.txt HTTP/1.0").body, b"0123456789");
    assert_eq!(site.get("/sub/").body, b"<p>sub");
    assert_eq!(site.get("/sub").header("Location"), Some("/sub/"));
    let absolute = site.get(&format!("http://{}/a.txt", site.address));
    assert_eq!(absolute.body, b"0123456789");
    assert_eq!(site.get("/echo").header("Upgrade"), Some("websocket"));
    assert_eq!(site.get("/console.html").header("Content-Type"), Some("text/html; charset=utf-8"));
}

#[test]
fn conditions_and_ranges() {
    let site = Site::start();
    let etag = site.get("/a.txt").header("ETag").unwrap().to_owned();
    let with = |line: &str| site.ask(&format!("GET /a.txt HTTP/1.1\r\n{line}"));
    let unchanged = with(&format!("If-None-Match: {etag}"));
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    assert_eq!(with("If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT").status, 304);
    assert_eq!(with("If-Match: \"other\"").status, 412);
    let part = with("Range: bytes=2-4");
    assert_eq!(
        (part.status, &part.body[..], part.header("Content-Range")),
        (206, &b"234"[..], Some("bytes 2-4/10"))
    );
    assert_eq!(with("Range: bytes=-3").body, b"789");
    let beyond = with("Range: bytes=10-");
    assert_eq!((beyond.status, beyond.header("Content-Range")), (416, Some("bytes */10")));
}

#[test]
fn nothing_outside_the_root_and_nothing_hidden() {
    let site = Site::start();
    let root = site.root();
    fs::write(root.join(".hidden"), "hidden").unwrap();
    fs::create_dir(root.join(".git")).unwrap();
    fs::write(root.join(".git/config"), "hidden").unwrap();
    fs::copy(site.dir.path().join("echo_wsh.so"), root.join("copy_wsh.so")).unwrap();
    symlink("../outside.txt", root.join("out.txt")).unwrap();
    symlink("..", root.join("above")).unwrap();
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    symlink("/proc/self/root/etc", root.join("magic")).unwrap();
    for target in [
        "/../outside.txt",
        "/sub/../../outside.txt",
        "/..%2foutside.txt",
        "/..%2Foutside.txt",
        "/%2e%2e/outside.txt",
        "/%2e%2e%2foutside.txt",
        "/.%2e/outside.txt",
        "/%252e%252e/outside.txt",
        "/..%252foutside.txt",
        "/..%5coutside.txt",
        "/..\\outside.txt",
        "/%c0%ae%c0%ae/outside.txt",
        "/%e0%80%ae%e0%80%ae/outside.txt",
        "/sub/%2e%2e/a.txt",
        "/./a.txt",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/.hidden",
        "/%2ehidden",
        "/.git/config",
        "/copy_wsh.so",
        "/copy%5fwsh.so",
        "/out.txt",
        "/above/outside.txt",
        "/absolute",
        "/magic/passwd",
        "/a.txt/",
        "/a.txt/../a.txt",
        "/sub/nothing",
    ] {
        let answer = site.get(target);
        assert!(matches!(answer.status, 400 | 404), "{target}: {}", answer.head);
        let body = String::from_utf8_lossy(&answer.body);
        assert!(
            !body.contains("root:") && !body.contains("outside\n") && body != "outside" && body != "hidden",
            "{target}"
        );
    }
    for target in ["/%00", "/a.txt%00", "/%", "/%4", "/%gg"] {
        assert_eq!(site.get(target).status, 400, "{target}");
    }
}

#[test]
fn special_files_do_not_block_the_worker() {
    let site = Site::start();
    let root = site.root();
    nix::unistd::mkfifo(&root.join("fifo"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    assert_eq!(site.get("/fifo").status, 404);
    assert_eq!(site.get("/socket").status, 404);
    assert_eq!(site.get("/a.txt").status, 200);
}

#[test]
fn other_methods_get_a_readable_response() {
    let site = Site::start();
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = site.ask(&format!("{method} /a.txt HTTP/1.1"));
        assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD")), "{method}");
    }
    // An unread body must not turn the reply into a reset.
    let mut stream = site.connect();
    let body = vec![b'x'; 100_000];
    write!(stream, "POST /a.txt HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
    stream.write_all(&body).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    assert_eq!(Answer::split(reply).status, 405);
}

/// The byte at `offset` of the big file: a pattern with a prime period, so that every shift is detected.
fn pattern(offset: usize) -> u8 {
    (offset % 251) as u8
}

#[test]
fn a_big_file_to_a_slow_reader_costs_no_memory_and_no_delay() {
    const SIZE: usize = 48 << 20;
    let site = Site::start();
    fs::write(site.root().join("big.bin"), (0..SIZE).map(pattern).collect::<Vec<u8>>()).unwrap();
    let before = site.worker_kib();
    let mut slow = site.connect();
    write!(slow, "GET /big.bin HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut first = vec![0; 64 << 10];
    let read = slow.read(&mut first).unwrap();
    first.truncate(read);
    // The socket is full now; others are still served.
    for _ in 0..20 {
        assert_eq!(site.get("/a.txt").body, b"0123456789");
    }
    let grown = site.worker_kib().saturating_sub(before);
    assert!(grown < 4 << 10, "the worker grew by {grown} KiB while the file waits");
    slow.read_to_end(&mut first).unwrap();
    let body = Answer::split(first).body;
    assert_eq!(body.len(), SIZE);
    assert!(body.iter().enumerate().all(|(offset, byte)| *byte == pattern(offset)));
}

#[test]
fn a_part_of_a_big_file() {
    let site = Site::start();
    fs::write(site.root().join("big.bin"), (0..3_000_000).map(pattern).collect::<Vec<u8>>()).unwrap();
    let part = site.ask("GET /big.bin HTTP/1.1\r\nRange: bytes=1000001-2000000");
    assert_eq!((part.status, part.body.len()), (206, 1_000_000));
    assert!(part.body.iter().enumerate().all(|(offset, byte)| *byte == pattern(1_000_001 + offset)));
}

#[test]
fn a_reader_that_goes_away_and_a_file_that_shrinks_do_no_harm() {
    let site = Site::start();
    let big = site.root().join("big.bin");
    fs::write(&big, vec![1; 32 << 20]).unwrap();
    let mut gone = site.connect();
    write!(gone, "GET /big.bin HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    gone.read_exact(&mut [0; 1000]).unwrap();
    drop(gone);
    let mut cut = site.connect();
    write!(cut, "GET /big.bin HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    cut.read_exact(&mut [0; 1000]).unwrap();
    fs::File::options().write(true).open(&big).unwrap().set_len(0).unwrap();
    // The file is shorter than the announced length: the connection ends early instead of hanging.
    let rest = cut.read_to_end(&mut Vec::new());
    assert!(rest.is_err() || rest.unwrap() < (32 << 20) - 1000);
    assert_eq!(site.get("/a.txt").body, b"0123456789");
    assert_eq!(site.server.workers().len(), 1);
    assert!(!site.server.log().contains("signal"), "{}", site.server.log());
}

/// An independent client checks the wire format.
#[test]
#[ignore = "needs curl"]
fn curl_agrees() {
    let site = Site::start();
    let scratch = Dir::new();
    let url = |path: &str| format!("http://{}{path}", site.address);
    let curl = |args: &[&str], path: &str| {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--noproxy", "*", "--path-as-is", "--max-time", "20"])
            .args(args)
            .arg(url(path))
            .output()
            .expect("curl is needed");
        assert!(output.status.success(), "{args:?} {path}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let status = ["--output", "/dev/null", "--write-out", "%{http_code} %{size_download} %{content_type}"];
    assert_eq!(curl(&[], "/a.txt"), "0123456789");
    assert_eq!(curl(&status, "/a.txt"), "200 10 text/plain; charset=utf-8");
    assert!(curl(&["--head"], "/a.txt").contains("Content-Length: 10\r\n"));
    assert_eq!(curl(&["--range", "2-4"], "/a.txt"), "234");
    assert_eq!(curl(&["--range", "-2"], "/a.txt"), "89");
    assert!(curl(&[&["--range", "20-"][..], &status].concat(), "/a.txt").starts_with("416 "));
    assert_eq!(curl(&["--location"], "/sub"), "<p>sub");
    assert!(curl(&status, "/../outside.txt").starts_with("404 "));

    let copy = scratch.path().join("copy");
    let tag = scratch.path().join("tag");
    let (copy, tag) = (copy.to_str().unwrap(), tag.to_str().unwrap());
    curl(&["--output", copy, "--etag-save", tag], "/a.txt");
    assert!(curl(&[&["--etag-compare", tag][..], &status].concat(), "/a.txt").starts_with("304 0"));
    curl(&["--output", copy, "--remote-time"], "/a.txt");
    assert!(curl(&[&["--time-cond", copy][..], &status].concat(), "/a.txt").starts_with("304 0"));

    // Continues an earlier download.
    fs::write(copy, "01234").unwrap();
    curl(&["--output", copy, "--continue-at", "-"], "/a.txt");
    assert_eq!(fs::read_to_string(copy).unwrap(), "0123456789");

    fs::write(site.root().join("big.bin"), (0..20_000_000).map(pattern).collect::<Vec<u8>>()).unwrap();
    curl(&["--limit-rate", "30M", "--output", copy], "/big.bin");
    assert!(fs::read(copy).unwrap() == fs::read(site.root().join("big.bin")).unwrap());
}

#[test]
fn a_large_file_does_not_delay_others() {
    let site = Site::start();
    fs::File::create(site.root().join("large")).unwrap().set_len(16 << 30).unwrap();
    let mut download = site.connect();
    write!(download, "GET /large HTTP/1.1\r\nHost: {}\r\n\r\n", site.address).unwrap();
    let received = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Reads as quickly as it can.
        scope.spawn(|| {
            let mut buffer = vec![0; 1 << 20];
            while !is_over.load(Ordering::Relaxed) {
                match download.read(&mut buffer) {
                    Ok(count @ 1..) => _ = received.fetch_add(count as u64, Ordering::Relaxed),
                    _ => return,
                }
            }
        });
        until("the file comes", || received.load(Ordering::Relaxed) > 0);
        // A busy machine may make one wait for longer.
        let mut least = u64::MAX;
        for _ in 0..10 {
            let before = received.load(Ordering::Relaxed);
            assert_eq!(site.ask("GET /a.txt HTTP/1.1").body, b"0123456789");
            least = least.min(received.load(Ordering::Relaxed) - before);
        }
        is_over.store(true, Ordering::Relaxed);
        println!("{} MiB while another waited", least >> 20);
        assert!(least < 256 << 20, "{} MiB while another waited", least >> 20);
    });
}
