//! Topics across machines: servers joined by NATS and Redis, from Debian's packages nats-server and redis-server.
//! Other participants use the engine's own protocol.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod daemon;
#[path = "common/fixtures.rs"]
mod fixtures;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use client::{BINARY, CLOSE, Raw, TEXT};
use daemon::{Dir, Server, TIMEOUT, bound, until};
use fixtures::add_handler;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nats,
    Redis,
}

/// An engine on a port of its own, which can be killed and restarted.
struct Engine {
    kind: Kind,
    dir: Dir,
    port: u16,
    args: Vec<String>,
    child: Option<Child>,
}

impl Engine {
    fn start(kind: Kind) -> Self {
        Self::start_with(kind, |_, _| Vec::new())
    }

    /// Starts it with arguments for this directory and port.
    fn start_with(kind: Kind, args: impl FnOnce(&Dir, u16) -> Vec<String>) -> Self {
        let dir = Dir::new();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let args = args(&dir, port);
        let mut engine = Engine { kind, dir, port, args, child: None };
        engine.restart();
        engine
    }

    fn restart(&mut self) {
        let port = self.port.to_string();
        let mut command = match self.kind {
            Kind::Nats => Command::new("nats-server"),
            Kind::Redis => Command::new("redis-server"),
        };
        match self.kind {
            Kind::Nats => command.args(["-a", "127.0.0.1", "-p", &port]),
            Kind::Redis if self.args.is_empty() => command.args(["--bind", "127.0.0.1", "--port", &port]),
            Kind::Redis => command.args(["--bind", "127.0.0.1"]),
        };
        if self.kind == Kind::Redis {
            command.args(["--save", "", "--dir"]).arg(self.dir.path());
        }
        command.args(&self.args).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(bound(&mut command).spawn().expect("nats-server and redis-server are installed"));
        until("the engine listens", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn scheme(&self) -> &'static str {
        match self.kind {
            Kind::Nats => "nats",
            Kind::Redis => "redis",
        }
    }

    /// A client of the engine.
    fn stranger(&self) -> Stranger {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut stranger = Stranger { kind: self.kind, stream: BufReader::new(stream) };
        if self.kind == Kind::Nats {
            assert!(stranger.line().starts_with("INFO "));
            stranger.say("CONNECT {\"verbose\":false,\"headers\":true}\r\nPING\r\n");
            assert_eq!(stranger.line(), "PONG");
        }
        stranger
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Stranger {
    kind: Kind,
    stream: BufReader<TcpStream>,
}

impl Stranger {
    fn say(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn subscribe(&mut self, subject: &str) {
        match self.kind {
            Kind::Nats => {
                self.say(&format!("SUB {subject} 1\r\nPING\r\n"));
                assert_eq!(self.line(), "PONG");
            }
            Kind::Redis => {
                self.say(&format!("SUBSCRIBE {subject}\r\n"));
                let answer: Vec<String> = (0..6).map(|_| self.line()).collect();
                assert_eq!(answer[4], subject);
            }
        }
    }

    /// The next message: its subject, its headers, and the payload.
    fn next(&mut self) -> (String, String, Vec<u8>) {
        let (subject, header, size) = match self.kind {
            Kind::Nats => {
                let line = self.line();
                let words: Vec<&str> = line.split(' ').collect();
                let sizes: Vec<usize> = words[3..].iter().map(|size| size.parse().unwrap()).collect();
                let header = if words[0] == "HMSG" { sizes[0] } else { 0 };
                (words[1].to_owned(), header, sizes.last().unwrap() - header)
            }
            Kind::Redis => {
                let head: Vec<String> = (0..5).map(|_| self.line()).collect();
                assert_eq!((head[0].as_str(), head[2].as_str()), ("*3", "message"));
                let size = self.line();
                (head[4].clone(), 0, size[1..].parse().unwrap())
            }
        };
        let mut bytes = vec![0; header + size + 2];
        self.stream.read_exact(&mut bytes).unwrap();
        let payload = bytes[header..header + size].to_vec();
        (subject, String::from_utf8_lossy(&bytes[..header]).into_owned(), payload)
    }

    fn publish(&mut self, subject: &str, headers: &str, payload: &[u8]) {
        let mut bytes = match (self.kind, headers) {
            (Kind::Nats, "") => format!("PUB {subject} {}\r\n", payload.len()),
            (Kind::Nats, _) => {
                let head = format!("NATS/1.0\r\n{headers}\r\n\r\n");
                format!("HPUB {subject} {} {}\r\n{head}", head.len(), head.len() + payload.len())
            }
            (Kind::Redis, _) => {
                format!("*3\r\n$7\r\nPUBLISH\r\n${}\r\n{subject}\r\n${}\r\n", subject.len(), payload.len())
            }
        }
        .into_bytes();
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\n");
        self.stream.get_mut().write_all(&bytes).unwrap();
        if self.kind == Kind::Redis {
            assert!(self.line().starts_with(':'));
        }
    }
}

/// A server whose topics go to this engine.
fn joined(url: &str, args: &[&str]) -> (Dir, Server) {
    let dir = Dir::new();
    add_handler(dir.path(), "topics", "topics");
    let bus = format!("bus={url}");
    let server = Server::start(&dir, &[&["--workers", "2", "-o", &bus], args].concat());
    (dir, server)
}

/// Clients of a server that are subscribed to `news`.
fn subscribed(server: &Server, count: usize) -> Vec<Raw> {
    let client = |_| {
        let mut client = Raw::open(&server.address(), "/topics");
        assert_eq!(client.ask("sub news"), "sub 0");
        client
    };
    (0..count).map(client).collect()
}

/// A client publishes until its message arrives, so that the path is established. Others may get more of these.
fn probe(from: &mut Raw, to: &mut Raw) {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    to.stream.set_read_timeout(Some(std::time::Duration::from_millis(5))).unwrap();
    let mut probes = Vec::new();
    until("a message arrives at the other server", || {
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        probes.push(format!("probe {number}"));
        from.text(&format!("quiet news probe {number}"));
        // A frame is written at once, so it arrives complete.
        let mut first = [0];
        to.stream.peek(&mut first).is_ok() && {
            to.stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            let text = to.next_text();
            to.stream.set_read_timeout(Some(std::time::Duration::from_millis(5))).unwrap();
            probes.contains(&text)
        }
    });
    to.stream.set_read_timeout(Some(TIMEOUT)).unwrap();
}

/// The messages that a client gets until each of these publishers has ended this phase, without probes.
fn heard(client: &mut Raw, phase: &str, publishers: &[usize]) -> Vec<String> {
    let mut missing: Vec<String> = publishers.iter().map(|number| format!("{phase} {number} end")).collect();
    let mut all = Vec::new();
    while !missing.is_empty() {
        let text = client.next_text();
        missing.retain(|end| *end != text);
        if !text.starts_with("probe") {
            all.push(text);
        }
    }
    all
}

/// Clients publish numbered messages, each the same count, and then the end of the phase.
fn publish(clients: &mut [Vec<Raw>; 2], phase: &str, count: usize) {
    for number in 0..count {
        for (publisher, client) in clients.iter_mut().flatten().enumerate() {
            client.text(&format!("quiet news {phase} {publisher} {number}"));
        }
    }
    for (publisher, client) in clients.iter_mut().flatten().enumerate() {
        client.text(&format!("quiet news {phase} {publisher} end"));
    }
}

/// The numbers received in a phase, by publisher.
fn numbers(heard: &[String], phase: &str) -> BTreeMap<usize, Vec<usize>> {
    let mut all: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for text in heard {
        let words: Vec<&str> = text.split(' ').collect();
        if words[0] == phase && words[2] != "end" {
            all.entry(words[1].parse().unwrap()).or_default().push(words[2].parse().unwrap());
        }
    }
    all
}

/// Two servers, two clients of each, and the engine is killed in the middle.
fn two_servers_and_an_engine_that_dies(kind: Kind) {
    const COUNT: usize = 100;
    const ALL: [usize; 4] = [0, 1, 2, 3];
    let mut engine = Engine::start(kind);
    let url = format!("{}://127.0.0.1:{}", engine.scheme(), engine.port);
    let ((_one, mut one), (_other, mut other)) = (joined(&url, &[]), joined(&url, &[]));
    let mut clients = [subscribed(&one, 2), subscribed(&other, 2)];
    let open_the_way = |clients: &mut [Vec<Raw>; 2]| {
        let [ours, theirs] = clients;
        probe(&mut ours[0], &mut theirs[0]);
        probe(&mut theirs[0], &mut ours[0]);
    };
    open_the_way(&mut clients);
    let whole: BTreeMap<usize, Vec<usize>> = ALL.iter().map(|of| (*of, (0..COUNT).collect())).collect();
    publish(&mut clients, "first", COUNT);
    for client in clients.iter_mut().flatten() {
        assert_eq!(numbers(&heard(client, "first", &ALL), "first"), whole);
    }

    // It dies while messages are in transit, and others follow while it is down.
    for number in 0..COUNT {
        clients[0][0].text(&format!("quiet news dying 0 {number}"));
        if number == COUNT / 2 {
            engine.kill();
        }
    }
    for server in [&one, &other] {
        server.says("lost: ");
    }
    publish(&mut clients, "away", COUNT);
    for (index, of) in [vec![0, 1], vec![2, 3]].into_iter().enumerate() {
        for client in &mut clients[index] {
            let heard = heard(client, "away", &of);
            let local: BTreeMap<_, _> = of.iter().map(|of| (*of, whole[of].clone())).collect();
            assert_eq!(numbers(&heard, "away"), local, "local delivery goes on");
            let dying = numbers(&heard, "dying").remove(&0).unwrap_or_default();
            assert!(dying.is_sorted_by(|one, next| one < next), "{dying:?}");
            assert!(index == 1 || dying.len() == COUNT, "{dying:?}");
        }
    }

    engine.restart();
    for server in [&one, &other] {
        until("it is connected again", || server.log().matches("bus: connected to").count() == 2);
    }
    other.says(&format!("; {} messages were not sent meanwhile", 2 * (COUNT + 1)));
    open_the_way(&mut clients);
    publish(&mut clients, "last", COUNT);
    for client in clients.iter_mut().flatten() {
        let heard = heard(client, "last", &ALL);
        assert_eq!(numbers(&heard, "last"), whole);
        assert!(
            heard.iter().all(|text| text.starts_with("last ")),
            "nothing of before comes late: {heard:?}"
        );
    }

    // The replacement of a bus that dies connects too.
    let title = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_bus = |pid: &i32| title(pid).starts_with("wshd: bus");
    let bus = daemon::children(one.pid()).into_iter().find(is_bus).unwrap();
    kill(Pid::from_raw(bus), Signal::SIGKILL).unwrap();
    until("another bus is connected", || one.log().matches("bus: connected to").count() == 3);
    open_the_way(&mut clients);
    publish(&mut clients, "again", COUNT);
    for client in clients.iter_mut().flatten() {
        assert_eq!(numbers(&heard(client, "again", &ALL), "again"), whole);
    }
    drop(clients);
    one.stop();
    other.stop();
}

#[test]
#[ignore = "needs nats-server"]
fn nats_joins_two_servers_and_may_restart() {
    two_servers_and_an_engine_that_dies(Kind::Nats);
}

#[test]
#[ignore = "needs redis-server"]
fn redis_joins_two_servers_and_may_restart() {
    two_servers_and_an_engine_that_dies(Kind::Redis);
}

/// Subjects and payloads are those of the manual, and topics without local subscribers are not subscribed.
fn others_take_part(kind: Kind) {
    let engine = Engine::start(kind);
    // The first server address refuses connections.
    let url = format!("{0}://127.0.0.1:1,{0}://127.0.0.1:{1}", engine.scheme(), engine.port);
    let dir = Dir::new();
    add_handler(dir.path(), "topics", "topics");
    std::fs::write(dir.path().join("w.conf"), "[handler.\"/topics\"]\ntopics = \"a.b c\"\n").unwrap();
    let config = dir.path().join("w.conf").display().to_string();
    let (socket, bus) = (dir.path().join("control"), format!("bus={url}"));
    let args = ["--config", &config, "-o", &bus, "-o", "bus_prefix=my.app", "--workers", "1"];
    let control = ["--control-socket", socket.to_str().unwrap()];
    let mut server = Server::start(&dir, &[&args[..], &control].concat());
    let mut client = Raw::open(&server.address(), "/topics");
    assert_eq!(client.ask("sub n*ws"), "sub 0");
    let subject = "my.app.a%2Eb%20c.n%2Aws";
    let (mut listener, mut speaker) = (engine.stranger(), engine.stranger());
    let binary = if kind == Kind::Redis { format!("{subject}.binary") } else { subject.to_owned() };
    listener.subscribe(subject);
    if binary != subject {
        listener.subscribe(&binary);
    }
    // Messages published here reach the engine's clients unchanged.
    client.text("quiet n*ws plain text");
    assert_eq!(client.next_text(), "plain text");
    until("the way there is open", || {
        client.text("quiet n*ws plain text");
        client.next_text() == "plain text" && server.log().contains("bus: connected to")
    });
    assert_eq!(listener.next(), (subject.to_owned(), String::new(), b"plain text".to_vec()));
    assert_eq!(client.ask("big elsewhere 3"), "big 0", "nobody has subscribed to this");
    client.text("big n*ws 3");
    let (mut is_binary, mut answers) = (false, 0);
    while !is_binary || answers == 0 {
        let frame = client.next().unwrap();
        match frame.first {
            BINARY => {
                assert_eq!(frame.payload, [0; 3]);
                is_binary = true;
            }
            _ => answers += 1,
        }
    }
    loop {
        let (name, headers, payload) = listener.next();
        if payload == [0; 3] {
            assert_eq!(name, binary);
            assert_eq!(headers.contains("Wshd-Type: binary"), kind == Kind::Nats, "{headers:?}");
            break;
        }
    }
    // Messages of other programs arrive here: as text if they are UTF-8 and not marked as binary.
    let header = if kind == Kind::Nats { "Wshd-Type: binary" } else { "" };
    speaker.publish(subject, "", "gr\u{fc}n".as_bytes());
    speaker.publish(subject, "", b"\xff\xfe");
    speaker.publish(&binary, header, b"abc");
    let got: Vec<(u8, Vec<u8>)> =
        (0..3).map(|_| client.next().unwrap()).map(|frame| (frame.first, frame.payload)).collect();
    let expected =
        [(TEXT, "gr\u{fc}n".as_bytes().to_vec()), (BINARY, b"\xff\xfe".to_vec()), (BINARY, b"abc".to_vec())];
    assert_eq!(got, expected);
    // Messages of wshd ctl publish reach them too.
    let mut command = daemon::wshd();
    command.args(["ctl", "publish", "n*ws", "--control-socket"]).arg(&socket).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"from the operator").unwrap();
    assert!(child.wait().unwrap().success());
    while listener.next() != (subject.to_owned(), String::new(), b"from the operator".to_vec()) {}
    let topics = String::from_utf8(daemon::ctl(&socket, &["topics"]).stdout).unwrap();
    assert!(topics.contains("a.b c  n*ws"), "{topics}");
    assert!(topics.contains("\nconnected to "), "{topics}");
    assert_eq!(client.next_text(), "from the operator");
    // Messages published while the server stops are sent too.
    assert_eq!(client.ask("last n*ws"), "last 1");
    server.signal(Signal::SIGTERM);
    while client.next().is_some_and(|frame| frame.first != CLOSE) {}
    drop(client);
    while listener.next() != (subject.to_owned(), String::new(), b"gone".to_vec()) {}
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
#[ignore = "needs nats-server"]
fn other_programs_take_part_with_nats() {
    others_take_part(Kind::Nats);
}

#[test]
#[ignore = "needs redis-server"]
fn other_programs_take_part_with_redis() {
    others_take_part(Kind::Redis);
}

/// Writes the certificate of an authority (ca.pem), one of 127.0.0.1 with its key (engine), and one for wshd (client).
fn certificates(dir: &Dir) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    for name in ["engine", "client"] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        std::fs::write(dir.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
        write_secret(&dir.path().join(format!("{name}.key")), &key.serialize_pem());
    }
}

fn write_secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn tls_and_credentials(kind: Kind) {
    let engine = Engine::start_with(kind, |dir, port| {
        certificates(dir);
        let file = |name: &str| dir.path().join(name).display().to_string();
        let (certificate, key, ca) = (file("engine.pem"), file("engine.key"), file("ca.pem"));
        match kind {
            Kind::Nats => {
                let config = format!(
                    "tls {{ cert_file: \"{certificate}\", key_file: \"{key}\", ca_file: \"{ca}\", verify: true }}\n\
                     authorization {{ user: ann, password: \"s3cret word\" }}\n"
                );
                std::fs::write(file("nats.conf"), config).unwrap();
                vec!["-c".to_owned(), file("nats.conf")]
            }
            Kind::Redis => {
                let acl = "user default off\nuser ann on >s3cret~word &* +@all\n";
                std::fs::write(file("users.acl"), acl).unwrap();
                let port = port.to_string();
                let args = ["--port", "0", "--tls-port", &port, "--tls-cert-file", &certificate];
                let more = ["--tls-key-file", &key, "--tls-ca-cert-file", &ca, "--tls-auth-clients", "yes"];
                let users = ["--aclfile".to_owned(), file("users.acl")];
                args.iter().chain(&more).map(|arg| (*arg).to_owned()).chain(users).collect()
            }
        }
    });
    let (scheme, secret) = match kind {
        Kind::Nats => ("tls", "s3cret word"),
        Kind::Redis => ("rediss", "s3cret~word"),
    };
    let url = format!("{scheme}://127.0.0.1:{}", engine.port);
    let file = |name: &str| engine.dir.path().join(name).display().to_string();
    for (name, secret) in [("credentials", secret), ("wrong", "guess")] {
        write_secret(file(name).as_ref(), &format!("ann\n{secret}\n"));
    }
    let (ca, credentials) =
        (format!("bus_ca={}", file("ca.pem")), format!("bus_credentials={}", file("credentials")));
    let (certificate, key) = (
        format!("bus_certificate={}", file("client.pem")),
        format!("bus_private_key={}", file("client.key")),
    );
    let shown = ["-o", &certificate, "-o", &key];
    let args = [&["-o", &ca, "-o", &credentials], &shown[..]].concat();
    let ((_one, mut one), (_other, mut other)) = (joined(&url, &args), joined(&url, &args));
    let (mut ours, mut theirs) = (subscribed(&one, 1), subscribed(&other, 1));
    probe(&mut ours[0], &mut theirs[0]);
    drop((ours, theirs));
    one.stop();
    other.stop();
    // The failure is logged, and topics work on this machine.
    let wrong = format!("bus_credentials={}", file("wrong"));
    let without_ca = [&["-o", &credentials], &shown[..]].concat();
    let with_wrong = [&["-o", &ca, "-o", &wrong], &shown[..]].concat();
    for args in [&with_wrong[..], &without_ca, &["-o", &ca, "-o", &credentials]] {
        let (_dir, mut server) = joined(&url, args);
        let mut clients = subscribed(&server, 1);
        server.says("bus: cannot connect to");
        clients[0].text("quiet news here");
        assert_eq!(clients[0].next_text(), "here");
        let log = server.log();
        assert!(!log.contains(secret) && !log.contains("guess"), "{log}");
        drop(clients);
        server.stop();
    }
}

/// A token for NATS, with the claims of NATS's own tools.
fn nats_jwt(issuer: &nkeys::KeyPair, subject: &nkeys::KeyPair, kind: &str) -> String {
    let claims = serde_json::json!({
        "jti": format!("{kind}-1"), "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(),
        "name": kind, "nats": { "type": kind, "version": 2, "subs": -1, "data": -1, "payload": -1, "limits": { "subs": -1, "data": -1, "payload": -1,
        "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "wildcards": true } },
    });
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let header = encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let signed = format!("{header}.{}", encode(claims.to_string().as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", encode(&signature))
}

/// Two servers with these credentials reach each other through a nats-server with this configuration, and one with
/// others is refused.
fn nats_with_credentials(config: &str, credentials: &str, wrong: &str) {
    let engine = Engine::start_with(Kind::Nats, |dir, _| {
        let file = dir.path().join("nats.conf");
        std::fs::write(&file, config).unwrap();
        vec!["-c".to_owned(), file.display().to_string()]
    });
    // The first server address refuses connections.
    let url = format!("nats://127.0.0.1:1,nats://127.0.0.1:{}", engine.port);
    let setting = |name: &str, text: &str| {
        let file = engine.dir.path().join(name);
        write_secret(&file, text);
        format!("bus_credentials={}", file.display())
    };
    let right = setting("right", credentials);
    let ((_one, mut one), (_other, mut other)) =
        (joined(&url, &["-o", &right]), joined(&url, &["-o", &right]));
    let (mut ours, mut theirs) = (subscribed(&one, 1), subscribed(&other, 1));
    probe(&mut ours[0], &mut theirs[0]);
    drop((ours, theirs));
    one.stop();
    other.stop();
    let (_dir, mut server) = joined(&url, &["-o", &setting("wrong", wrong)]);
    let client = subscribed(&server, 1);
    server.says("bus: cannot connect to");
    server.says("authorization violation");
    drop(client);
    server.stop();
}

#[test]
#[ignore = "needs nats-server"]
fn nats_knows_a_user_by_its_nkey_or_its_jwt() {
    use nkeys::KeyPair;
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let config = format!("authorization {{ users = [ {{ nkey: {} }} ] }}\n", user.public_key());
    nats_with_credentials(&config, &user.seed().unwrap(), &stranger.seed().unwrap());

    let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
    let config = format!(
        "operator: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {} }}\n",
        nats_jwt(&operator, &operator, "operator"),
        account.public_key(),
        nats_jwt(&operator, &account, "account"),
    );
    let file = |issuer: &KeyPair, of: &KeyPair| {
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            nats_jwt(issuer, of, "user"),
            of.seed().unwrap()
        )
    };
    nats_with_credentials(&config, &file(&account, &user), &file(&KeyPair::new_account(), &user));
}

#[test]
#[ignore = "needs nats-server"]
fn tls_and_credentials_with_nats() {
    tls_and_credentials(Kind::Nats);
}

#[test]
#[ignore = "needs redis-server"]
fn tls_and_credentials_with_redis() {
    tls_and_credentials(Kind::Redis);
}
