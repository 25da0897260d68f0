//! chat in Rust: a message in a room is sent to all its other members.
//!
//!     cargo build --release    (or see build.rs for the two calls of rustc)
//!     ws://127.0.0.1:8080/chat_rust?kitchen
#![crate_type = "cdylib"]

use ws_handler::{Current, Error, Handler, Message, Outcome, WS_NOT_SELF, close_code, publish_flags};

struct Member {
    room: String,
}

impl Handler for Member {
    fn on_open(conn: &Current) -> Outcome<Self> {
        let room = conn.query().and_then(|query| query.to_str().ok().map(str::to_owned));
        let room = room.filter(|room| !room.is_empty()).unwrap_or_else(|| "lobby".to_owned());
        conn.subscribe(&room, 0)?;
        Ok(Member { room })
    }

    fn on_message(&mut self, conn: &Current, msg: Message) -> Outcome {
        if publish_flags(&self.room, msg, WS_NOT_SELF) == Err(Error::Full) {
            conn.close(close_code::TRY_LATER, "too much is being said")?;
        }
        Ok(())
    }
}

ws_handler::export!(Member, name(c"chat_rust"));
