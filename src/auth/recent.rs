//! A cache of passwords that were verified recently, so that not every request of a client has to compute a slow hash.
//! It holds no passwords, but a keyed hash of user, password and secret.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use ring::hmac;
use ring::rand::SystemRandom;

use super::passwords::Check;
use crate::time::Instant;

/// Lifetime of an entry.
const LIFETIME: Duration = Duration::from_secs(60);
/// Maximum number of entries; one more replaces the oldest.
const MAX_ENTRIES: usize = 1024;

/// The keyed hash of a verified password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof([u8; 32]);

/// See the module.
pub struct Recent {
    /// Random; of this process only.
    key: hmac::Key,
    /// With their expiry, oldest first; at most [`MAX_ENTRIES`].
    proofs: VecDeque<(Instant, Proof)>,
}

impl Recent {
    /// An empty cache.
    pub fn new() -> io::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let key = key.map_err(|_| io::Error::other("cannot get random bytes"))?;
        Ok(Self { key, proofs: VecDeque::new() })
    }

    /// The keyed hash of this check.
    pub fn proof(&self, check: &Check) -> Proof {
        let mut context = hmac::Context::with_key(&self.key);
        for part in check.parts() {
            context.update(&(part.len() as u64).to_ne_bytes());
            context.update(part);
        }
        let mut proof = [0; 32];
        proof.copy_from_slice(context.sign().as_ref());
        Proof(proof)
    }

    /// Adds the proof of a password that was right.
    pub fn add(&mut self, proof: Proof, now: Instant) {
        if self.proofs.len() == MAX_ENTRIES {
            self.proofs.pop_front();
        }
        self.proofs.push_back((now + LIFETIME, proof));
    }

    /// Whether this proof was added recently.
    pub fn contains(&mut self, proof: Proof, now: Instant) -> bool {
        while self.proofs.front().is_some_and(|(end, _)| *end <= now) {
            self.proofs.pop_front();
        }
        // No constant-time comparison: without the key, nobody can choose the hash.
        self.proofs.iter().any(|(_, known)| *known == proof)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::super::{Outcome, Passwords};
    use super::*;

    fn check(hash: &str, credentials: &str) -> Check {
        let users = format!("ann:{hash}\nbob:{hash}\n");
        match Passwords::of_file(&users).unwrap().verify(STANDARD.encode(credentials).as_bytes()) {
            Outcome::Check(check) => check,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_password_is_known_for_a_minute_with_its_user_and_hash() {
        const HASH: &str = "$5$salt$bZDmhjddzzMv6QiMvpMRtPoB6YiC0flGPEs/yYlKFH2";
        let (mut recent, now) = (Recent::new().unwrap(), Instant::default() + LIFETIME);
        let right = recent.proof(&check(HASH, "ann:eve!"));
        assert!(!recent.contains(right, now));
        recent.add(right, now);
        let other = "$5$other$bZDmhjddzzMv6QiMvpMRtPoB6YiC0flGPEs/yYlKFH2";
        for (hash, credentials) in
            [(HASH, "ann:eve"), (HASH, "bob:eve!"), (HASH, "nobody:eve!"), (other, "ann:eve!")]
        {
            let wrong = recent.proof(&check(hash, credentials));
            assert!(!recent.contains(wrong, now), "{hash} {credentials}");
        }
        assert_ne!(
            Recent::new().unwrap().proof(&check(HASH, "ann:eve!")),
            right,
            "the key of another process"
        );
        assert!(recent.contains(right, now + LIFETIME * 9 / 10));
        assert!(!recent.contains(right, now + LIFETIME));
    }

    #[test]
    fn the_oldest_entry_is_replaced() {
        let (mut recent, now) = (Recent::new().unwrap(), Instant::default());
        let proof = |number: usize| Proof([(number % 251) as u8; 32]);
        (0..=MAX_ENTRIES).for_each(|_| recent.add(proof(0), now));
        recent.add(proof(1), now);
        assert_eq!(recent.proofs.len(), MAX_ENTRIES);
        assert!(recent.contains(proof(1), now));
    }
}
