//! Leaf types of a worker: memory, counters, epoll, timers.

pub mod memory;
pub mod metrics;
pub mod poll;
pub mod timers;
