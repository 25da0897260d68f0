//! Signals that end the server while it starts, before its loop reads them: the start is given up and cleaned up, then
//! the process ends by the signal, as a program does that does not handle it.
//!
//! The three ways to handle signals here, and why: until the loop runs, signal-hook sets a flag and interrupts what
//! waits, which is all that is needed; the loop of a supervisor or worker reads a signalfd, one more descriptor to wait
//! for; a crash is handled with sigaction itself (`worker::crash`), as it has to run on the thread that crashed, on a
//! stack of its own.

#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::{SigHandler, Signal, signal};
use signal_hook::{SigId, flag, low_level};

/// Signals that tell the server to stop.
pub const STOP: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT];

/// Watches for them until it is dropped.
#[derive(Debug)]
pub struct StartSignals {
    /// Number of the signal that came last; 0: none.
    received: Arc<AtomicUsize>,
    actions: Vec<SigId>,
}

impl StartSignals {
    /// From now on these signals do nothing but to be [`received`](Self::received).
    pub fn watch() -> io::Result<Self> {
        let received = Arc::new(AtomicUsize::new(0));
        let watch =
            |signal: Signal| flag::register_usize(signal as i32, Arc::clone(&received), signal as usize);
        let actions = STOP.into_iter().map(watch).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { received, actions })
    }

    /// The signal that has come, if one has.
    pub fn received(&self) -> Option<Signal> {
        let number = self.received.load(Ordering::Relaxed);
        i32::try_from(number).ok().and_then(|number| Signal::try_from(number).ok())
    }
}

impl Drop for StartSignals {
    fn drop(&mut self) {
        for action in self.actions.drain(..) {
            low_level::unregister(action);
        }
        for stop in STOP {
            // What is left of signal-hook does nothing, which would be to ignore the signal.
            // SAFETY: the default action installs no code.
            let _ = unsafe { signal(stop, SigHandler::SigDfl) }; // it is valid for each of these
        }
    }
}

/// Ends this process as the signal does when it is not handled.
pub fn end_by(signal: Signal) {
    // It fails for numbers that are no signals.
    let _ = low_level::emulate_default_handler(signal as i32);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    // The only test of this process that may raise one.
    #[test]
    fn a_signal_is_noted() {
        let signals = StartSignals::watch().unwrap();
        assert_eq!(signals.received(), None);
        nix::sys::signal::raise(Signal::SIGQUIT).unwrap();
        assert_eq!(signals.received(), Some(Signal::SIGQUIT));
    }
}
