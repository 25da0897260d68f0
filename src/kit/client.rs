//! Opens connections as a WebSocket client: URL, TCP, TLS, opening handshake. tungstenite implements the protocol,
//! rustls TLS, and [`Filter`] compression.

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tungstenite::client::{IntoClientRequest, client_with_config};
use tungstenite::handshake::HandshakeError;
use tungstenite::handshake::client::{Request, Response};
use tungstenite::http::header::{AUTHORIZATION, COOKIE, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL};
use tungstenite::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, WebSocket};

use super::deflate::Filter;
use super::value::{self, time};
use crate::exit::{Exit, Failure};
use crate::proto::http1::field::is_token;
use crate::proto::ws::deflate::negotiate::{OFFER, answered};
use crate::proto::ws::extension;

/// Largest message and frame that is received; bytes.
pub const MAX_MESSAGE: usize = 64 << 20;

/// The environment variable with the password, if `--user` has none.
pub const PASSWORD_VARIABLE: &str = "WSHD_PASSWORD";

/// Options for the connection and the request.
#[derive(Debug, Args)]
pub struct Target {
    /// ws://HOST[:PORT]/PATH, or wss:// for TLS
    #[arg(value_name = "URL", value_parser = url)]
    pub url: Uri,
    /// Offer this subprotocol; may be repeated, the preferred one first
    #[arg(short, long, value_name = "NAME", value_parser = token)]
    pub subprotocol: Vec<String>,
    /// Send this request header; may be repeated
    #[arg(short = 'H', long, value_name = "NAME: VALUE", value_parser = header)]
    pub header: Vec<(HeaderName, HeaderValue)>,
    /// Send this cookie; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = cookie)]
    pub cookie: Vec<String>,
    /// Basic authentication; without a password it is read from the environment variable WSHD_PASSWORD
    #[arg(short, long, value_name = "NAME[:PASSWORD]")]
    pub user: Option<String>,
    /// Trust the certificates in this PEM file instead of the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Compress messages, if the server agrees (permessage-deflate)
    #[arg(short = 'C', long)]
    pub compress: bool,
    /// Time to connect, for the opening handshake and for the closing handshake, each
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    pub timeout: Duration,
}

/// An open connection.
pub type Connection = WebSocket<Stream>;

/// Makes connections to a [`Target`] whose name is resolved.
pub struct Client {
    url: Uri,
    request: Request,
    addresses: Vec<SocketAddr>,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    compress: bool,
    timeout: Duration,
}

impl Client {
    /// Resolves the name, reads certificates, composes the request.
    pub fn new(target: &Target) -> Result<Self, Failure> {
        let Target { url, timeout, .. } = target;
        let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let is_tls = url.scheme_str() == Some("wss");
        let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let unreachable = |error| Failure(Exit::Unreachable, format!("{url}: {error}"));
        let addresses: Vec<_> = (host, port).to_socket_addrs().map_err(unreachable)?.collect();
        let tls = match is_tls {
            false if target.ca.is_some() => {
                return Err(Failure(Exit::Usage, format!("--ca is for wss:// URLs: got {url}")));
            }
            false => None,
            true => {
                let name = ServerName::try_from(host.to_owned()).map_err(|_| {
                    Failure(Exit::Usage, format!("{url}: {host:?} cannot be the name in a certificate"))
                })?;
                Some((tls_config(target)?, name))
            }
        };
        let request = request(target)?;
        Ok(Client { url: url.clone(), request, addresses, tls, compress: target.compress, timeout: *timeout })
    }

    /// Connects and completes the handshake, with a new key each time. The connection is non-blocking.
    pub fn connect(&self) -> Result<(Connection, Response), Failure> {
        let tcp = self.dial()?;
        let socket: Box<dyn Socket> = match &self.tls {
            None => Box::new(tcp),
            Some((config, name)) => {
                let session = ClientConnection::new(config.clone(), name.clone())
                    .map_err(|error| self.unreachable(format!("TLS: {error}")))?;
                Box::new(StreamOwned::new(session, tcp))
            }
        };
        let stream = Stream { socket, filter: self.compress.then(|| Box::new(Filter::new())) };
        let mut request = self.request.clone();
        let key = tungstenite::handshake::client::generate_key();
        if let Ok(key) = key.parse() {
            request.headers_mut().insert("sec-websocket-key", key);
        }
        let (mut connection, response) =
            client_with_config(request, stream, Some(limits())).map_err(|error| self.explain(error))?;
        self.agree(connection.get_mut(), &response)?;
        let tcp = connection.get_ref().socket.tcp();
        let ready = tcp.set_read_timeout(None).and_then(|()| tcp.set_nonblocking(true));
        ready.map_err(|error| self.unreachable(error))?;
        Ok((connection, response))
    }

