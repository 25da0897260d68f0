//! The protocol by itself, as the fuzz targets see it. It needs nothing else of the server: no I/O and no clock.
#![allow(dead_code)] // the server uses it

#[path = "../../src/proto/mod.rs"]
pub mod proto;
#[path = "../../src/time.rs"]
pub mod time;
