//! Shared memory: what processes read and write of each other without a system call. [`region`] maps it, [`layout`]
//! says who may do what with which part, [`shared`] is all of it; the other files are its tables.

pub mod addresses;
pub mod breakers;
pub mod bulletin;
pub mod cell;
pub mod counters;
pub mod crash;
pub mod crash_report;
pub mod current_call;
pub mod layout;
pub mod region;
pub mod scoreboard;
pub mod shared;
