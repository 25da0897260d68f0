//! Authentication: passwords and bearer tokens, for the server or one handler.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::fs::{read_to_string, write};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use client::{Answer, Raw, UPGRADE, header};
use daemon::{Dir, Server, until};
use nix::sys::signal::Signal;
use ring::hmac;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Serves these fixtures with users and this configuration file, in which DIR is the directory.
#[track_caller]
fn serve(handlers: &[&str], users: &str, text: &str) -> (Server, Dir) {
    let dir = Dir::new();
    file(&dir, "users", users);
    file(&dir, "key", SECRET);
    for name in handlers {
        fixtures::add_handler(dir.path(), name, name.rsplit('/').next().unwrap());
    }
    let text = text.replace("DIR", dir.path().to_str().unwrap());
    let path = file(&dir, "wshd.conf", &text);
    let server = Server::start(&dir, &["--config", path.to_str().unwrap()]);
    (server, dir)
}

fn file(dir: &Dir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap(); // secrets
    path
}

/// A line of an htpasswd file; a high cost makes the comparison slow.
fn user(name: &str, password: &str, cost: u32) -> String {
    let hash = bcrypt::hash_with_salt(password, cost, [7; 16]).unwrap();
    format!("{name}:{}\n", hash.format_for_version(bcrypt::Version::TwoY))
}

fn basic(credentials: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(credentials))
}

fn token(subject: &str) -> String {
    let [header, claims] =
        [r#"{"alg":"HS256"}"#.to_owned(), format!(r#"{{"sub":"{subject}","exp":4102444800}}"#)]
            .map(|part| URL_SAFE_NO_PAD.encode(part));
    let message = format!("{header}.{claims}");
    let sum = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes()), message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(sum))
}

/// A handshake that is refused.
#[track_caller]
fn refused(server: &Server, resource: &str, headers: &str) -> Answer {
    let mut raw = Raw::connect(&server.address());
    raw.send(format!("GET {resource} HTTP/1.1\r\nHost: a\r\n{UPGRADE}{headers}\r\n").as_bytes());
    raw.answer()
}

/// An open connection that answers; also the head of the reply.
#[track_caller]
fn opened(server: &Server, resource: &str, headers: &str) -> (Raw, String) {
    let mut raw = Raw::connect(&server.address());
    let head = raw.upgrade(resource, headers);
    assert_eq!(raw.ask("here"), "here");
    (raw, head)
}

/// A plain HTTP request.
#[track_caller]
fn get(server: &Server, resource: &str, headers: &str) -> Answer {
    let mut raw = Raw::connect(&server.address());
    raw.send(format!("GET {resource} HTTP/1.1\r\nHost: a\r\n{headers}\r\n").as_bytes());
    raw.answer()
}

#[test]
fn one_credential_is_required_for_everything_not_exempt() {
    let (mut server, _dir) = serve(
        &["echo", "open/echo"],
        "",
        "basic_auth = true\nbasic_auth_credential = 'ann:s:cret'\nauth_realm = 'the chat'\n\
         [handler.'/open/echo']\nauth = false\n",
    );
    let right = basic("ann:s:cret");
    opened(&server, "/echo", &right);
    assert_eq!(get(&server, "/console.html", &right).status, 200);
    assert_eq!(get(&server, "/echo", &right).status, 426);
    opened(&server, "/open/echo", "");
    for (answer, why) in [
        (refused(&server, "/echo", ""), "credentials are required"),
        (get(&server, "/console.html", ""), "credentials are required"),
        (get(&server, "/echo", ""), "credentials are required"),
        (refused(&server, "/echo", &basic("ann:s")), "wrong user or password"),
        (refused(&server, "/echo", &basic("bob:s:cret")), "wrong user or password"),
        (refused(&server, "/echo", "Authorization: Basic ann\r\n"), "malformed Basic credentials"),
        (get(&server, "/console.html", "Authorization: Bearer x\r\n"), "not accepted here"),
    ] {
        let body = String::from_utf8_lossy(&answer.body);
        assert_eq!((answer.status, body.contains(why)), (401, true), "{why}: {}{body}", answer.head);
        assert_eq!(answer.header("WWW-Authenticate"), Some("Basic realm=\"the chat\", charset=\"UTF-8\""));
    }
    server.says("127.0.0.1:");
    server.says("login failed: wrong user or password");
    server.stop();
}