    /// Starts the compression that the server has accepted, if any.
    fn agree(&self, stream: &mut Stream, response: &Response) -> Result<(), Failure> {
        let wrong =
            |why: &str| Failure(Exit::Refused, format!("{}: Sec-WebSocket-Extensions: {why}", self.url));
        let values = response.headers().get_all(SEC_WEBSOCKET_EXTENSIONS);
        let agreed = extension::parse(values.iter().map(HeaderValue::as_bytes));
        let agreed = agreed.map_err(|error| wrong(error.why))?;
        let params = answered(&agreed);
        // RFC 6455 4.1: a client fails the connection over an extension that it has not offered.
        if !agreed.is_empty() && (params.is_none() || stream.filter.is_none()) {
            return Err(wrong(
                "the server uses an extension or parameter that was not offered or is not supported",
            ));
        }
        let Some(filter) = &mut stream.filter else { return Ok(()) };
        filter.agree(params).map_err(|error| self.unreachable(error))
    }

    /// A TCP connection to the first address that answers.
    fn dial(&self) -> Result<TcpStream, Failure> {
        let mut last = io::Error::other("the name has no address");
        for address in &self.addresses {
            let connected = TcpStream::connect_timeout(address, self.timeout).and_then(|tcp| {
                tcp.set_nodelay(true)?;
                tcp.set_read_timeout(Some(self.timeout))?;
                tcp.set_write_timeout(Some(self.timeout))?;
                Ok(tcp)
            });
            match connected {
                Ok(tcp) => return Ok(tcp),
                Err(error) => last = error,
            }
        }
        Err(self.unreachable(last))
    }

    fn unreachable(&self, why: impl Display) -> Failure {
        Failure(Exit::Unreachable, format!("{}: {why}", self.url))
    }

    fn explain<Role: tungstenite::handshake::HandshakeRole>(&self, error: HandshakeError<Role>) -> Failure {
        let url = &self.url;
        match error {
            HandshakeError::Interrupted(_) => {
                self.unreachable(format!("no answer within {:?} (--timeout)", self.timeout))
            }
            HandshakeError::Failure(Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                let line = body.split(|byte| *byte == b'\n').next().unwrap_or_default();
                let line = String::from_utf8_lossy(line);
                let colon = if line.trim().is_empty() { "" } else { ": " };
                let status = response.status();
                Failure(Exit::Refused, format!("{url}: refused with status {status}{colon}{}", line.trim()))
            }
            HandshakeError::Failure(Error::Protocol(error)) => {
                Failure(Exit::Refused, format!("{url}: the answer is not a valid opening handshake: {error}"))
            }
            HandshakeError::Failure(Error::Io(error)) => self.unreachable(error),
            HandshakeError::Failure(error) => self.unreachable(error),
        }
    }
}

/// The stream below tungstenite.
pub struct Stream {
    socket: Box<dyn Socket>,
    /// Present if the request offers compression.
    filter: Option<Box<Filter>>,
}

/// Plain or with TLS.
trait Socket: Read + Write {
    fn tcp(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Socket for StreamOwned<ClientConnection, TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.tcp().as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.filter {
            Some(filter) => filter.read(&mut *self.socket, buffer),
            None => self.socket.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.filter {
            Some(filter) => filter.write(&mut *self.socket, bytes),
            None => self.socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.filter {
            Some(filter) => filter.flush(&mut *self.socket),
            None => self.socket.flush(),
        }
    }
}

/// Whether the socket would block.
pub fn would_block<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock)
}

