//! Leaf types of a worker: memory, counters, epoll, timers, time.

pub mod complaints;
pub mod descriptors;
pub mod heap;
pub mod lifecycle;
pub mod memory;
pub mod metrics;
pub mod poll;
pub mod presence;
pub mod progress;
pub mod timers;
pub mod watch_set;
