//! The console page in a real browser, against the real server and its example
//! handlers. Slower tier: needs chromium and chromedriver.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/server.rs"]
mod daemon;
mod webdriver;

use std::path::Path;

use daemon::{Dir, Server};
use webdriver::{Browser, CONTROL, ENTER};

/// A server with the example handlers for the page.
fn serve(dir: &Dir) -> (Server, String) {
    let built = Path::new(env!("CARGO_BIN_EXE_wshd")).parent().unwrap().join("handlers");
    for name in ["echo", "close", "origin_check", "abort_handshake"] {
        let file = format!("{name}_wsh.so");
        std::fs::copy(built.join(&file), dir.path().join(&file)).unwrap();
    }
    let server = Server::start(dir, &["--workers", "2"]);
    let url =
        server.ready.rsplit_once("console ").expect("the ready line names the console").1.trim().to_owned();
    (server, url)
}

fn is_state(state: &str) -> String {
    format!("document.querySelector('#state').dataset.state === '{state}'")
}

/// Whether the list has a row of this class with this text.
fn has_row(class: &str, text: &str) -> String {
    format!(
        "[...document.querySelectorAll('.row.{class}')].some((row) => row.textContent.includes({text:?}))"
    )
}

/// The browser's log has no errors.
#[track_caller]
fn assert_clean(browser: &Browser) {
    assert_eq!(browser.console(), [""; 0]);
    assert_eq!(browser.eval("window.violations.join()"), "");
}

#[test]
#[ignore = "needs chromium and chromedriver"]
fn text_and_binary_come_back_over_compression() {
    let dir = Dir::new();
    let (_server, url) = serve(&dir);
    let browser = Browser::start(1280, 800);
    browser.open(&url);
    assert_eq!(browser.eval("document.querySelectorAll('#resources button').length"), 4);
    assert_eq!(browser.eval("document.querySelector('#resource').value"), "/echo");

    browser.fill("#protocols", "other, echo");
    browser.click("#connect");
    browser.wait(&is_state("open"));
    // Chromium offers permessage-deflate on its own.
    assert!(
        browser.text("#fact-extensions").starts_with("permessage-deflate"),
        "{}",
        browser.text("#fact-extensions")
    );
    assert_eq!(browser.text("#fact-protocol"), "echo");

    // Longer than the threshold for compression, and not only ASCII.
    let text = format!("{}, größer 你好", "again and again, ".repeat(20));
    browser.fill("#text", &text);
    browser.click("#send");
    browser.wait(&has_row("received", "again and again"));
    assert_eq!(browser.eval("document.querySelector('.row.received').entry.data"), text);

    browser.click("[data-mode=hex]");
    browser.fill("#hex", "00 01 ff, 0x80 7f");
    browser.type_into("#hex", &format!("{CONTROL}{ENTER}"));
    browser.wait(&has_row("received", "00 01 ff 80 7f"));
    assert_eq!(
        browser.eval("[...document.querySelectorAll('.row.received')].at(-1).entry.data.join()"),
        "0,1,255,128,127"
    );
    // 20 times 17 bytes, ", größer " of 9 characters with 2 of 2 bytes, 2 of 3 bytes; then 5.
    let text_of = |id: &str| format!("document.querySelector('#{id}').textContent");
    browser.wait(&format!("{} === {}", text_of("received-size"), text_of("sent-size")));
    assert_eq!(browser.eval("document.querySelector('.row.received').entry.size"), 20 * 17 + 11 + 6);
    assert_eq!(browser.text("#received-count"), "2");
    assert!(browser.text("#rtt-last").ends_with(" ms"));

    let file = dir.path().join("file.bin");
    std::fs::write(&file, vec![0xa5; 100_000]).unwrap();
    browser.click("[data-mode=file]");
    browser.type_into("#file", file.to_str().unwrap());
    browser.wait("!document.querySelector('#send').disabled");
    browser.click("#send");
    browser.wait("[...document.querySelectorAll('.row.received')].at(-1).entry.size === 100000");
    assert_eq!(
        browser.eval(
            "[...document.querySelectorAll('.row.received')].at(-1).entry.data.every((byte) => byte === 0xa5)"
        ),
        true
    );

    browser.click("#connect");
    browser.wait(&is_state("closed"));
    browser.wait(&has_row("event", "Closed by this page: 1005"));
    assert_clean(&browser);
}

