//! Whole responses of a site to the bytes of a request.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::stat::Mode;
use tempfile::TempDir;

use super::*;
use crate::proto::http1::head::{HeadLimits, Parsed, parse};

/// Sat, 12 Aug 2023 09:00:00 GMT: modification time of the test files.
const CHANGED: Duration = Duration::from_secs(1_691_830_800);
const CHANGED_DATE: &str = "Sat, 12 Aug 2023 09:00:00 GMT";

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// The paths that handlers serve.
const RESOURCES: [&str; 2] = ["/echo", "/sub/chat"];

struct Fixture {
    directory: TempDir,
    site: Site,
}

impl Fixture {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        for (name, content) in [
            ("root/a.txt", "0123456789"),
            ("root/empty", ""),
            ("root/index.html", "<p>home"),
            ("root/sub/index.html", "<p>sub"),
            ("root/.secret", "hidden"),
            ("root/echo_wsh.so", "handler"),
            ("outside.txt", "outside"),
        ] {
            write(&directory.path().join(name), content);
        }
        let site = Site::new(Some(root), &[]).unwrap();
        Self { directory, site }
    }

    fn root(&self) -> std::path::PathBuf {
        self.directory.path().join("root")
    }

    fn ask(&self, request: &str) -> Answer {
        ask(&self.site, request, UNIX_EPOCH + CHANGED + Duration::from_secs(3600))
    }

    fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\n"))
    }
}

fn write(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(UNIX_EPOCH + CHANGED).unwrap();
}

/// `request` is the request line and header lines, each with CRLF; Host and the blank line are added.
fn ask(site: &Site, request: &str, now: SystemTime) -> Answer {
    let bytes = format!("{request}Host: test\r\n\r\n").into_bytes();
    let head = match parse(&bytes, &HeadLimits { bytes: 8192, headers: 50 }) {
        Ok(Parsed::Head { head, .. }) => head,
        _ => panic!("malformed request head: {request}"),
    };
    let response = site.serve(&head, RESOURCES.contains(&head.path()), true, now);
    let text = String::from_utf8(response.head().to_vec()).unwrap();
    assert!(text.ends_with("\r\n\r\n"));
    let body = match response.into_body() {
        Body::Empty => Vec::new(),
        Body::Bytes(bytes) => bytes.into_owned(),
        Body::File { mut file, offset, length } => {
            let mut body = Vec::new();
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.take(length).read_to_end(&mut body).unwrap();
            assert_eq!(body.len() as u64, length);
            body
        }
    };
    let answer = Answer { status: text[9..12].parse().unwrap(), head: text, body };
    if head.method() != "HEAD" && answer.status != 304 {
        assert_eq!(answer.header("Content-Length"), Some(answer.body.len().to_string().as_str()));
    }
    assert!(answer.header("Connection").unwrap().ends_with("close"));
    assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"));
    answer
}

#[test]
fn a_file_is_served_with_type_and_validators() {
    let answer = Fixture::new().get("/a.txt?query=ignored");
    assert_eq!((answer.status, answer.text()), (200, "0123456789"));
    assert_eq!(answer.header("Content-Type"), Some("text/plain; charset=utf-8"));
    assert_eq!(answer.header("Last-Modified"), Some(CHANGED_DATE));
    assert_eq!(answer.header("Date"), Some("Sat, 12 Aug 2023 10:00:00 GMT"));
    assert_eq!(answer.header("Accept-Ranges"), Some("bytes"));
    assert!(answer.header("ETag").unwrap().starts_with('"'));
}

#[test]
fn the_extension_determines_the_type() {
    let fixture = Fixture::new();
    for (name, media_type) in [
        ("x.html", "text/html; charset=utf-8"),
        ("x.css", "text/css; charset=utf-8"),
        ("x.js", "text/javascript; charset=utf-8"),
        ("x.json", "application/json"),
        ("x.svg", "image/svg+xml"),
        ("x.PNG", "image/png"),
        ("x.wasm", "application/wasm"),
        ("x.unheard-of", "application/octet-stream"),
        ("noextension", "application/octet-stream"),
    ] {
        write(&fixture.root().join(name), "x");
        assert_eq!(fixture.get(&format!("/{name}")).header("Content-Type"), Some(media_type), "{name}");
    }
}

#[test]
fn head_differs_from_get_only_in_the_body() {
    let fixture = Fixture::new();
    for path in ["/a.txt", "/", "/sub", "/nowhere", "/console.html", "/echo", "/%zz"] {
        let head = fixture.ask(&format!("HEAD {path} HTTP/1.1\r\n"));
        let get = fixture.get(path);
        assert_eq!(head.head, get.head, "{path}");
        assert!(head.body.is_empty() && !get.body.is_empty(), "{path}");
    }
}

