//! Files of certificates and keys that change: gateways of another generation read them, without a reload of anything
//! else. A child looks at when they were changed, and never into them.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::Supervisor;
use super::generation::{FileStamp, Generation, stamps};
use super::processes::Errand;
use crate::fleet::sockets::handover::{self, Received};

/// A certificate and its key may be replaced one after the other: they are read when so many looks, a second apart,
/// have found nothing new.
const SETTLED: u32 = 2;
const PAUSE: Duration = Duration::from_secs(1);

/// How many looks have found nothing new since the files have changed.
#[derive(Default)]
struct Looks {
    /// As they were when they were looked at last.
    seen: Vec<FileStamp>,
    same: u32,
}

impl Looks {
    /// Whether it is time to read the files anew, which were `read` last.
    fn have_settled(&mut self, stamps: &[FileStamp], read: &[FileStamp]) -> bool {
        self.same = if self.seen == stamps { self.same + 1 } else { 0 };
        self.seen = stamps.to_vec();
        self.same >= SETTLED && stamps != read
    }
}

impl Supervisor {
    /// Has a child look at the files that gateways read, if there are any.
    pub(super) fn watch_certificates(&mut self) {
        let Generation { config, certificates, .. } = self.generation.clone();
        let certificates = self.maintenance.certificates.clone().unwrap_or(certificates);
        if certificates.is_empty() || self.is_out(Errand::WatchCertificates) || self.busy(&[]).is_some() {
            return;
        }
        let watch = |outbox: BorrowedFd<'_>| {
            let mut looks = Looks::default();
            loop {
                let stamps = stamps(&config);
                if looks.have_settled(&stamps, &certificates) {
                    return handover::send(outbox, &stamps, &[]);
                }
                handover::go_on(outbox)?;
                std::thread::sleep(PAUSE);
            }
        };
        let _ = self.send_out(Errand::WatchCertificates, watch); // else the next time
    }

    /// The child has seen that they have changed: begins to replace the gateways, unless something else is replaced.
    /// The next child will see it, too.
    pub(super) fn certificates_changed(&mut self, result: Received) {
        let Ok((certificates, _)) = result.open::<Vec<FileStamp>>() else { return };
        if self.busy(&[]).is_none() {
            log::info!("certificates have changed; starting new gateways");
            self.maintenance.certificates = Some(certificates.clone());
            self.try_out(Generation { certificates, ..self.generation.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::routes;

    #[test]
    fn files_are_read_once_they_have_settled() {
        let stamps = |size| [Some(routes::Stamp { size, ..routes::Stamp::default() })];
        let mut looks = Looks::default();
        let sizes = [1, 1, 1, 2, 3, 3, 2, 2, 2, 2];
        let is_time = sizes.map(|size| looks.have_settled(&stamps(size), &stamps(1)));
        assert_eq!(is_time.map(u8::from), [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    }
}