#[test]
#[ignore = "needs chromium and chromedriver"]
fn closing_from_either_side_is_shown_with_code_and_reason() {
    let dir = Dir::new();
    let (_server, url) = serve(&dir);
    let browser = Browser::start(1280, 800);
    browser.open(&format!("{url}#/close"));
    browser.type_into("#resource", ENTER);
    browser.wait(&is_state("open"));
    browser.fill("#text", "4001 enough für heute");
    browser.click("#send");
    browser.wait(&is_state("closed"));
    browser.wait(&has_row("event", "Closed by the server: 4001 “enough für heute”"));

    browser.click("#connect");
    browser.wait(&is_state("open"));
    browser.fill("#code", "2000");
    assert_eq!(browser.eval("document.querySelector('#close').disabled"), true, "browsers cannot send 2000");
    browser.fill("#code", "4002");
    browser.fill("#reason", "my turn");
    browser.click("#close");
    browser.wait(&is_state("closed"));
    // The handler answers with the same code and reason.
    browser.wait(&has_row("event", "Closed by this page: 4002 “my turn”"));
    assert_clean(&browser);
}

#[test]
#[ignore = "needs chromium and chromedriver"]
fn a_failed_handshake_is_explained() {
    let dir = Dir::new();
    let (mut server, url) = serve(&dir);
    let browser = Browser::start(1280, 800);
    browser.open(&url);
    for (resource, explanation) in [
        ("/origin_check", "There is a handler at /origin_check, and it refused this handshake"),
        (
            "/abort_handshake",
            "There is a handler at /abort_handshake, and it refused this handshake or dropped",
        ),
        ("/nowhere", "There is no handler at /nowhere"),
        ("/console.html", "/console.html is not a WebSocket resource"),
    ] {
        browser.fill("#resource", resource);
        browser.click("#connect");
        browser.wait(&is_state("failed"));
        browser.wait(&has_row("event", explanation));
        browser.click("#clear");
    }
    browser.fill("#resource", "no slash");
    browser.click("#connect");
    browser.wait(&has_row("event", "A resource begins with a slash."));
    browser.fill("#resource", "/echo");
    browser.fill("#protocols", "not a token");
    browser.click("#connect");
    browser.wait(&has_row("event", "Cannot connect to /echo"));
    // The browser reports each failed request itself; there must be no other errors.
    let others: Vec<_> = browser
        .console()
        .into_iter()
        .filter(|line| !line.contains("WebSocket connection to") && !line.contains("Failed to load resource"))
        .collect();
    assert_eq!(others, [""; 0]);
    assert_eq!(browser.eval("window.violations.join()"), "");

    server.signal(nix::sys::signal::Signal::SIGTERM);
    server.wait();
    browser.fill("#protocols", "");
    browser.click("#connect");
    browser.wait(&has_row("event", "The server does not answer a plain request either"));
}

#[test]
#[ignore = "needs chromium and chromedriver"]
fn messages_can_be_read_filtered_and_are_bounded() {
    let dir = Dir::new();
    let (_server, url) = serve(&dir);
    let browser = Browser::start(1280, 800);
    browser.open(&url);
    browser.type_into("body", "c");
    browser.wait(&is_state("open"));
    browser.fill("#text", r#"{"big":12345678901234567890,"list":[1,[]],"a":"\"<b>"}"#);
    browser.click("#send");
    browser.wait(&has_row("received", "big"));

    browser.click(".row.received .line");
    browser.click("[data-view=json]");
    // JSON.parse would round the number.
    let pretty =
        "{\n  \"big\": 12345678901234567890,\n  \"list\": [\n    1,\n    []\n  ],\n  \"a\": \"\\\"<b>\"\n}";
    assert_eq!(browser.text(".detail pre"), pretty);
    browser.click("[data-view=hex]");
    assert!(
        browser
            .text(".detail pre")
            .starts_with("00000000  7b 22 62 69 67 22 3a 31  32 33 34 35 36 37 38 39  {\"big\":123456789\n")
    );

    browser.fill("#filter", "/b.g/");
    browser.wait("document.querySelectorAll('.row:not([hidden])').length === 2");
    browser.click("[data-direction=sent]");
    browser.wait("document.querySelectorAll('.row:not([hidden])').length === 1");
    browser.click("[data-direction=all]");
    browser.fill("#filter", "nothing has this");
    browser.wait("document.querySelectorAll('.row:not([hidden])').length === 0");
    browser.eval(
        "(() => { const filter = document.querySelector('#filter'); filter.value = ''; \
                  filter.dispatchEvent(new Event('input')); })()",
    );

    browser.eval(
        "(() => { for (let at = 0; at < 1500; at += 1) { document.querySelector('#text').value = `m${at}`; \
                  document.querySelector('#composer').requestSubmit(); } })()",
    );
    browser.wait(&has_row("received", "m1499"));
    assert_eq!(browser.eval("document.querySelectorAll('.row').length"), 2000);
    assert!(browser.text("#keeps").contains("newest 2,000 messages"), "{}", browser.text("#keeps"));
    assert_eq!(browser.text("#received-count"), "1,501");
    browser.type_into("body", "x");
    assert_eq!(browser.eval("document.querySelectorAll('.row').length"), 0);
    assert_clean(&browser);
}

#[test]
#[ignore = "needs chromium and chromedriver"]
fn a_lost_connection_is_reopened() {
    let dir = Dir::new();
    let (server, url) = serve(&dir);
    let browser = Browser::start(1280, 800);
    browser.open(&url);
    browser.click("#auto");
    browser.click("#connect");
    browser.wait(&is_state("open"));
    for worker in server.workers() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
    }
    browser.wait(&has_row("event", "Connection lost: 1006"));
    browser.wait(&is_state("open"));
}

