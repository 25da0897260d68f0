//! Memory that processes share: regions with a guard page on either side, so that a write which runs on from elsewhere
//! ends before it. They are made by the supervisor before it forks. Each child gives up what it has no use for before
//! code of a handler runs in it. That is for good: a region that is read only cannot be made writable again by
//! `mprotect`, since the kernel lets nobody map it for writing any more (F_SEAL_FUTURE_WRITE, fcntl(2)).
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MRemapFlags, MapFlags, ProtFlags, mmap, mmap_anonymous, mremap, munmap};
use nix::unistd::{SysconfVar, ftruncate, sysconf};
use strum::FromRepr;

/// What a process may do with a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRepr)]
#[repr(u8)]
pub enum Access {
    /// It is not mapped.
    None = 0,
    /// It can be read, and not be made writable.
    Read = 1,
    /// It can be read and written.
    Write = 2,
}

/// What can lie in memory that other processes change at any time.
///
/// # Safety
/// All zero must be a value, every change another process can make must lead to a value, and `&self` must not promise
/// that nothing changes: atomic integers, and structs and arrays of these.
pub unsafe trait Shareable: Sync + 'static {}

// SAFETY: an atomic integer.
unsafe impl Shareable for AtomicU8 {}
// SAFETY: an atomic integer.
unsafe impl Shareable for AtomicU32 {}
// SAFETY: an atomic integer.
unsafe impl Shareable for AtomicI32 {}
// SAFETY: an atomic integer.
unsafe impl Shareable for AtomicU64 {}

/// A region, all zero at first. The supervisor can write it.
pub struct Region {
    first: NonNull<u8>,
    /// A multiple of the page size.
    size: usize,
    /// The same memory, mapped for reading only.
    twin: NonNull<u8>,
    /// Of this process: an [`Access`].
    access: AtomicU8,
}

// SAFETY: the pointers are used to map and unmap only; references to the content are to types that are Sync.
unsafe impl Send for Region {}
// SAFETY: as for Send; `access` is atomic.
unsafe impl Sync for Region {}

impl Region {
    /// A new one of at least so many bytes. Pages that nobody uses cost address space only. [supervisor]
    pub fn new(bytes: usize) -> io::Result<Self> {
        let page = page_size();
        let size = bytes.max(1).checked_next_multiple_of(page).ok_or(io::ErrorKind::InvalidInput)?;
        let with_guards = size.checked_add(2 * page).and_then(NonZeroUsize::new);
        let with_guards = with_guards.ok_or(io::ErrorKind::InvalidInput)?;
        let length = NonZeroUsize::new(size).ok_or(io::ErrorKind::InvalidInput)?;
        let file = memfd_create(c"wshd", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        ftruncate(&file, i64::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?)?;
        let private = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces no other memory.
        let guard = unsafe { mmap_anonymous(None, with_guards, ProtFlags::PROT_NONE, private)? };
        let inside = NonZeroUsize::new(guard.addr().get() + page);
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let fixed = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: replaces a part of the mapping that was just made, which nobody else knows of.
        let first = unsafe { mmap(inside, length, writable, fixed, &file, 0)? };
        let sealed = SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::from_bits_retain(libc::F_SEAL_FUTURE_WRITE)
            | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(sealed)).map_err(|error| {
            io::Error::new(
                io::Error::from(error).kind(),
                "shared memory cannot be sealed: Linux 5.1 or later is needed",
            )
        })?;
        // SAFETY: a new mapping at an address of the kernel's choice replaces no other memory.
        let twin = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0)? };
        let access = AtomicU8::new(Access::Write as u8);
        Ok(Self { first: first.cast(), size, twin: twin.cast(), access })
    }

    /// So many values from this byte on; `None` if they are not within the region, or not aligned. The supervisor's
    /// regions are never unmapped, and a process that gives one up does not hand out what lies in it any more.
    pub fn slice<T: Shareable>(&self, offset: usize, count: usize) -> Option<&'static [T]> {
        let bytes = count.checked_mul(size_of::<T>())?;
        let is_within = offset.checked_add(bytes)? <= self.size && offset.is_multiple_of(align_of::<T>());
        // SAFETY: within the mapping, which is page-aligned and was zeroed; T can lie there, as its trait promises.
        is_within.then(|| unsafe {
            std::slice::from_raw_parts(self.first.add(offset).cast::<T>().as_ptr(), count)
        })
    }

    /// What this process may do with it.
    pub fn access(&self) -> Access {
        Access::from_repr(self.access.load(Ordering::Relaxed)).unwrap_or(Access::None)
    }

    /// From here on this process can do no more than this with it. [child, one thread, before any other code runs]
    pub fn restrict(&self, access: Access) -> io::Result<()> {
        if self.access() != Access::Write {
            return Err(io::ErrorKind::PermissionDenied.into()); // once
        }
        self.access.store(access as u8, Ordering::Relaxed);
        match access {
            // SAFETY: nothing refers to the twin, whose mapping has this size.
            Access::Write => unsafe { munmap(self.twin.cast(), self.size)? },
            Access::Read => {
                let flags = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
                let to = Some(self.first.cast());
                // SAFETY: nothing refers to the twin; what it replaces is the same memory at the same place, so that
                // what refers to that can still be read.
                unsafe { mremap(self.twin.cast(), self.size, self.size, flags, to)? };
            }
            // SAFETY: nothing refers to the twin; what lies in the other mapping is not handed out from here on, and
            // nobody has kept any of it over the fork.
            Access::None => unsafe {
                munmap(self.twin.cast(), self.size)?;
                munmap(self.first.cast(), self.size)?;
            },
        }
        Ok(())
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {:?}", self.size, self.access())
    }
}

