//! Leaf types of a worker: epoll, timers.

pub mod poll;
pub mod timers;
