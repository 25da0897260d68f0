//! What the supervisor decides, as functions of state, event and time. No system call, no clock, no I/O: a test
//! enforces it (`tests/rooms.rs`). The supervisor's loop carries the decisions out.

pub mod backoff;
pub mod drain;
pub mod liveness;
pub mod pools;
pub mod quarantine;
pub mod rebalance;
pub mod rolling_restart;
pub mod slots;
pub mod upgrade;
