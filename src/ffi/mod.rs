//! The one room for plugin FFI: the calls that a plugin makes ([`host`]) and from where ([`place`]), loading one ([`plugin`]) and calling it
//! ([`call`]). The mirror of the header is [`ws_handler::raw`]. Knows no log: who loads a plugin says where its lines go.

pub mod call;
mod decode;
pub mod guarded;
pub mod host;
pub mod place;
pub mod plugin;
mod request;
pub mod stand_in;
pub mod strict;
mod table;
pub mod topics;

pub use ws_handler::raw;

/// The name of a callback by its number in the scoreboard, for the log.
pub fn callback_name(number: u32) -> &'static str {
    place::Callback::from_number(number).name()
}

/// Whether a callback of this number is part of the start of a worker.
pub fn is_start(number: u32) -> bool {
    matches!(place::Callback::from_number(number), place::Callback::Load | place::Callback::WorkerStart)
}
