//! The interface to handlers, embedded in this executable for `wshd new` and `wshd run`.

/// The headers: name and text; that of C first.
pub const HEADERS: [(&str, &str); 2] = [
    ("ws_handler.h", include_str!("../../include/ws_handler.h")),
    ("ws_handler.hpp", include_str!("../../include/ws_handler.hpp")),
];

/// The files of the crate ws-handler: path and text. build.rs lists them.
pub const CRATE: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/ws_handler_crate.rs"));
