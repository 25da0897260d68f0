//! Passwords that were right a moment ago, so that not every request of a client waits for their hash. None of them is kept:
//! a keyed hash of user, password and what it was compared with stands for it.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use ring::hmac;
use ring::rand::SystemRandom;

use super::passwords::Check;
use crate::time::Instant;

/// How long a password need not be compared again.
const FRESH: Duration = Duration::from_secs(60);
/// How many are known; the oldest makes way.
const MOST: usize = 1024;

/// Stands for a user with a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof([u8; 32]);

/// Passwords that were right a moment ago.
pub struct Recent {
    /// Of this process.
    key: hmac::Key,
    /// With the end of their time, the oldest first; at most [`MOST`].
    proofs: VecDeque<(Instant, Proof)>,
}

impl Recent {
    /// Knows none.
    pub fn new() -> io::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let key = key.map_err(|_| io::Error::other("no random numbers"))?;
        Ok(Self { key, proofs: VecDeque::new() })
    }

    /// What stands for the password of this check.
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

    /// It was right.
    pub fn add(&mut self, proof: Proof, now: Instant) {
        if self.proofs.len() == MOST {
            self.proofs.pop_front();
        }
        self.proofs.push_back((now + FRESH, proof));
    }

    /// Whether it was right lately.
    pub fn knows(&mut self, proof: Proof, now: Instant) -> bool {
        while self.proofs.front().is_some_and(|(end, _)| *end <= now) {
            self.proofs.pop_front();
        }
        // What is found is a hash that nobody else can compute: its comparison tells nothing.
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
        let (mut recent, now) = (Recent::new().unwrap(), Instant::default() + FRESH);
        let right = recent.proof(&check(HASH, "ann:eve!"));
        assert!(!recent.knows(right, now));
        recent.add(right, now);
        let other = "$5$other$bZDmhjddzzMv6QiMvpMRtPoB6YiC0flGPEs/yYlKFH2";
        for (hash, credentials) in
            [(HASH, "ann:eve"), (HASH, "bob:eve!"), (HASH, "nobody:eve!"), (other, "ann:eve!")]
        {
            let wrong = recent.proof(&check(hash, credentials));
            assert!(!recent.knows(wrong, now), "{hash} {credentials}");
        }
        assert_ne!(
            Recent::new().unwrap().proof(&check(HASH, "ann:eve!")),
            right,
            "the key of another process"
        );
        assert!(recent.knows(right, now + FRESH * 9 / 10));
        assert!(!recent.knows(right, now + FRESH));
    }

    #[test]
    fn the_oldest_makes_way() {
        let (mut recent, now) = (Recent::new().unwrap(), Instant::default());
        let proof = |number: usize| Proof([(number % 251) as u8; 32]);
        (0..=MOST).for_each(|_| recent.add(proof(0), now));
        recent.add(proof(1), now);
        assert_eq!(recent.proofs.len(), MOST);
        assert!(recent.knows(proof(1), now));
    }
}
