//! Shared memory: what processes read and write of each other without a system call. [`region`] maps it, [`layout`]
//! says who may do what with which part, [`shared`] is all of it; the other files are its tables.

pub(crate) mod addresses;
pub(crate) mod breakers;
pub(crate) mod bulletin;
pub(crate) mod cell;
pub(crate) mod counters;
pub(crate) mod crash;
pub(crate) mod crash_report;
pub(crate) mod current_call;
pub(crate) mod layout;
pub(crate) mod region;
pub(crate) mod scoreboard;
pub(crate) mod shared;

pub use scoreboard::Place;
