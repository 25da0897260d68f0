//! Session tickets (RFC 8446 section 4.6.1, RFC 5077) that all gateways of this server accept. Their keys are derived
//! from the private keys, which only gateways have, and a random salt of the running server: no ticket key has to be
//! shared, and the private keys alone do not decrypt old tickets. A key encrypts for 12 hours, and decrypts for another
//! 12.
//!
//! A resumed session is not asked for a certificate. So the keys also depend on which clients the listener accepts: a
//! ticket of a listener, or of a time, with other rules is not accepted.

use std::time::SystemTime;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;

/// Seconds for which a key encrypts.
const PERIOD: u64 = 12 * 60 * 60;
/// Bytes of the number of a period, with which a ticket begins.
const NUMBER: usize = 8;

/// The tickets of one listener.
pub struct Tickets {
    secret: ring::hkdf::Prk,
    /// Digest of the rules for client certificates.
    client_auth: [u8; SHA256_OUTPUT_LEN],
    random: SystemRandom,
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets")
    }
}

impl Tickets {
    /// Derives keys from these private keys, the rules for client certificates, and the server's salt.
    pub fn new<'a>(keys: impl Iterator<Item = &'a [u8]>, client_auth: &[u8], salt: &[u8]) -> Self {
        let keys: Vec<u8> = keys.flatten().copied().collect();
        let mut digested = [0; SHA256_OUTPUT_LEN];
        digested.copy_from_slice(digest(&SHA256, client_auth).as_ref());
        let secret = Salt::new(HKDF_SHA256, salt).extract(&keys);
        Self { secret, client_auth: digested, random: SystemRandom::new() }
    }

    fn key(&self, period: u64) -> Option<LessSafeKey> {
        let info = [&b"wshd ticket"[..], &period.to_be_bytes(), &self.client_auth];
        let key = self.secret.expand(&info, &AES_256_GCM).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(key)))
    }

    fn encrypt_at(&self, period: u64, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let number = period.to_be_bytes();
        let mut sealed = plain.to_vec();
        let nonce_ = Nonce::assume_unique_for_key(nonce);
        self.key(period)?.seal_in_place_append_tag(nonce_, Aad::from(number), &mut sealed).ok()?;
        Some([&number[..], &nonce, &sealed].concat())
    }

    fn decrypt_at(&self, now: u64, ticket: &[u8]) -> Option<Vec<u8>> {
        let (number, rest) = ticket.split_first_chunk::<NUMBER>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let period = u64::from_be_bytes(*number);
        if period != now && period.checked_add(1) != Some(now) {
            return None;
        }
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.key(period)?.open_in_place(nonce, Aad::from(*number), &mut sealed).ok()?;
        Some(plain.to_vec())
    }
}

fn period() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() / PERIOD)
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        PERIOD as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(period(), plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_at(period(), cipher)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn processes_with_the_same_keys_accept_a_ticket_for_two_periods() {
        let new = |keys: &[&[u8]], salt: &[u8]| Tickets::new(keys.iter().copied(), b"", salt);
        let one = new(&[b"key 1", b"key 2"], b"salt");
        let other = new(&[b"key 1", b"key 2"], b"salt");
        let ticket = one.encrypt_at(7, b"session").unwrap();
        assert_eq!(other.decrypt_at(7, &ticket).unwrap(), b"session");
        assert_eq!(other.decrypt_at(8, &ticket).unwrap(), b"session");
        assert_eq!((other.decrypt_at(9, &ticket), other.decrypt_at(6, &ticket)), (None, None));
        assert_ne!(one.encrypt_at(7, b"session").unwrap(), ticket);
        let others = [&b"key 1"[..], b"key 2"];
        let other_clients = Tickets::new(others.into_iter(), b"CA", b"salt");
        for different in [new(&[b"key 1"], b"salt"), new(&others, b"other"), other_clients] {
            assert_eq!(different.decrypt_at(7, &ticket), None);
        }
        for at in 0..ticket.len() {
            let mut damaged = ticket.clone();
            damaged[at] ^= 1;
            assert_eq!(one.decrypt_at(7, &damaged), None);
            assert_eq!(one.decrypt_at(7, &ticket[..at]), None);
        }
    }
}
