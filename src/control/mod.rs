//! The server's side of the control socket (`wshd ctl`).

pub mod socket;