#[test]
#[ignore = "needs chromium and chromedriver"]
fn the_page_fits_a_phone_and_its_security_policy_is_enforced() {
    let dir = Dir::new();
    let (_server, url) = serve(&dir);
    let browser = Browser::start(360, 740);
    browser.open(&url);
    browser.click("#connect");
    browser.wait(&is_state("open"));
    browser.fill("#text", &"wide".repeat(500));
    browser.click("#send");
    browser.wait(&has_row("received", "wide"));
    browser.click(".row.received .line");
    let fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
    assert_eq!(browser.eval(fits), true);
    assert_clean(&browser);

    // A violation of the policy would have been reported above.
    browser.eval("document.body.setAttribute('style', 'color: red')");
    browser.eval("fetch('http://192.0.2.1/').catch(() => {})");
    browser.wait("window.violations.length === 2");
    assert!(browser.console().len() >= 2);
}

#[test]
#[ignore = "needs chromium and chromedriver"]
fn the_page_helps_to_develop_a_handler() {
    let dir = Dir::new();
    let source = r#"
        #include <ws_handler.h>
        static void on_message(ws_conn conn, const ws_message *msg)
        {
            ws_message next;
            if (msg->size == 5)
                ws_receive(conn, &next, 0);
            ws_send(conn, msg->type, msg->data, msg->size);
        }
        WS_HANDLER(.name = "draft", .protocols = "draft.v2, draft.v1", .on_message = on_message);
    "#;
    dir.handler("draft", source);
    let server = Server::start(&dir, &["--workers", "1", "--strict-abi"]);
    let browser = Browser::start(360, 740);
    browser.open(&format!("http://{}/console.html", server.address()));

    // Its subprotocols can be chosen.
    browser.click("#more summary");
    assert_eq!(browser.text("#known-protocols"), "draft.v2draft.v1");
    browser.click("#known-protocols button:last-child");
    assert_eq!(browser.eval("document.querySelector('#protocols').value"), "draft.v1");
    browser.click("#connect");
    browser.wait(&is_state("open"));
    assert_eq!(browser.text("#fact-protocol"), "draft.v1");

    // Formatting of JSON applies at once to existing and new messages.
    browser.fill("#text", "{\"a\":[1]}");
    browser.click("#send");
    browser.wait(&has_row("received", "{\"a\":[1]}"));
    browser.click("#pretty");
    let pretty = "{\n  \"a\": [\n    1\n  ]\n}";
    assert!(browser.text(".row.received .preview").ends_with(pretty));
    browser.fill("#text", "[2]");
    browser.click("#send");
    browser.wait(&has_row("received", "[\n  2\n]"));
    browser.click("#pretty");
    browser.wait(&has_row("received", "[2]"));

    // On a phone the message has the width of the list, and its size is shown.
    let width = "document.querySelector('.row.received .preview').clientWidth";
    assert!(browser.eval(width).as_i64().unwrap() > 300);
    assert_eq!(browser.text(".row.received .size"), "9 B");

    // Disconnect is visible at any scroll position.
    let is_in_view = "(() => { const { top, bottom } = document.querySelector('#leave').getBoundingClientRect(); \
                      return top >= 0 && bottom > top && bottom <= innerHeight; })()";
    assert!(browser.eval("scrollY > 0") == true && browser.eval(is_in_view) == true);
    browser.click("#leave");
    browser.wait(&is_state("closed"));
    browser.wait("document.querySelector('#leave').hidden");

    // A breach of the contract.
    browser.eval("scrollTo(0, 0)");
    browser.click("#connect");
    browser.wait(&is_state("open"));
    browser.fill("#text", "crash");
    browser.click("#send");
    browser.wait(&has_row("event", "Closed by the server: 1011 (internal error) “draft: ws_receive("));
    assert_clean(&browser);
}
