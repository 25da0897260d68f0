//! The one room for plugin FFI: the calls that a plugin makes ([`host`]), and
//! loading one ([`plugin`], [`probe`]). The mirror of the header is
//! [`ws_handler::raw`]. Imports nothing else of this crate.

pub mod call;
pub mod host;
pub mod plugin;
pub mod probe;
mod table;

pub use ws_handler::raw;