#[test]
fn other_methods_are_refused() {
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH"] {
        let answer = Fixture::new().ask(&format!("{method} /a.txt HTTP/1.1\r\n"));
        assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD")), "{method}");
    }
    // RFC 9110 15.6.2: the server does not know it.
    for method in ["get", "PROPFIND"] {
        assert_eq!(Fixture::new().ask(&format!("{method} /a.txt HTTP/1.1\r\n")).status, 501, "{method}");
    }
}

#[test]
fn directories_are_served_if_they_have_an_index() {
    let fixture = Fixture::new();
    assert_eq!(fixture.get("/").text(), "<p>home");
    assert_eq!(fixture.get("/sub/").text(), "<p>sub");
    let redirect = fixture.get("/sub?a=b&c");
    assert_eq!((redirect.status, redirect.header("Location")), (301, Some("/sub/?a=b&c")));
    fs::create_dir(fixture.root().join("bare")).unwrap();
    assert_eq!(fixture.get("/bare/").status, 404);
    fs::create_dir_all(fixture.root().join("odd/index.html")).unwrap();
    assert_eq!(fixture.get("/odd/").status, 404, "an index that is a directory");
    assert_eq!(fixture.get("/a.txt/").status, 404);
    assert_eq!(fixture.get("/a.txt/b").status, 404);
}

#[test]
fn hidden_files_handlers_and_traversal_get_404() {
    let fixture = Fixture::new();
    for path in [
        "/.secret",
        "/%2esecret",
        "/sub/../.secret",
        "/echo_wsh.so",
        "/echo%5Fwsh.so",
        "/../outside.txt",
        "/..%2foutside.txt",
        "/%2e%2e/outside.txt",
        "/sub/%2e%2e/%2e%2e/outside.txt",
        "//a.txt",
        "/sub//index.html",
        "/nowhere",
    ] {
        assert_eq!(fixture.get(path).status, 404, "{path}");
    }
    assert_eq!(fixture.get(&format!("/{}", "x".repeat(300))).status, 404);
    assert_eq!(fixture.get("/%00").status, 400);
    assert_eq!(fixture.get("/%").status, 400);
}

