//! What a gateway knows of a connection that it relays, as bytes that move with the connection from worker to worker.
//! Whoever reads them checks them like a stranger's. Knows nothing of TLS but the names of its facts.

/// Bytes that the facts of one connection may take. A certificate chain has 64 KiB at most (RFC 8446 section 4: a
/// handshake message that rustls accepts).
pub const MAX_FACTS: usize = 72 * 1024;
/// Bytes in front of the fields: the checksum of what follows it, then the flags.
const FIXED: usize = 5;
const TLS: u8 = 1;
const RESUMED: u8 = 2;
const HTTP_2: u8 = 4;

/// The facts of one connection. Each field is followed by a NUL where it lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GatewayFacts<'a> {
    pub is_tls: bool,
    /// The TLS session continues an earlier one.
    pub is_resumed: bool,
    /// It is a stream of a connection of HTTP/2.
    pub is_http2: bool,
    /// The gateway's end of the peer's connection: `ADDRESS:PORT`, or the path of a Unix socket.
    pub local: Option<&'a [u8]>,
    /// The value of Strict-Transport-Security for responses.
    pub hsts: Option<&'a [u8]>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: Option<&'a [u8]>,
    /// The cipher suite by its IANA name.
    pub cipher: Option<&'a [u8]>,
    /// The server name that the client asked for (SNI).
    pub server_name: Option<&'a [u8]>,
    /// The protocol that was agreed on (ALPN).
    pub alpn: Option<&'a [u8]>,
    /// The subject of the client's certificate, in the form of RFC 4514.
    pub subject: Option<&'a [u8]>,
    /// The client's certificates in DER, its own first, one after the other.
    pub chain: Option<&'a [u8]>,
}

impl<'a> GatewayFacts<'a> {
    /// As bytes; `None` if they are more than [`MAX_FACTS`].
    pub fn to_bytes(self) -> Option<Vec<u8>> {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = flag(self.is_tls, TLS) | flag(self.is_resumed, RESUMED) | flag(self.is_http2, HTTP_2);
        let mut bytes = vec![0, 0, 0, 0, flags];
        for field in self.fields() {
            let size = field.map_or(0, |field| field.len() + 1);
            bytes.extend_from_slice(&u32::try_from(size).ok()?.to_ne_bytes());
            if let Some(field) = field {
                bytes.extend_from_slice(field);
                bytes.push(0);
            }
        }
        let (sum, covered) = bytes.split_at_mut(4);
        sum.copy_from_slice(&crc32fast::hash(covered).to_ne_bytes());
        (bytes.len() <= MAX_FACTS).then_some(bytes)
    }

    /// From such bytes; `None` if they are damaged.
    pub fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        let (sum, covered) = bytes.split_first_chunk()?;
        if bytes.len() > MAX_FACTS || crc32fast::hash(covered) != u32::from_ne_bytes(*sum) {
            return None;
        }
        let (flags, mut rest) = (*bytes.get(4)?, bytes.get(FIXED..)?);
        let mut fields = Self::default().fields();
        for field in &mut fields {
            let (size, after) = rest.split_first_chunk()?;
            let (text, after) = after.split_at_checked(u32::from_ne_bytes(*size) as usize)?;
            *field = match text.split_last() {
                Some((0, text)) => Some(text),
                Some(_) => return None,
                None => None,
            };
            rest = after;
        }
        let [local, hsts, version, cipher, server_name, alpn, subject, chain] = fields;
        rest.is_empty().then_some(Self {
            is_tls: flags & TLS != 0,
            is_resumed: flags & RESUMED != 0,
            is_http2: flags & HTTP_2 != 0,
            local,
            hsts,
            version,
            cipher,
            server_name,
            alpn,
            subject,
            chain,
        })
    }

    /// One of those of TLS, by the number that handlers know it by, which is its place here and one more.
    pub fn tls(&self, which: u32) -> Option<&'a [u8]> {
        let resumed = self.is_resumed.then_some(&b"1"[..]);
        let Self { version, cipher, server_name, subject, alpn, chain, .. } = *self;
        let known = [version, cipher, server_name, subject, alpn, chain, resumed];
        known.get((which as usize).checked_sub(1)?).copied().flatten().filter(|_| self.is_tls)
    }

    fn fields(&self) -> [Option<&'a [u8]>; 8] {
        let Self { local, hsts, version, cipher, server_name, alpn, subject, chain, .. } = *self;
        [local, hsts, version, cipher, server_name, alpn, subject, chain]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn facts_come_back_as_they_were() {
        let some = GatewayFacts {
            is_tls: true,
            is_http2: true,
            local: Some(b"192.0.2.1:443"),
            version: Some(b"TLSv1.3"),
            server_name: Some(b""),
            chain: Some(&[0; 60_000]),
            ..GatewayFacts::default()
        };
        for facts in [GatewayFacts::default(), some] {
            assert_eq!(GatewayFacts::from_bytes(&facts.to_bytes().unwrap()), Some(facts));
        }
    }

    #[test]
    fn too_many_and_damaged_bytes_are_refused() {
        assert_eq!(GatewayFacts { chain: Some(&[0; MAX_FACTS]), ..GatewayFacts::default() }.to_bytes(), None);
        let bytes =
            GatewayFacts { subject: Some(b"CN=somebody"), ..GatewayFacts::default() }.to_bytes().unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(GatewayFacts::from_bytes(&damaged), None, "byte {at}");
            assert_eq!(GatewayFacts::from_bytes(&bytes[..at]), None, "cut at {at}");
        }
    }
}
