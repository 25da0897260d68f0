//! Certificates for tests, and TLS clients.
#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use tungstenite::{Message, WebSocket};

use super::fixtures::{add_handler, run};
use super::server::{Dir, Server, TIMEOUT, children, is_alive, until};

/// A certificate authority; its certificate is ca.pem.
pub struct Authority {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(dir: &Dir) -> Self {
        Self::named(dir.path(), "ca")
    }

    pub fn named(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, format!("test {name}"));
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), issuer.pem()).unwrap();
        Self { dir: dir.to_owned(), issuer }
    }

    /// Writes NAME.pem and NAME.key, for these hosts.
    pub fn issue(&self, name: &str, hosts: &[&str]) {
        self.issue_with(name, hosts, |_| {});
    }

    pub fn issue_with(&self, name: &str, hosts: &[&str], change: impl FnOnce(&mut CertificateParams)) {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, "Tests, Inc.");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        let file = self.dir.join(format!("{name}.key"));
        std::fs::write(&file, key.serialize_pem()).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o640)).unwrap();
    }

    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }
}

/// A directory with these handlers, an authority, and a certificate for localhost in cert.pem.
pub fn prepare(handlers: &[&str]) -> (Dir, Authority) {
    let dir = Dir::new();
    handlers.iter().for_each(|name| add_handler(dir.path(), name, name));
    let authority = Authority::new(&dir);
    authority.issue("cert", &["localhost"]);
    (dir, authority)
}

/// The TLS options for that certificate, and others.
pub fn options(dir: &Dir, more: &[&str]) -> Vec<String> {
    let path = |name: &str| dir.path().join(name).display().to_string();
    let tls = ["-t", "-k", &path("cert.key"), "-c", &path("cert.pem")];
    tls.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
}

/// A TLS server.
pub fn start(dir: &Dir, more: &[&str]) -> Server {
    let options = options(dir, more);
    Server::start(dir, &options.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The same with a copy of the program, which can be upgraded.
pub fn start_copy(dir: &Dir, more: &[&str]) -> Server {
    let (program, log) = (dir.path().join("wshd"), dir.path().join("log"));
    run(Command::new("cp").arg(env!("CARGO_BIN_EXE_wshd")).arg(&program));
    let mut command = Command::new(&program);
    command.args(["-p", "0", "--log-level", "debug", "-l"]).arg(&log).arg("-w").arg(dir.path());
    command.args(options(dir, more)).stdin(Stdio::null());
    Server::launch(command, log).when_ready()
}

/// Upgrades it. The old server ends with its last connection; the new one is stopped when this is dropped.
pub fn upgrade(server: &Server) -> Upgraded {
    server.signal(Signal::SIGUSR2);
    server.says("upgrade: the new executable serves");
    Upgraded(processes(server, "supervisor")[0])
}

/// The supervisor of a server that has taken over.
pub struct Upgraded(i32);

impl Drop for Upgraded {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0), Signal::SIGTERM); // it has ended
        until("the new server has ended", || !is_alive(self.0));
    }
}

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// The TLS parameters of a client.
pub struct Client {
    roots: RootCertStore,
    versions: Vec<&'static SupportedProtocolVersion>,
    certificate: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    protocols: Vec<Vec<u8>>,
    prelude: Vec<u8>,
    host: String,
    address: String,
    config: std::cell::OnceCell<Arc<ClientConfig>>,
}

impl Client {
    pub fn of(authority: &Authority) -> Self {
        Self {
            roots: authority.roots(),
            versions: vec![&rustls::version::TLS13, &rustls::version::TLS12],
            certificate: None,
            protocols: Vec::new(),
            prelude: Vec::new(),
            host: "localhost".to_owned(),
            address: "127.0.0.1".to_owned(),
            config: Default::default(),
        }
    }

    pub fn version(mut self, version: &'static SupportedProtocolVersion) -> Self {
        self.versions = vec![version];
        self
    }

    pub fn host(mut self, host: &str) -> Self {
        self.host = host.to_owned();
        self
    }

    /// Connects to another address.
    pub fn at(mut self, address: &str) -> Self {
        self.address = address.to_owned();
        self
    }

    /// Sends this before the handshake.
    pub fn prelude(mut self, bytes: &[u8]) -> Self {
        self.prelude = bytes.to_vec();
        self
    }

    pub fn alpn(mut self, protocol: &str) -> Self {
        self.protocols.push(protocol.as_bytes().to_vec());
        self
    }

    /// Sends NAME.pem as client certificate.
    pub fn certificate(mut self, authority: &Authority, name: &str) -> Self {
        let chain = CertificateDer::pem_file_iter(authority.file(&format!("{name}.pem"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(authority.file(&format!("{name}.key"))).unwrap();
        self.certificate = Some((chain.map(Result::unwrap).collect(), key));
        self
    }

    fn config(&self) -> Arc<ClientConfig> {
        let config = self.config.get_or_init(|| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider);
            let builder = builder.with_protocol_versions(&self.versions).unwrap();
            let builder = builder.with_root_certificates(self.roots.clone());
            let mut config = match &self.certificate {
                Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key()).unwrap(),
                None => builder.with_no_client_auth(),
            };
            config.alpn_protocols = self.protocols.clone();
            Arc::new(config)
        });
        Arc::clone(config)
    }

    /// A connection after the handshake.
    pub fn connect(&self, port: u16) -> std::io::Result<Tls> {
        let mut socket = TcpStream::connect((self.address.as_str(), port))?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(Duration::from_secs(30)))?;
        socket.set_nodelay(true)?;
        std::io::Write::write_all(&mut socket, &self.prelude)?;
        let name = ServerName::try_from(self.host.clone()).unwrap();
        let mut session = ClientConnection::new(self.config(), name).map_err(std::io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(session, socket))
    }

    /// A WebSocket.
    pub fn open(&self, port: u16, resource: &str) -> tungstenite::Result<WebSocket<Tls>> {
        let stream = self.connect(port)?;
        let url = format!("wss://localhost:{port}{resource}");
        match tungstenite::client(url, stream) {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::HandshakeError::Failure(error)) => Err(error),
            Err(tungstenite::HandshakeError::Interrupted(_)) => Err(tungstenite::Error::ConnectionClosed),
        }
    }
}

/// Sends a message of this size and waits for its echo.
#[track_caller]
pub fn echo(socket: &mut WebSocket<Tls>, size: usize) {
    let message = Message::binary((0..size).map(|at| at as u8).collect::<Vec<_>>());
    socket.send(message.clone()).unwrap();
    assert!(socket.read().unwrap() == message, "{size} bytes have changed");
}

/// The port of the first address that a server listens on.
pub fn port(server: &Server) -> u16 {
    server.address().rsplit_once(':').unwrap().1.parse().unwrap()
}

/// The pids of a server's processes whose title begins with this, such as `gateway` or `worker`.
pub fn processes(server: &Server, title: &str) -> Vec<i32> {
    let is_so = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(format!("wshd: {title}").as_bytes())
    };
    children(server.pid()).into_iter().filter(is_so).collect()
}
