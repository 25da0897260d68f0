//! Load balancers and a Prometheus server from Debian's packages, as `.ci/run install` installs them.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tungstenite::{Message, WebSocket};

use super::server::{Dir, ECHO, Server, TIMEOUT, bound, ctl, output_of, until, wshd};
use super::{Operated, request};

/// A program that is stopped with the test.
struct Program(Child);

impl Program {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(bound(command).spawn().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// One of two servers behind a load balancer; it keeps its port when it is started again.
struct Backend {
    dir: Dir,
    server: Server,
    address: String,
}

impl Backend {
    fn new() -> Self {
        let dir = Dir::new();
        dir.handler("echo", ECHO);
        let server = Self::server(&dir, "0");
        let address = server.address();
        Self { dir, server, address }
    }

    fn server(dir: &Dir, port: &str) -> Server {
        let log = dir.path().join("log");
        let mut command = wshd();
        command.args(["--workers", "2", "--port", port, "--websock-handlers"]).arg(dir.path());
        command.arg("--log-file").arg(&log).arg("--control-socket").arg(dir.path().join("control"));
        command.args(["-o", "health=/healthz", "-o", "drain_delay=1s", "-o", "drain_code=1012"]);
        Server::launch(command, log).when_ready()
    }

    /// Drains it, waits for its end, and starts it again.
    fn drain_and_start_again(&mut self) {
        let output = ctl(&self.dir.path().join("control"), &["drain", "--for", "1s"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(self.server.wait().code(), Some(0), "{}", self.server.log());
        let port = self.address.rsplit_once(':').unwrap().1.to_owned();
        self.server = Self::server(&self.dir, &port);
    }

    /// How many WebSockets it has.
    fn connections(&self) -> u64 {
        let output = ctl(&self.dir.path().join("control"), &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        status["handlers"][0]["connections"].as_u64().unwrap_or_default()
    }
}

/// Clients that stay connected, reconnect when they are closed, and record errors.
struct Crowd<'a> {
    entrance: &'a Path,
    is_over: AtomicBool,
    sent_away: AtomicUsize,
    answers: AtomicUsize,
    mistakes: Mutex<Vec<String>>,
}

impl<'a> Crowd<'a> {
    fn new(entrance: &'a Path) -> Self {
        let (is_over, sent_away, answers, mistakes) = Default::default();
        Self { entrance, is_over, sent_away, answers, mistakes }
    }

    fn live(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            if let Err(mistake) = self.stay() {
                return self.mistakes.lock().unwrap().push(mistake);
            }
        }
    }

    /// One connection, until it is closed properly.
    fn stay(&self) -> Result<(), String> {
        let stream = UnixStream::connect(self.entrance).map_err(|error| format!("connect: {error}"))?;
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let opened = tungstenite::client("ws://localhost/echo", stream);
        let (mut socket, _) = opened.map_err(|error| format!("handshake: {error}"))?;
        while !self.is_over.load(Ordering::Relaxed) {
            if let Some(close) = self.ask(&mut socket)? {
                self.sent_away.fetch_add(1, Ordering::Relaxed);
                return if close == 1012 { Ok(()) } else { Err(format!("closed with {close}")) };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The code of a Close frame that comes instead of an answer.
    fn ask(&self, socket: &mut WebSocket<UnixStream>) -> Result<Option<u16>, String> {
        // If it is being closed, the Close frame is read below.
        let _ = socket.send(Message::text("x"));
        match socket.read() {
            Ok(Message::Text(_)) => {
                self.answers.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            Ok(Message::Close(close)) => Ok(Some(close.map_or(1005, |close| close.code.into()))),
            other => Err(format!("instead of an answer: {other:?}")),
        }
    }
}

/// Drains one server after the other while clients are connected through the proxy at `entrance`.
fn nobody_notices_a_rolling_drain(entrance: &Path, mut backends: [Backend; 2]) {
    let crowd = Crowd::new(entrance);
    std::thread::scope(|scope| {
        (0..12).for_each(|_| drop(scope.spawn(|| crowd.live())));
        let roll = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("both servers have clients", || backends.iter().all(|backend| backend.connections() > 2));
            for number in [0, 1] {
                backends[number].drain_and_start_again();
                // The closed clients are with the other server; new ones come to this one again.
                let mut visitors: Vec<WebSocket<UnixStream>> = Vec::new();
                until("the server that was started again has clients", || {
                    let stream = UnixStream::connect(entrance).unwrap();
                    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                    visitors.push(tungstenite::client("ws://localhost/echo", stream).unwrap().0);
                    backends[number].connections() > 0
                });
                for visitor in &mut visitors {
                    visitor.close(None).unwrap();
                }
            }
        }));
        crowd.is_over.store(true, Ordering::Relaxed);
        roll.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(*crowd.mistakes.lock().unwrap(), Vec::<String>::new());
    assert!(crowd.sent_away.load(Ordering::Relaxed) >= 6 && crowd.answers.load(Ordering::Relaxed) > 100);
}

/// Waits until the load balancer serves.
fn when_up(entrance: &Path) {
    let is_up = || {
        let Ok(stream) = UnixStream::connect(entrance) else { return false };
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        tungstenite::client("ws://localhost/echo", stream).is_ok()
    };
    until("the load balancer serves", is_up);
}

#[test]
#[ignore = "needs haproxy"]
fn clients_behind_haproxy_see_no_error_when_servers_drain_in_turn() {
    let (dir, backends) = (Dir::new(), [Backend::new(), Backend::new()]);
    let (entrance, config) = (dir.path().join("entrance"), dir.path().join("haproxy.cfg"));
    let text = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n timeout tunnel 60s\n \
         option redispatch\n\
         frontend all\n bind unix@{}\n default_backend chat\n\
         backend chat\n balance roundrobin\n option httpchk\n http-check send meth GET uri /healthz\n \
         http-check expect status 200\n default-server inter 200ms fall 2 rise 1 check\n \
         server a {}\n server b {}\n",
        entrance.display(),
        backends[0].address,
        backends[1].address
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("haproxy");
    let _haproxy = Program::start(command.arg("-db").arg("-f").arg(&config), &dir.path().join("haproxy.log"));
    when_up(&entrance);
    nobody_notices_a_rolling_drain(&entrance, backends);
}

#[test]
#[ignore = "needs nginx"]
fn clients_behind_nginx_see_no_error_when_servers_drain_in_turn() {
    let (dir, backends) = (Dir::new(), [Backend::new(), Backend::new()]);
    let (entrance, config) = (dir.path().join("entrance"), dir.path().join("nginx.conf"));
    let text = format!(
        "daemon off; pid {0}/nginx.pid; error_log stderr; worker_processes 1;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n access_log off; client_body_temp_path {0}/t1; proxy_temp_path {0}/t2; fastcgi_temp_path {0}/t3;\n \
         uwsgi_temp_path {0}/t4; scgi_temp_path {0}/t5;\n \
         upstream chat {{ server {1} fail_timeout=1s; server {2} fail_timeout=1s; }}\n \
         server {{ listen unix:{3}; location / {{ proxy_pass http://chat; proxy_http_version 1.1;\n \
         proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; proxy_read_timeout 60s; }} }}\n}}\n",
        dir.path().display(),
        backends[0].address,
        backends[1].address,
        entrance.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("nginx");
    let command = command.arg("-c").arg(&config).arg("-p").arg(dir.path()).args(["-e", "stderr"]);
    let _nginx = Program::start(command, &dir.path().join("nginx.log"));
    when_up(&entrance);
    nobody_notices_a_rolling_drain(&entrance, backends);
}

fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/examples/prometheus-rules.yml")
}

/// The result of a request to Prometheus.
fn asked(address: &str, path: &str) -> serde_json::Value {
    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return serde_json::Value::Null };
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let head = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str::<serde_json::Value>(body)
        .map_or(serde_json::Value::Null, |answer| answer["data"].clone())
}

#[test]
#[ignore = "needs prometheus"]
fn prometheus_scrapes_the_server_and_understands_the_alert_rules() {
    let output = output_of(Command::new("promtool").args(["check", "rules"]).arg(rules())).unwrap();
    assert!(output.status.success(), "{output:?}");
    let operated = Operated::start(&["--workers", "2"]);
    let scraped = request(&operated.metrics(), "GET", "/metrics", "").body;
    let mut lint = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut lint.stdin.take().unwrap(), &scraped).unwrap();
    let output = lint.wait_with_output().unwrap();
    // Status 3: style, such as a metric without a unit.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");

    // A port that was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let dir = Dir::new();
    let config = dir.path().join("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 500ms, evaluation_interval: 500ms }}\nrule_files: [{}]\n\
         scrape_configs: [{{ job_name: wshd, static_configs: [{{ targets: ['{}'] }}] }}]\n",
        rules().display(),
        operated.metrics()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display())).arg(format!("--web.listen-address={address}"));
    command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
    let _prometheus = Program::start(&mut command, &dir.path().join("prometheus.log"));
    let query = "/api/v1/query?query=wshd_workers%7Bstate%3D%22running%22%7D";
    until("the server is scraped", || asked(&address, query)["result"][0]["value"][1] == "2");
    assert_eq!(asked(&address, "/api/v1/targets")["activeTargets"][0]["lastError"], "");
    until("the rules are evaluated", || {
        let groups = asked(&address, "/api/v1/rules");
        let rules = groups["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
        rules.len() > 5 && rules.iter().all(|rule| rule["health"] == "ok" && rule["state"] == "inactive")
    });
}
