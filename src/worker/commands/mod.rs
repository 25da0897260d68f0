//! From other threads to the event loop: the slots they enter, the queue of their commands, and carrying those out.

pub mod queue;
pub mod run;
pub mod slot;
pub mod watermarks;

/// What `slot` is made of. Its model in `tests/slot.rs` has loom's in their place.
mod sync {
    pub use std::sync::atomic::{AtomicU64, Ordering, fence};
    pub use std::sync::{Mutex, MutexGuard, PoisonError};
}
