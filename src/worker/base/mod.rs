//! Leaf types of a worker: epoll, timers.

pub mod metrics;
pub mod poll;
pub mod timers;