#[test]
fn passwords_are_compared_off_the_event_loop() {
    // A busy machine may make the other connection wait as well.
    const ATTEMPTS: usize = 20;
    let slow = user("", "secret", 9);
    let users: String = (0..ATTEMPTS).map(|attempt| format!("ann{attempt}{slow}")).collect();
    let users = users + &user("bob", "quick", 4) + &user("eve", "slow", 9);
    let text = "workers = 1\nhandshake_timeout = '1h'\n[handler.'/echo']\nhtpasswd = 'DIR/users'\n";
    let (mut server, _dir) = serve(&["echo", "open/echo"], &users, text);
    let (mut other, _) = opened(&server, "/open/echo", "");
    // A frame may follow immediately.
    let request = |credentials: &str| {
        let head = format!("GET /echo HTTP/1.1\r\nHost: a\r\n{UPGRADE}{}\r\n", basic(credentials));
        [head.as_bytes(), &client::frame(client::TEXT, b"early")].concat()
    };
    let mut waits_less = |attempt: usize| {
        let begun = Instant::now();
        let mut waiting: Vec<Raw> = (0..6).map(|_| Raw::connect(&server.address())).collect();
        waiting.iter_mut().for_each(|raw| raw.send(&request(&format!("ann{attempt}:secret"))));
        let (mut longest, mut rounds) = (Duration::ZERO, 0);
        while begun.elapsed() < Duration::from_millis(300) {
            let asked = Instant::now();
            assert_eq!(other.ask("still"), "still");
            longest = longest.max(asked.elapsed());
            rounds += 1;
        }
        for raw in &mut waiting {
            assert!(raw.head().starts_with("HTTP/1.1 101 "));
            assert_eq!(raw.next_text(), "early");
        }
        let all = begun.elapsed();
        println!("6 comparisons: {all:?}; another connection waited {longest:?} at most, in {rounds} rounds");
        longest < all / 2
    };
    assert!((0..ATTEMPTS).any(&mut waits_less), "others wait");
    assert_eq!(refused(&server, "/echo", &basic("ann0:wrong")).status, 401);
    assert_eq!(refused(&server, "/echo", &basic("nobody:quick")).status, 401);
    opened(&server, "/echo", &basic("bob:quick"));
    // Clients that disconnect during the comparison leave nothing behind.
    for _ in 0..3 {
        Raw::connect(&server.address()).send(&request("eve:slow"));
    }
    drop(other);
    opened(&server, "/echo", &basic("bob:quick"));
    server.stop();
}

#[test]
fn a_password_that_was_compared_in_vain_is_forgotten() {
    // As many as an address may have compared at a time. While they wait the handler reaches its limit.
    const CLIENTS: usize = 64;
    let hash = user("", "secret", 8);
    let users: String = (0..CLIENTS + 2).map(|number| format!("user{number}{hash}")).collect();
    let text = "workers = 1\nhtpasswd = 'DIR/users'\n[handler.'/echo']\nmax_connections = 1\n";
    let (mut server, _dir) = serve(&["echo"], &users, text);
    let log_in = |numbers: std::ops::Range<usize>| -> Vec<String> {
        let mut all: Vec<_> = numbers.map(|number| (number, Raw::connect(&server.address()))).collect();
        for (number, raw) in &mut all {
            let credentials = basic(&format!("user{number}:secret"));
            raw.send(format!("GET /echo HTTP/1.1\r\nHost: a\r\n{UPGRADE}{credentials}\r\n").as_bytes());
        }
        let heads: Vec<_> = all.iter_mut().map(|(_, raw)| raw.head()).collect();
        let is_open = |head: &str| head.starts_with("HTTP/1.1 101 ");
        let answers = all.iter_mut().zip(heads).map(|((_, raw), head)| match is_open(&head) {
            true => "opened".to_owned(),
            false => String::from_utf8_lossy(&raw.rest()).into_owned(),
        });
        answers.collect()
    };
    let opened = |answers: &[String]| answers.iter().filter(|answer| *answer == "opened").count();
    assert_eq!(opened(&log_in(0..CLIENTS)), 1);
    // Those that were not compared are not cached.
    until("there is room again", || {
        let answers = log_in(CLIENTS..CLIENTS + 2);
        assert!(!answers.iter().any(|answer| answer.contains("too many passwords")), "{answers:?}");
        opened(&answers) > 0
    });
    server.stop();
}

