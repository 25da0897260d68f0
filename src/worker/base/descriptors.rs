//! File descriptors of this process when a handler uses up those that there are: a few spare ones make way for what
//! comes from other processes, and the scoreboard tells the others of it.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::config::SPARE_DESCRIPTORS;
use crate::fleet::memory::scoreboard::{Fault, Scoreboard, Slot};

/// Of the spare descriptors those for what the supervisor sends: they are not given up for connections.
const FOR_COMMANDS: usize = 2;

/// The spare descriptors of a worker, and whether it is out of others.
pub struct Descriptors {
    slot: &'static Slot,
    scoreboard: &'static Scoreboard,
    /// [`SPARE_DESCRIPTORS`], or fewer while there are no others.
    spare: Mutex<Vec<OwnedFd>>,
}

impl Descriptors {
    pub fn new(slot: &'static Slot, scoreboard: &'static Scoreboard) -> Self {
        let descriptors = Self { slot, scoreboard, spare: Mutex::default() };
        descriptors.check();
        descriptors
    }

    /// Closes spare descriptors so that `count` are free for connections; false if there are not enough.
    pub fn make_room(&self, count: usize) -> bool {
        self.give_up(count, FOR_COMMANDS)
    }

    /// The same for one that may come with a command of the supervisor.
    pub fn make_room_for_command(&self) {
        self.give_up(1, 0);
    }

    fn give_up(&self, count: usize, kept: usize) -> bool {
        let filled = self.fill(count + kept);
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        match filled {
            Ok(()) => {
                let rest = spare.len().saturating_sub(count);
                spare.truncate(rest);
            }
            Err(error) => {
                spare.truncate(SPARE_DESCRIPTORS);
                self.ran_out(error);
            }
        }
        filled.is_ok()
    }

    /// Takes back what made room, as far as that is possible. To be called when what was expected has come.
    pub fn refill(&self) {
        // Whether that was possible is found out by check().
        let _ = self.fill(SPARE_DESCRIPTORS);
    }

    /// There is no descriptor, or no memory for one: the others do not wait for this worker any more.
    pub fn ran_out(&self, error: Errno) {
        if self.slot.fault().is_some() {
            return;
        }
        let fault = if error == Errno::EMFILE { Fault::Descriptors } else { Fault::System };
        self.slot.set_fault(Some(fault));
        log::warn!(
            "{error}: this worker accepts no connections until {SPARE_DESCRIPTORS} descriptors are free"
        );
    }

    /// Whether there are descriptors again, or still.
    pub fn check(&self) -> bool {
        let is_out = matches!(self.slot.fault(), Some(Fault::Descriptors | Fault::System));
        // With a margin, so that it does not change with every descriptor.
        let margin = if is_out { SPARE_DESCRIPTORS } else { 1 };
        let filled = self.fill(SPARE_DESCRIPTORS + margin);
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).truncate(SPARE_DESCRIPTORS);
        if let Err(error) = filled {
            self.ran_out(error);
            return false;
        }
        if is_out {
            self.slot.set_fault(None);
            self.scoreboard.changed();
            log::info!("descriptors are free: this worker accepts connections again");
        }
        true
    }

    fn fill(&self, count: usize) -> Result<(), Errno> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        while spare.len() < count {
            spare.push(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?.into());
        }
        Ok(())
    }
}