fn page_size() -> usize {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| usize::try_from(size).ok()).unwrap_or(4096)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;
    use crate::fleet::process::alone::is_alone;

    /// How a child ends that does this.
    fn child(work: impl FnOnce() -> bool) -> WaitStatus {
        // SAFETY: the child calls functions without locks and allocations only, then ends.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => waitpid(child, None).unwrap(),
            ForkResult::Child => {
                let is_well = work();
                // SAFETY: ends the child without running anything of the test harness.
                unsafe { libc::_exit(if is_well { 0 } else { 1 }) }
            }
        }
    }

    fn is_well(status: WaitStatus) -> bool {
        matches!(status, WaitStatus::Exited(_, 0))
    }

    #[test]
    fn what_is_read_only_cannot_be_made_writable_and_stays_up_to_date() {
        if !is_alone() {
            return;
        }
        let region = Region::new(5000).unwrap();
        let words = region.slice::<AtomicU32>(0, 1250).unwrap();
        words[1249].store(7, Ordering::Relaxed);
        let restricted = child(|| {
            region.restrict(Access::Read).unwrap();
            let is_seen = words[1249].load(Ordering::Relaxed) == 7;
            let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: of our own mapping, and refused.
            let refused = unsafe { nix::sys::mman::mprotect(region.first.cast(), region.size, all) };
            is_seen && refused == Err(nix::Error::EACCES) && region.restrict(Access::Write).is_err()
        });
        assert!(is_well(restricted));
        let writing = child(|| {
            region.restrict(Access::Read).unwrap();
            words[0].store(1, Ordering::Relaxed);
            true
        });
        assert!(matches!(writing, WaitStatus::Signaled(_, Signal::SIGSEGV, _)), "{writing:?}");
        assert_eq!(words[0].load(Ordering::Relaxed), 0);
        let owner = child(|| {
            region.restrict(Access::Write).unwrap();
            words[0].store(2, Ordering::Relaxed);
            true
        });
        assert!(is_well(owner));
        assert_eq!(words[0].load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_write_that_runs_on_ends_at_a_guard_page() {
        if !is_alone() {
            return;
        }
        let region = Region::new(1).unwrap();
        for at in [-1, region.size as isize] {
            // SAFETY: one byte beside the mapping, where nothing can be written: the child ends there.
            let status = child(|| unsafe {
                region.first.as_ptr().offset(at).write_volatile(1);
                true
            });
            assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGSEGV, _)), "{at}: {status:?}");
        }
    }

    #[test]
    fn slices_are_within_their_region() {
        let region = Region::new(4096).unwrap();
        let words = |offset, count| region.slice::<AtomicU32>(offset, count).map(<[_]>::len);
        assert_eq!((words(0, 1024), words(4, 1023), words(4096, 0)), (Some(1024), Some(1023), Some(0)));
        assert_eq!((words(0, 1025), words(2, 1), words(4, usize::MAX)), (None, None, None));
    }
}
