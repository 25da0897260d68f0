//! The one room for plugin FFI: loading a plugin ([`plugin`]), calling it ([`call`]), the functions that it calls
//! ([`host`]) and from where it may ([`place`]). The mirror of the header is [`ws_handler::raw`]. The caller of `load`
//! says where a plugin's log lines go.

pub mod call;
mod decode;
pub mod guarded;
pub mod host;
pub mod place;
pub mod plugin;
pub mod request;
pub mod stand_in;
pub mod strict;
mod table;
pub mod topics;

pub use ws_handler::raw;

/// The name, for logs, of the callback with this number in the scoreboard.
pub fn callback_name(number: u32) -> &'static str {
    place::Callback::from_number(number).name()
}

/// Whether the callback with this number runs while a worker starts.
pub fn is_start(number: u32) -> bool {
    matches!(place::Callback::from_number(number), place::Callback::Load | place::Callback::WorkerStart)
}