#[test]
fn the_addresses_of_one_client_have_the_room_of_one_address() {
    // More than the 64 that an address may have compared at a time, although some are done before the last comes.
    const CLIENTS: usize = 90;
    let hash = user("", "secret", 8);
    let users: String = (0..CLIENTS).map(|number| format!("user{number}{hash}")).collect();
    let text = "workers = 1\ntrust_proxy = ['127.0.0.1']\nhtpasswd = 'DIR/users'\n";
    let (mut server, _dir) = serve(&["echo"], &users, text);
    let mut all: Vec<Raw> = (0..CLIENTS).map(|_| Raw::connect(&server.address())).collect();
    for (number, raw) in all.iter_mut().enumerate() {
        let credentials = basic(&format!("user{number}:secret"));
        let client = format!("X-Forwarded-For: 2001:db8::{number:x}\r\n");
        raw.send(format!("GET /echo HTTP/1.1\r\nHost: a\r\n{UPGRADE}{credentials}{client}\r\n").as_bytes());
    }
    let heads: Vec<String> = all.iter_mut().map(Raw::head).collect();
    assert!(heads.iter().any(|head| head.starts_with("HTTP/1.1 503 ")), "{heads:?}");
    drop(all);
    server.stop();
}

#[test]
fn correct_passwords_are_cached() {
    let users = user("ann", "secret", 10) + &user("bob", "secret", 10);
    let (mut server, _dir) = serve(&["echo"], &users, "workers = 1\nhtpasswd = 'DIR/users'\n");
    // CPU time, which does not depend on the load of the machine.
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.worker())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap()
    };
    let cost = |credentials: &str| {
        let before = ticks();
        opened(&server, "/echo", &basic(credentials));
        ticks() - before
    };
    let first = cost("ann:secret");
    let again: u64 = (0..10).map(|_| cost("ann:secret")).sum();
    assert!(again < first, "{again} ticks for 10 more, {first} for the first");
    let other = cost("bob:secret");
    assert!(other > again, "{other} ticks for another user with the same password, {again}");
    assert_eq!(refused(&server, "/echo", &basic("ann:wrong")).status, 401);
    server.stop();
}

#[test]
fn failed_logins_of_an_address_are_counted_over_all_workers() {
    let users = user("ann", "secret", 4);
    let text = "workers = 2\nhtpasswd = 'DIR/users'\njwt_key = 'DIR/key'\nmax_auth_failures = 4\n";
    let (mut server, dir) = serve(&["echo"], &users, text);
    let right = basic("ann:secret");
    for guess in 0..4 {
        // Neither a challenge nor a success counts as a failure.
        assert_eq!(refused(&server, "/echo", "").status, 401);
        opened(&server, "/echo", &right);
        let headers = if guess % 2 == 0 {
            basic(&format!("ann:{guess}"))
        } else {
            "Authorization: Bearer a.b.c\r\n".to_owned()
        };
        assert_eq!(refused(&server, "/echo", &headers).status, 401);
    }
    // If a new minute has begun, the count starts again.
    until("it has to wait", || {
        let answer = refused(&server, "/echo", &basic("ann:guess"));
        if answer.status == 429 {
            assert_eq!(answer.header("Retry-After"), Some("60"));
        }
        answer.status == 429 && get(&server, "/console.html", &right).status == 429 // the right password
    });
    server.says("too many failed logins from its address in this minute");
    drop(dir);
    server.stop();
}

#[test]
fn tokens_in_header_query_and_subprotocol() {
    let text =
        "jwt_key = 'DIR/key'\njwt_query = 'access_token'\njwt_protocol = 'bearer.'\nmax_auth_failures = 0\n";
    let (mut server, _dir) = serve(&["echo"], "", text);
    let token = token("ann");
    opened(&server, "/echo", &format!("Authorization: bearer {token}\r\n"));
    opened(&server, &format!("/echo?x=1&access_token={token}"), "");
    let (_, head) = opened(&server, "/echo", &format!("Sec-WebSocket-Protocol: bearer.{token}\r\n"));
    assert_eq!(header(&head, "Sec-WebSocket-Protocol"), None, "a token is no subprotocol");
    for (resource, headers, why) in [
        ("/echo", String::new(), "credentials are required"),
        ("/echo", basic("ann:secret"), "not accepted here"),
        ("/echo", format!("Authorization: Bearer {token}x\r\n"), "the signature of the token is wrong"),
        ("/echo?access_token=a.b.c", String::new(), "malformed token"),
        ("/echo", "Sec-WebSocket-Protocol: chat, bearer.a.b.c\r\n".to_owned(), "malformed token"),
    ] {
        let answer = refused(&server, resource, &headers);
        let body = String::from_utf8_lossy(&answer.body);
        assert_eq!((answer.status, body.contains(why)), (401, true), "{why}: {}{body}", answer.head);
        let challenge = answer.header("WWW-Authenticate").unwrap();
        assert!(challenge.starts_with("Bearer realm=\"wshd\""), "{challenge}");
        assert_eq!(challenge.contains("error=\"invalid_token\""), why.contains("token"), "{challenge}");
    }
    server.stop();
}

