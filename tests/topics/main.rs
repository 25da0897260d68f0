//! Topics: a message that is published reaches every subscriber, in every worker and pool, once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/client.rs"]
mod client;
#[path = "../common/server.rs"]
mod daemon;
#[path = "../common/fixtures.rs"]
mod fixtures;

mod moves;
mod operators;
mod workers;
