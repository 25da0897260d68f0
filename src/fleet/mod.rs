//! What both sides of fork share: the scoreboard, the counters, the control channels, the listening sockets, the
//! routes, and the title under which a process shows up. Holds no policy: the supervisor plans, the worker serves.

pub mod addresses;
pub mod control;
pub mod counters;
pub mod datagram;
pub mod doing;
pub mod evidence;
pub mod gates;
pub mod inbox;
pub mod listener;
pub mod memory;
pub mod peer;
pub mod routes;
pub mod scoreboard;
pub mod tally;
pub mod title;