fn tls_config(target: &Target) -> Result<Arc<ClientConfig>, Failure> {
    let mut roots = RootCertStore::empty();
    match &target.ca {
        Some(file) => {
            let wrong = |why: String| Failure(Exit::Usage, format!("--ca {}: {why}", file.display()));
            let certificates =
                CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("expected certificates in PEM form, found none".to_owned()));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                let what =
                    "the system has no CA certificates: install ca-certificates, or name a file with --ca";
                return Err(Failure(Exit::Usage, what.to_owned()));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure(Exit::Usage, format!("TLS: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn request(target: &Target) -> Result<Request, Failure> {
    let wrong = |why: &str| Failure(Exit::Usage, why.to_owned());
    let mut request = target.url.clone().into_client_request().map_err(|error| wrong(&error.to_string()))?;
    let headers = request.headers_mut();
    if !target.subprotocol.is_empty() {
        let list = target.subprotocol.join(", ").parse().map_err(|_| wrong("--subprotocol: not a token"))?;
        headers.insert(SEC_WEBSOCKET_PROTOCOL, list);
    }
    if target.compress {
        headers.insert(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(OFFER));
    }
    if !target.cookie.is_empty() {
        let list = target.cookie.join("; ").parse().map_err(|_| wrong("--cookie: not a header value"))?;
        headers.insert(COOKIE, list);
    }
    if let Some(user) = &target.user {
        let credentials = match user.contains(':') {
            true => user.clone(),
            false => {
                let expected = format!("expected NAME:PASSWORD, or the password in {PASSWORD_VARIABLE}");
                let password = std::env::var(PASSWORD_VARIABLE);
                let password = password.map_err(|_| wrong(&format!("--user {user}: {expected}")))?;
                format!("{user}:{password}")
            }
        };
        let value = format!("Basic {}", BASE64_STANDARD.encode(credentials));
        let mut value: HeaderValue = value.parse().map_err(|_| wrong("--user: not a header value"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    set(headers, &target.header);
    Ok(request)
}

/// Sets headers, each of which may have several values.
pub fn set(headers: &mut HeaderMap, by: &[(HeaderName, HeaderValue)]) {
    for (name, _) in by {
        headers.remove(name); // such as Host
    }
    for (name, value) in by {
        headers.append(name, value.clone());
    }
}

/// What a client accepts.
pub fn limits() -> WebSocketConfig {
    let config = WebSocketConfig::default().read_buffer_size(16 << 10);
    config.max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE))
}

fn url(text: &str) -> Result<Uri, String> {
    const EXPECTED: &str = "expected ws://HOST[:PORT]/PATH or wss://HOST[:PORT]/PATH";
    let url: Uri = text.parse().map_err(|error| format!("{EXPECTED}: {error}"))?;
    let authority = url.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let port = authority.strip_prefix(url.host().unwrap_or_default()).unwrap_or_default();
    match url.scheme_str() {
        Some("ws" | "wss") if authority.contains('@') => {
            Err("expected no user in the URL: give it with --user".to_owned())
        }
        Some("ws" | "wss") if !matches!(port, "" | ":") && url.port_u16().is_none() => {
            Err("expected a port up to 65535".to_owned())
        }
        Some("ws" | "wss") if url.host().is_some_and(|host| !host.is_empty()) => Ok(url),
        _ => Err(EXPECTED.to_owned()),
    }
}

fn token(text: &str) -> Result<String, String> {
    match is_token(text.as_bytes()) {
        true => Ok(text.to_owned()),
        false => Err("expected a token: letters, digits and !#$%&'*+-.^_`|~".to_owned()),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = value::header(text)?;
    let fixed = ["connection", "upgrade", "sec-websocket-key", "sec-websocket-version"];
    match name.as_str() {
        "sec-websocket-protocol" => Err("give subprotocols with --subprotocol".to_owned()),
        "sec-websocket-extensions" => Err("ask for compression with --compress".to_owned()),
        name if fixed.contains(&name) => Err(format!("{name} is set by the handshake itself")),
        _ => Ok((name, value)),
    }
}

fn cookie(text: &str) -> Result<String, String> {
    let is_pair = text.split_once('=').is_some_and(|(name, _)| !name.is_empty());
    match is_pair && !text.contains([';', '\r', '\n']) {
        true => Ok(text.to_owned()),
        false => Err("expected NAME=VALUE without a semicolon".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_of_websockets() {
        assert!(url("ws://localhost:8080/echo?x=1").is_ok() && url("wss://[::1]/").is_ok());
        assert!(url("ws://a:/").is_ok() && url("wss://[::1]:443/").is_ok());
        for wrong in
            ["", "localhost:80", "http://localhost/", "ws://", "/echo", "ws://a:b@c/", "ws://a:65536/"]
        {
            assert!(url(wrong).is_err_and(|error| error.contains("expected")), "{wrong}");
        }
    }

    #[test]
    fn headers_cannot_break_the_handshake() {
        assert!(header("X-Room: 1").is_ok_and(|(name, value)| name == "x-room" && value == "1"));
        for wrong in ["X-Room", "X Room: 1", "X: a\r\nY: b", "Upgrade: h2c", "Sec-WebSocket-Protocol: a"] {
            assert!(header(wrong).is_err(), "{wrong}");
        }
        assert!(cookie("a=b").is_ok() && cookie("a").is_err() && cookie("a=b; c=d").is_err());
        assert!(token("chat.v1").is_ok() && token("a b").is_err() && token("").is_err());
    }
}
