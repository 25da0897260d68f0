//! Files of certificates and keys that change: gateways of another generation read them, without a reload of anything else.
//! The supervisor looks at when they were changed, and never into them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Config;
use crate::config::gateway::Entrance;
use crate::time::Instant;

/// How often files are looked at. A certificate and its key may be replaced one after the other: they are read once nothing
/// has changed for this time.
pub(super) const LOOK: Duration = Duration::from_secs(2);

/// A file as it is: device, inode, size, and when it was changed; `None` if it cannot be looked at.
pub(super) type Stamp = (PathBuf, Option<(u64, u64, u64, i64, i64)>);

/// The files that gateways read, as they are.
pub(super) fn stamps(config: &Config) -> Vec<Stamp> {
    let entrances = config.gateway.listeners.iter().map(|listener| &listener.entrance);
    let mut paths: Vec<&Path> = Vec::new();
    for entrance in entrances.chain(&config.gateway.passed) {
        let Entrance::Tls(tls) = entrance else { continue };
        paths.extend(tls.certificates.iter().flat_map(|files| [&*files.certificate, &*files.key]));
        paths.extend(tls.client_auth.iter().map(|auth| &*auth.ca));
    }
    paths.sort_unstable();
    paths.dedup();
    paths.into_iter().map(|path| (path.to_owned(), stamp(path))).collect()
}

fn stamp(path: &Path) -> Option<(u64, u64, u64, i64, i64)> {
    let file = path.metadata().ok()?;
    Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}

/// What is known of the files.
#[derive(Default)]
pub(super) struct Certificates {
    /// As they were when they were looked at last.
    seen: Vec<Stamp>,
    /// They have changed, and gateways that have read them were not started yet.
    is_changed: bool,
    /// When they are looked at next.
    pub look_at: Instant,
}

impl Certificates {
    /// Whether it is time to read the files anew, which were `read` last.
    pub fn look(&mut self, stamps: Vec<Stamp>, read: &[Stamp]) -> bool {
        if self.seen.is_empty() {
            self.seen = read.to_vec();
        }
        if self.seen != stamps {
            (self.seen, self.is_changed) = (stamps, true);
            return false;
        }
        std::mem::take(&mut self.is_changed)
    }

    /// A reload has read them.
    pub fn forget(&mut self) {
        *self = Self { look_at: self.look_at, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_once_they_have_settled() {
        let stamp = |size| vec![(PathBuf::from("c"), Some((1, 2, size, 4, 5)))];
        let mut certificates = Certificates::default();
        let looks = [1, 1, 2, 3, 3, 3, 1, 1].map(|size| certificates.look(stamp(size), &stamp(1)));
        assert_eq!(looks, [false, false, false, false, true, false, false, true]);
    }
}
