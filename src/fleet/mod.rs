//! What both sides of fork share: the scoreboard, the counters, the control channels, the listening sockets, the
//! routes, and the title under which a process shows up. Holds no policy: the supervisor plans, the worker serves.

pub mod addresses;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod alone;
pub mod baton;
pub mod breakers;
pub mod bulletin;
pub mod bus_counters;
pub mod bus_wire;
pub mod cell;
pub mod control;
pub mod counters;
pub mod crash;
pub mod crash_report;
pub mod current_call;
pub mod datagram;
pub mod facts;
pub mod gateway_counters;
pub mod gateway_queue;
pub mod handler_counters;
pub mod handover;
pub mod inbox;
pub mod listener;
pub mod memory;
pub mod orphans;
pub mod peer;
pub mod proc;
pub mod process_title;
pub mod refusal;
pub mod region;
pub mod routes;
pub mod scoreboard;
pub mod shared;
pub mod socket_queue;
pub mod wipe;
