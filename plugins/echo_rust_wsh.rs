//! echo in Rust, with the crate ws-handler: each connection has a value of its own.
//!
//!     cargo build --release    (or see build.rs for the two calls of rustc)
//!     ws://127.0.0.1:8080/echo_rust
#![crate_type = "cdylib"]

use ws_handler::{By, Current, Error, Handler, Level, Message, Outcome, close_code};

#[derive(Default)]
struct Echo {
    echoed: u64,
}

impl Handler for Echo {
    fn on_open(_conn: &Current) -> Outcome<Self> {
        Ok(Echo::default())
    }

    fn on_message(&mut self, conn: &Current, msg: Message) -> Outcome {
        self.echoed += 1;
        if conn.send(msg) == Err(Error::Full) {
            conn.close(close_code::TRY_LATER, "you do not read")?;
        } else if msg.text() == Some("Goodbye") {
            conn.close(close_code::NORMAL, "")?;
        }
        Ok(())
    }

    fn on_close(self, conn: &Current, _by: By, _code: u32) {
        conn.log(Level::Debug, format_args!("echoed {} messages", self.echoed));
    }
}

ws_handler::export!(Echo, name(c"echo_rust"), protocols(c"echo"));