#[test]
fn links_out_of_the_root_get_404() {
    let fixture = Fixture::new();
    let root = fixture.root();
    symlink("a.txt", root.join("inside.txt")).unwrap();
    symlink("../a.txt", root.join("sub/up.txt")).unwrap();
    symlink("../outside.txt", root.join("out.txt")).unwrap();
    symlink(fixture.directory.path().join("outside.txt"), root.join("absolute.txt")).unwrap();
    symlink("..", root.join("above")).unwrap();
    symlink("/", root.join("slash")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("/proc/self", root.join("magic")).unwrap();
    assert_eq!(fixture.get("/inside.txt").text(), "0123456789");
    assert_eq!(fixture.get("/sub/up.txt").text(), "0123456789");
    for path in
        ["/out.txt", "/absolute.txt", "/above/outside.txt", "/slash/etc/passwd", "/loop", "/magic/exe"]
    {
        assert_eq!(fixture.get(path).status, 404, "{path}");
    }
}

#[test]
fn without_openat2_no_link_is_followed() {
    let mut fixture = Fixture::new();
    fixture.site.root.as_mut().unwrap().follow_no_links();
    let root = fixture.root();
    symlink("a.txt", root.join("inside.txt")).unwrap();
    symlink("sub", root.join("side")).unwrap();
    symlink("../outside.txt", root.join("out.txt")).unwrap();
    assert_eq!(fixture.get("/a.txt").text(), "0123456789");
    assert_eq!(fixture.get("/sub/").text(), "<p>sub");
    assert_eq!(fixture.get("/sub").status, 301);
    for path in ["/inside.txt", "/side/index.html", "/out.txt"] {
        assert_eq!(fixture.get(path).status, 404, "{path}");
    }
}

#[test]
fn only_regular_files_are_served() {
    let fixture = Fixture::new();
    nix::unistd::mkfifo(&fixture.root().join("fifo"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(fixture.root().join("socket")).unwrap();
    assert_eq!(fixture.get("/fifo").status, 404);
    assert_eq!(fixture.get("/socket").status, 404);
}

#[test]
fn the_error_names_a_root_that_is_not_a_directory() {
    let fixture = Fixture::new();
    for name in ["root/a.txt", "missing"] {
        let error = Site::new(Some(fixture.directory.path().join(name)), &[]).err().unwrap();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn conditional_requests() {
    let fixture = Fixture::new();
    let etag = fixture.get("/a.txt").header("ETag").unwrap().to_owned();
    let later = "Sat, 12 Aug 2023 09:00:01 GMT";
    let earlier = "Sat, 12 Aug 2023 08:59:59 GMT";
    let rfc850 = "Saturday, 12-Aug-23 09:00:00 GMT";
    let with = |headers: &[(&str, &str)]| {
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        fixture.ask(&format!("GET /a.txt HTTP/1.1\r\n{lines}")).status
    };
    let listed = format!("\"other\", W/\"x,y\",{etag}");
    let weak = format!("W/{etag}");
    // RFC 9110 13.1.2, weak comparison
    for value in [etag.as_str(), &weak, &listed, "*"] {
        assert_eq!(with(&[("If-None-Match", value)]), 304, "If-None-Match: {value}");
    }
    for value in ["\"other\"", "unquoted", "\"open", ""] {
        assert_eq!(with(&[("If-None-Match", value)]), 200, "If-None-Match: {value}");
    }
    // RFC 9110 13.1.1, strong comparison
    for (value, status) in
        [(etag.as_str(), 200), (&listed, 200), ("*", 200), (&weak, 412), ("\"other\"", 412)]
    {
        assert_eq!(with(&[("If-Match", value)]), status, "If-Match: {value}");
    }
    // RFC 9110 13.1.3 and 13.1.4
    for (value, since, unmodified) in [
        (CHANGED_DATE, 304, 200),
        (rfc850, 304, 200),
        (later, 304, 200),
        (earlier, 200, 412),
        ("yesterday", 200, 200),
    ] {
        assert_eq!(with(&[("If-Modified-Since", value)]), since, "If-Modified-Since: {value}");
        assert_eq!(with(&[("If-Unmodified-Since", value)]), unmodified, "If-Unmodified-Since: {value}");
    }
    // RFC 9110 13.2.2: tags take precedence over dates.
    assert_eq!(with(&[("If-None-Match", "\"other\""), ("If-Modified-Since", later)]), 200);
    assert_eq!(with(&[("If-None-Match", &etag), ("If-Modified-Since", earlier)]), 304);
    assert_eq!(with(&[("If-Match", &etag), ("If-Unmodified-Since", earlier)]), 200);
    assert_eq!(with(&[("If-Match", "\"other\""), ("If-None-Match", &etag)]), 412);
    // Several lines make one list.
    assert_eq!(with(&[("If-None-Match", "\"other\""), ("If-None-Match", &etag)]), 304);
}

#[test]
fn a_304_has_the_validators_and_no_content() {
    let fixture = Fixture::new();
    let etag = fixture.get("/a.txt").header("ETag").unwrap().to_owned();
    let answer = fixture.ask(&format!("GET /a.txt HTTP/1.1\r\nIf-None-Match: {etag}\r\n"));
    assert_eq!((answer.status, answer.body.len()), (304, 0));
    assert_eq!(answer.header("ETag"), Some(etag.as_str()));
    assert_eq!(answer.header("Content-Length"), None);
}

#[test]
fn the_etag_changes_with_the_file() {
    let fixture = Fixture::new();
    let first = fixture.get("/a.txt").header("ETag").unwrap().to_owned();
    assert_eq!(fixture.get("/a.txt").header("ETag"), Some(first.as_str()));
    let path = fixture.root().join("a.txt");
    write(&path, "0123456789 and more");
    assert_ne!(fixture.get("/a.txt").header("ETag"), Some(first.as_str()), "another size");
    write(&path, "0123456789");
    let touched = UNIX_EPOCH + CHANGED + Duration::from_nanos(4_000_000);
    fs::File::options().write(true).open(&path).unwrap().set_modified(touched).unwrap();
    assert_ne!(fixture.get("/a.txt").header("ETag"), Some(first.as_str()), "another time within the second");
    write(&fixture.root().join("b.txt"), "9876543210");
    fs::rename(fixture.root().join("b.txt"), &path).unwrap();
    assert_ne!(
        fixture.get("/a.txt").header("ETag"),
        Some(first.as_str()),
        "another file of the same size and time"
    );
}

/// RFC 9110 8.8.1: a file changed just now may change again with the same time stamp.
#[test]
fn a_file_changed_just_now_has_a_weak_etag() {
    let fixture = Fixture::new();
    let fresh = ask(&fixture.site, "GET /a.txt HTTP/1.1\r\n", UNIX_EPOCH + CHANGED);
    let etag = fresh.header("ETag").unwrap();
    assert!(etag.starts_with("W/\""), "{etag}");
    assert_eq!(fixture.ask(&format!("GET /a.txt HTTP/1.1\r\nIf-None-Match: {etag}\r\n")).status, 304);
    let range = format!("GET /a.txt HTTP/1.1\r\nRange: bytes=0-0\r\nIf-Range: {etag}\r\n");
    assert_eq!(fixture.ask(&range).status, 200, "If-Range needs a strong validator");
}

#[test]
fn last_modified_of_extreme_times() {
    let fixture = Fixture::new();
    let path = fixture.root().join("a.txt");
    let file = fs::File::options().write(true).open(path).unwrap();
    for (time, shown) in [
        (UNIX_EPOCH - Duration::from_secs(1_000_000), "Thu, 01 Jan 1970 00:00:00 GMT"),
        // RFC 9110 8.8.2.1: not later than the response.
        (UNIX_EPOCH + Duration::from_secs(300_000_000_000), "Sat, 12 Aug 2023 10:00:00 GMT"),
    ] {
        // Some file systems cannot store such times.
        if file.set_modified(time).is_ok() && file.metadata().unwrap().modified().unwrap() == time {
            assert_eq!(fixture.get("/a.txt").header("Last-Modified"), Some(shown));
        }
    }
}

#[test]
fn ranges() {
    let fixture = Fixture::new();
    let range = |value: &str| fixture.ask(&format!("GET /a.txt HTTP/1.1\r\nRange: {value}\r\n"));
    let part = range("bytes=2-4");
    assert_eq!((part.status, part.text()), (206, "234"));
    assert_eq!(part.header("Content-Range"), Some("bytes 2-4/10"));
    assert_eq!(part.header("Content-Type"), Some("text/plain; charset=utf-8"));
    assert_eq!(range("bytes=7-").text(), "789");
    assert_eq!(range("bytes=-2").text(), "89");
    let outside = range("bytes=10-");
    assert_eq!((outside.status, outside.header("Content-Range")), (416, Some("bytes */10")));
    let several = range("bytes=0-0,5-5");
    assert_eq!((several.status, several.text()), (200, "0123456789"));
    let head = fixture.ask("HEAD /a.txt HTTP/1.1\r\nRange: bytes=2-4\r\n");
    assert_eq!((head.status, head.header("Content-Length")), (200, Some("10")));
}

#[test]
fn if_range_guards_a_range() {
    let fixture = Fixture::new();
    let etag = fixture.get("/a.txt").header("ETag").unwrap().to_owned();
    let weak = format!("W/{etag}");
    for (value, status) in [
        (etag.as_str(), 206),
        (CHANGED_DATE, 206),
        (&weak, 200),
        ("\"other\"", 200),
        ("Sat, 12 Aug 2023 09:00:01 GMT", 200),
        ("*", 200),
    ] {
        let answer =
            fixture.ask(&format!("GET /a.txt HTTP/1.1\r\nRange: bytes=0-0\r\nIf-Range: {value}\r\n"));
        assert_eq!(answer.status, status, "If-Range: {value}");
    }
}

#[test]
fn a_websocket_resource_requires_the_upgrade() {
    let fixture = Fixture::new();
    write(&fixture.root().join("echo"), "a file of the same name");
    for path in ["/echo", "/echo?x=1", "/sub/chat"] {
        let answer = fixture.get(path);
        assert_eq!((answer.status, answer.header("Upgrade")), (426, Some("websocket")), "{path}");
        assert_eq!(answer.header("Connection"), Some("Upgrade, close"));
    }
    assert_eq!(fixture.get("/echo/").status, 404);
}

#[test]
fn without_a_root_only_the_console_is_served() {
    let site = Site::new(None, &[]).unwrap();
    let get = |path: &str| ask(&site, &format!("GET {path} HTTP/1.1\r\n"), UNIX_EPOCH + CHANGED);
    assert_eq!(get("/console.html").status, 200);
    assert_eq!(get("/").header("Location"), Some("/console.html"));
    assert_eq!(get("/a.txt").status, 404);
    assert_eq!(get("/echo").status, 426);
}

#[test]
fn a_file_cannot_replace_the_console() {
    let fixture = Fixture::new();
    write(&fixture.root().join("console.html"), "another");
    assert!(fixture.get("/console.html").text().contains("<title>wshd console</title>"));
}

#[test]
fn an_error_has_its_fields_and_text() {
    let response = error(503, "no thread is free", &[("Retry-After", "2")]);
    let head = String::from_utf8(response.head().to_vec()).unwrap();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("\r\nRetry-After: 2\r\n"), "{head}");
    assert!(matches!(response.into_body(), Body::Bytes(text) if text.ends_with(b"no thread is free\n")));
}
