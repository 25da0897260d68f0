//! An open WebSocket: reading, delivering, writing, closing, deadlines.

pub mod close;
pub mod messages;
pub mod read_control;