#[test]
fn a_reload_reads_the_users_again() {
    let text = "workers = 1\nhtpasswd = 'DIR/users'\nmax_auth_failures = 0\n";
    let (mut server, dir) = serve(&["echo"], &user("ann", "old", 4), text);
    let (mut stays, _) = opened(&server, "/echo", &basic("ann:old"));
    file(&dir, "users", "ann:plain\n");
    server.signal(Signal::SIGHUP);
    server.says("create one with: htpasswd -B FILE USER");
    opened(&server, "/echo", &basic("ann:old"));
    file(&dir, "users", &user("ann", "new", 4));
    server.signal(Signal::SIGHUP);
    server.says("reload: done");
    assert_eq!(refused(&server, "/echo", &basic("ann:old")).status, 401);
    opened(&server, "/echo", &basic("ann:new"));
    assert_eq!(stays.ask("still"), "still", "who is in stays");
    server.stop();
}

#[test]
fn a_request_that_waits_survives_its_worker() {
    let users = user("ann", "secret", 9);
    let text = "workers = 1\nhandshake_timeout = '1h'\n[handler.'/echo']\nhtpasswd = 'DIR/users'\n";
    let (mut server, _dir) = serve(&["echo", "crash"], &users, text);
    let mut waiting: Vec<Raw> = (0..4).map(|_| Raw::connect(&server.address())).collect();
    for raw in &mut waiting {
        raw.send(format!("GET /echo HTTP/1.1\r\nHost: a\r\n{UPGRADE}{}\r\n", basic("ann:secret")).as_bytes());
    }
    let mut crash = Raw::open(&server.address(), "/crash");
    crash.text("null");
    crash.expect_close(1011);
    for raw in &mut waiting {
        assert!(raw.head().starts_with("HTTP/1.1 101 "));
        assert_eq!(raw.ask("here"), "here");
    }
    server.stop();
}

#[test]
fn a_pool_authenticates_for_its_handlers_and_other_pools_do_not_have_its_secrets() {
    let text = "workers = 1\nbasic_auth_credential = 'ann:for-all'\n[handler.'/echo']\nisolation = 'pool'\n\
                htpasswd = 'DIR/users'\n[handler.'/rescue']\nisolation = 'pool'\n";
    let (mut server, dir) = serve(&["echo", "rescue"], &user("eve", "own", 4), text);
    // Browsers send more than a kilobyte.
    let cookie = format!("Cookie: {}\r\n", "x".repeat(3000));
    opened(&server, "/echo", &format!("{cookie}{}", basic("eve:own")));
    assert_eq!(refused(&server, "/echo", &basic("ann:for-all")).status, 401);
    assert_eq!(refused(&server, "/rescue", &basic("eve:own")).status, 401);
    let mut raw = Raw::connect(&server.address());
    raw.upgrade("/rescue", &basic("ann:for-all"));
    assert_eq!(get(&server, "/console.html", &basic("ann:for-all")).status, 200);
    let hash = read_to_string(dir.path().join("users")).unwrap();
    let hash = hash.trim().split_once(':').unwrap().1.to_owned();
    let holders = server.workers().into_iter().filter(|pid| holds(*pid, hash.as_bytes())).count();
    assert_eq!(holders, 1, "the pool of /echo alone has its file");
    server.stop();
}

/// Whether the memory of a process contains these bytes.
fn holds(pid: i32, wanted: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    maps.lines().filter(|line| line.contains(" rw-p ")).any(|line| {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut bytes = vec![0; (to - from) as usize];
        let read = memory.read_at(&mut bytes, from).unwrap_or(0);
        memchr::memmem::find(&bytes[..read], wanted).is_some()
    })
}

