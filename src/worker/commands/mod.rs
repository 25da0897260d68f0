//! From other threads to the event loop: the slots that they enter, and the queue of their commands.

pub mod queue;
pub mod slot;
pub mod watermarks;

/// What `slot` is made of. Its model in `tests/slot.rs` has loom's in their place.
mod sync {
    pub use std::sync::atomic::{AtomicU64, Ordering, fence};
    pub use std::sync::{Mutex, MutexGuard, PoisonError};
}
