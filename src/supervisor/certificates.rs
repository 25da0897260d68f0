//! Files of certificates and keys that change: gateways of another generation read them, without a reload of anything else.
//! The supervisor looks at when they were changed, and never into them.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::config::gateway::Entrance;
use crate::fleet::routes;

/// A certificate and its key may be replaced one after the other: they are read when so many looks, a second apart, have found
/// nothing new.
const SETTLED: u32 = 2;

/// A file as it is; `None` if it cannot be looked at.
pub(super) type Stamp = (PathBuf, Option<routes::Stamp>);

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
    paths
        .into_iter()
        .map(|path| (path.to_owned(), path.metadata().ok().as_ref().map(routes::Stamp::from)))
        .collect()
}

/// What is known of the files.
#[derive(Default)]
pub(super) struct Certificates {
    /// As they were when they were looked at last.
    seen: Vec<Stamp>,
    /// How many looks have found nothing new, since they have changed; none if gateways have read them, or start to.
    unread: Option<u32>,
}

impl Certificates {
    /// Whether it is time to read the files anew, which were `read` last.
    pub fn look(&mut self, stamps: Vec<Stamp>, read: &[Stamp]) -> bool {
        if self.seen.is_empty() {
            self.seen = read.to_vec();
        }
        if self.seen != stamps {
            (self.seen, self.unread) = (stamps, Some(0));
        } else if let Some(looks) = &mut self.unread {
            *looks += 1;
        }
        self.unread.take_if(|looks| *looks == SETTLED).is_some()
    }

    /// A reload has read them.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_once_they_have_settled() {
        let stamp = |size| routes::Stamp { size, ..routes::Stamp::default() };
        let stamps = |size| vec![(PathBuf::from("c"), Some(stamp(size)))];
        let mut certificates = Certificates::default();
        let looks = [1, 1, 2, 3, 3, 3, 3, 1, 1, 1, 1];
        let is_time = looks.map(|size| certificates.look(stamps(size), &stamps(1)));
        assert_eq!(is_time.map(u8::from), [0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0]);
    }
}
