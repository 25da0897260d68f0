//! Health checks.

use super::client::{Raw, connect};
use super::server::{Dir, ECHO, until};
use super::{Operated, health, not_ready, ready, request};

#[test]
fn health_checks_are_answered_if_configured_and_not_logged() {
    let dir = Dir::new();
    dir.handler("echo", ECHO);
    let access = dir.path().join("access");
    let args =
        ["-o", "health=/healthz", "--access-log", access.to_str().unwrap(), "-o", "allow_host=example.org"];
    let operated = Operated::start_in(dir, &args);
    let address = operated.address();
    assert_eq!(health(&address, "/healthz"), ready(), "whatever hosts are served");
    let head = request(&address, "HEAD", "/healthz", "");
    assert_eq!((head.status, head.header("Cache-Control"), head.body.len()), (200, Some("no-store"), 0));
    assert_eq!(head.header("Content-Length"), Some("6"));
    let post = request(&address, "POST", "/healthz", "Content-Length: 0\r\n");
    assert_eq!((post.status, post.header("Allow")), (405, Some("GET, HEAD")));
    let mut old = Raw::connect(&address);
    old.send(b"GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(old.answer().status, 200, "a check of HTTP/1.0 names no host");
    assert_eq!(request(&address, "GET", "/other", "").status, 421);
    until("the other request is in the access log", || operated.file("access").contains("/other"));
    assert_eq!(operated.file("access").lines().count(), 1, "{}", operated.file("access"));

    let metrics = operated.metrics();
    assert_eq!(health(&metrics, "/readyz"), ready());
    assert_eq!(health(&metrics, "/livez"), (200, "alive\n".to_owned()));
    assert_eq!(request(&metrics, "HEAD", "/readyz", "").header("Cache-Control"), Some("no-store"));
    assert_eq!(health(&metrics, "/healthz").0, 404);
}

#[test]
fn without_the_setting_the_path_is_ordinary_and_a_full_server_is_not_ready() {
    let operated = Operated::start(&["--workers", "1", "-o", "max_connections=2"]);
    assert_eq!(health(&operated.address(), "/healthz").0, 404);
    let metrics = operated.metrics();
    until("nobody is connected", || health(&metrics, "/readyz") == ready());
    let clients = [0, 1].map(|_| connect(&operated.address(), "/echo"));
    until("it is full", || health(&metrics, "/readyz") == not_ready("saturated"));
    drop(clients);
    until("there is room again", || health(&metrics, "/readyz") == ready());
}
