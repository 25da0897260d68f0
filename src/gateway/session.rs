//! One TLS connection without its socket: bytes in, bytes out. It holds no buffers while it is idle.

use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};
use rustls::{HandshakeKind, ServerConfig};

/// Maximum bytes that a record adds to its content (TLS 1.2: header, nonce, tag).
const OVERHEAD: usize = 40;
/// Maximum bytes of content in a record.
const FRAGMENT: usize = 16 * 1024;
/// Maximum bytes of an incomplete record or handshake message (RFC 8446 section 5.1).
const MAX_UNREAD: usize = 80 * 1024;

type Traffic<'a> = WriteTraffic<'a, ServerConnectionData>;

/// One connection.
pub struct Session {
    connection: UnbufferedServerConnection,
    /// Received, incomplete.
    unread: Vec<u8>,
    /// Encrypted, not sent yet.
    unsent: Vec<u8>,
    /// The peer has sent close_notify.
    is_ended: bool,
    /// This side has sent close_notify.
    has_sent_end: bool,
}

impl Session {
    /// A session that has received nothing.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Self { connection, unread: Vec::new(), unsent: Vec::new(), is_ended: false, has_sent_end: false })
    }

    /// Bytes received before that are incomplete.
    pub fn unread(&self) -> &[u8] {
        &self.unread
    }

    /// Decrypts `received`, which begins with room for [`unread`](Self::unread), and appends the content to `plain`.
    /// After an error, the alert is unsent.
    pub fn receive(&mut self, mut received: &mut [u8], plain: &mut Vec<u8>) -> Result<(), rustls::Error> {
        let unread = std::mem::take(&mut self.unread);
        if let Some(front) = received.get_mut(..unread.len()) {
            front.copy_from_slice(&unread);
        }
        let result = loop {
            let UnbufferedStatus { discard, state } = self.connection.process_tls_records(received);
            let is_waiting = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        plain.extend_from_slice(record?.payload);
                    }
                    false
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    append(&mut self.unsent, 0, |room| data.encode(room), wanted_by_encode)?;
                    false
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    false
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.is_ended = true;
                    false
                }
                Ok(ConnectionState::Closed) => {
                    self.is_ended = true;
                    true
                }
                Ok(_) => true,
                Err(error) => break Err(error),
            };
            received = received.get_mut(discard..).unwrap_or_default();
            if is_waiting {
                break Ok(());
            }
        };
        if result.is_err() {
            self.collect_alert();
        } else if received.len() > MAX_UNREAD {
            return Err(rustls::Error::General("handshake message too long".to_owned()));
        } else if !received.is_empty() && !self.is_ended {
            self.unread = received.to_vec();
        }
        result
    }

    /// Appends the alert for an error to the unsent bytes.
    fn collect_alert(&mut self) {
        while let Ok(ConnectionState::EncodeTlsData(mut data)) =
            self.connection.process_tls_records(&mut []).state
        {
            let encoded = append(&mut self.unsent, 0, |room| data.encode(room), wanted_by_encode);
            if encoded.is_err() {
                return;
            }
        }
    }

    /// Encrypts for the peer.
    pub fn send(&mut self, plain: &[u8]) -> Result<(), rustls::Error> {
        let room = plain.len() + (plain.len() / FRAGMENT + 1) * OVERHEAD;
        self.write(room, |traffic, room| traffic.encrypt(plain, room))
    }

    /// Has `encrypt` append to the unsent bytes, after what rustls itself has to send.
    fn write(
        &mut self,
        room: usize,
        mut encrypt: impl FnMut(&mut Traffic<'_>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), rustls::Error> {
        loop {
            match self.connection.process_tls_records(&mut []).state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    return append(
                        &mut self.unsent,
                        room,
                        |room| encrypt(&mut traffic, room),
                        wanted_by_encrypt,
                    );
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    append(&mut self.unsent, 0, |room| data.encode(room), wanted_by_encode)?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.is_ended = true,
                _ => return Err(rustls::Error::HandshakeNotComplete),
            }
        }
    }

    /// Replaces the unsent bytes by the rest that could not be sent at once.
    pub fn keep_unsent(&mut self, rest: &[u8]) {
        self.unsent = rest.to_vec();
    }

    /// Encrypts close_notify, once.
    pub fn send_end(&mut self) -> Result<(), rustls::Error> {
        match std::mem::replace(&mut self.has_sent_end, true) {
            true => Ok(()),
            false => self.write(0, |traffic, room| traffic.queue_close_notify(room)),
        }
    }

    /// Encrypted bytes, not sent yet.
    pub fn unsent(&self) -> &[u8] {
        &self.unsent
    }

    /// Removes the first `count` unsent bytes; frees the buffer if none are left.
    pub fn sent(&mut self, count: usize) {
        if count >= self.unsent.len() {
            self.unsent = Vec::new();
        } else {
            self.unsent.drain(..count);
        }
    }

    /// Exchanges the buffer of unsent bytes for another one.
    pub fn swap_unsent(&mut self, buffer: &mut Vec<u8>) {
        std::mem::swap(&mut self.unsent, buffer);
    }

    /// Whether the handshake is complete.
    pub fn is_open(&self) -> bool {
        !self.connection.is_handshaking()
    }

    /// Whether the peer has sent close_notify.
    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// The negotiated protocol.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.connection.alpn_protocol()
    }

    /// The name of the TLS version.
    pub fn version(&self) -> Option<&'static str> {
        match self.connection.protocol_version()? {
            rustls::ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
            _ => Some("TLSv1.3"),
        }
    }

    /// The cipher suite by its IANA name.
    pub fn cipher(&self) -> Option<String> {
        let suite = self.connection.negotiated_cipher_suite()?.suite();
        Some(format!("{suite:?}").replace("TLS13_", "TLS_"))
    }

    /// Whether it resumes an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The client's certificates in DER, its own first.
    pub fn chain(&self) -> impl Iterator<Item = &[u8]> {
        self.connection.peer_certificates().unwrap_or_default().iter().map(|certificate| certificate.as_ref())
    }
}

/// Appends what `write` writes. It gets `room` bytes; if it wants more, it is called again with as many.
fn append<E>(
    to: &mut Vec<u8>,
    mut room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
    wanted: impl Fn(E) -> Option<usize>,
) -> Result<(), rustls::Error> {
    let before = to.len();
    for _ in 0..2 {
        to.resize(before + room, 0);
        match write(to.get_mut(before..).unwrap_or_default()) {
            Ok(count) => {
                to.truncate(before + count);
                return Ok(());
            }
            Err(error) => match wanted(error) {
                Some(size) => room = size,
                None => break,
            },
        }
    }
    to.truncate(before);
    Err(rustls::Error::EncryptError)
}

fn wanted_by_encode(error: EncodeError) -> Option<usize> {
    match error {
        EncodeError::InsufficientSize(error) => Some(error.required_size),
        EncodeError::AlreadyEncoded => None,
    }
}

fn wanted_by_encrypt(error: EncryptError) -> Option<usize> {
    match error {
        EncryptError::InsufficientSize(error) => Some(error.required_size),
        EncryptError::EncryptExhausted => None,
    }
}