#[test]
fn the_user_moves_with_the_connection() {
    let text = "workers = 1\njwt_key = 'DIR/key'\njwt_query = 'token'\njwt_protocol = 'bearer.'\n\
                access_log = 'DIR/access'\ncontrol_socket = 'DIR/control'\n";
    let (mut server, dir) = serve(&["everything"], "", text);
    let token = token("ann@id.example");
    let mut raw = Raw::connect(&server.address());
    raw.upgrade(
        &format!("/everything?a=1&token={token}&b"),
        &format!("Sec-WebSocket-Protocol: bearer.{token}, chat\r\n"),
    );
    assert_eq!(get(&server, &format!("/console.html?token={token}"), "").status, 200);
    assert_eq!(raw.ask("remote_user"), "remote_user: \"ann@id.example\"");
    assert_eq!(raw.ask("resource"), "resource: \"/everything?a=1&b\"");
    let connections = || {
        let output = daemon::ctl(&dir.path().join("control"), &["connections", "--json"]);
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        list["connections"].as_array().unwrap().iter().find(|conn| conn["phase"] == "open").cloned()
    };
    // A worker that gets no processor for two seconds lists nothing.
    let listed = || {
        let mut found = None;
        until("it is listed", || {
            found = connections();
            found.is_some()
        });
        found.unwrap()
    };
    let before = listed();
    assert_eq!(
        (&before["user"], &before["resource"]),
        (&"ann@id.example".into(), &"/everything?a=1&b".into())
    );
    let conf = read_to_string(dir.path().join("wshd.conf")).unwrap();
    file(&dir, "wshd.conf", &format!("{conf}max_threads = 7\n"));
    server.signal(Signal::SIGHUP);
    server.says("reload: done");
    until("it has moved", || connections().is_some_and(|now| now["id"] != before["id"]));
    assert_eq!(listed()["user"], "ann@id.example");
    assert_eq!(raw.ask("remote_user"), "remote_user: \"ann@id.example\"");
    drop(raw);
    let access = || read_to_string(dir.path().join("access")).unwrap();
    const EVENTS: [&str; 5] = ["open", "moved", "resumed", "close", "http"];
    until("all is logged", || EVENTS.iter().all(|event| access().contains(&format!("event={event} "))));
    let log = access();
    for event in EVENTS {
        let line = log.lines().find(|line| line.contains(&format!("event={event} "))).unwrap();
        assert!(line.contains(" user=ann@id.example "), "{line}");
    }
    assert!(!log.contains(&token[..20]), "{log}");
    server.stop();
}

/// Opens connections with each kind of credentials and prints the users that the server reports.
const PYTHON: &str = r#"
import asyncio, sys, websockets
address, token = sys.argv[1:]
async def ask(url, **options):
    async with websockets.connect(url, **options) as conn:
        await conn.send("remote_user")
        return await conn.recv()
async def main():
    print(await ask(f"ws://bob:s%20cret@{address}/everything"))
    print(await ask(f"ws://{address}/everything", additional_headers={"Authorization": "Bearer " + token}))
    print(await ask(f"ws://{address}/everything", subprotocols=["chat", "bearer." + token]))
    print(await ask(f"ws://{address}/everything?access_token={token}"))
    try:
        await ask(f"ws://bob:wrong@{address}/everything")
    except websockets.exceptions.InvalidStatus as error:
        print(error.response.status_code, error.response.headers.get_all("WWW-Authenticate"))
asyncio.run(main())
"#;

#[test]
#[ignore = "needs the Python package websockets, and curl"]
fn independent_clients_log_in() {
    let python =
        std::env::var("WSHD_PYTHON").expect("WSHD_PYTHON is not set: a python3 with the package websockets");
    let text =
        "htpasswd = 'DIR/users'\njwt_key = 'DIR/key'\njwt_protocol = 'bearer.'\njwt_query = 'access_token'\n";
    let (mut server, _dir) = serve(&["everything"], &user("bob", "s cret", 4), text);
    let output =
        Command::new(python).args(["-c", PYTHON, &server.address(), &token("ann")]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let ann = "remote_user: \"ann\"";
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..4], ["remote_user: \"bob\"", ann, ann, ann], "{output:?}");
    assert_eq!(lines[4], "401 ['Basic realm=\"wshd\", charset=\"UTF-8\"', 'Bearer realm=\"wshd\"']");
    let url = format!("http://{}/console.html", server.address());
    for (user, status) in [("bob:s cret", "200"), ("bob:no", "401")] {
        let output = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-u", user, &url])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), status, "{user}");
    }
    server.stop();
}
