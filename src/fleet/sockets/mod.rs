//! Sockets on which processes reach each other, and those on which they listen for clients: descriptors and the form of
//! what goes over them.

pub mod bus_wire;
pub mod control;
pub mod datagram;
pub mod facts;
pub mod gateway_queue;
pub mod handover;
pub mod inbox;
pub mod listener;
pub mod queue;
