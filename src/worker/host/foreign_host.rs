//! The host of threads that handlers have created: calls tagged `[any thread]` become commands for the loop; others are
//! refused before they come here.

use std::ffi::c_void;
use std::ptr::null_mut;

use ::ws_handler::raw::*;

use crate::ffi::host::{ABSENT, Address, End, Fact, Host, Number, Payload, Reply, Task, User};
use crate::worker::commands::queue::{Command, CommandQueue};
use crate::worker::conn::handshake::Registry;

/// See the module.
pub struct ForeignThreadHost {
    /// Where commands go.
    pub commands: &'static CommandQueue,
    /// Handshakes that such threads may finish.
    pub handshakes: &'static Registry,
}

impl Host for ForeignThreadHost {
    fn reply(&self, handshake: u64, reply: Reply<'_>) -> i32 {
        let (result, has_verdict) = self.handshakes.reply(handshake, reply);
        if has_verdict {
            self.commands.give(Command::Verdict(handshake));
        }
        result
    }

    fn send(&self, conn: u64, kind: u32, payload: Payload<'_>, flags: u32) -> i32 {
        self.handshakes.result(conn, self.commands.send(conn, kind, payload, flags))
    }

    fn ping(&self, conn: u64, payload: &[u8]) -> i32 {
        self.handshakes.result(conn, self.commands.ping(conn, payload))
    }

    fn send_raw(&self, conn: u64, octets: &[u8]) -> i32 {
        match self.handshakes.get(conn) {
            Some(handshake) => handshake.add_octets(octets),
            None => self.commands.send_raw(conn, octets),
        }
    }

    fn attach_user(&self, handshake: u64, user: User) -> i32 {
        let mut replaced = None;
        // Dropped here, where nothing is locked.
        self.handshakes.carry(handshake, |carried| replaced = carried.user.replace(user))
    }

    fn attach_state(&self, handshake: u64, state: &[u8]) -> i32 {
        self.handshakes.carry(handshake, |carried| carried.state = Some(state.to_vec()))
    }

    fn buffered(&self, conn: u64) -> usize {
        self.commands.buffered(conn)
    }

    fn pause(&self, conn: u64, pause: bool) -> i32 {
        self.handshakes.result(conn, self.commands.pause(conn, pause))
    }

    fn post(&self, conn: u64, task: Task) -> i32 {
        self.handshakes.post(self.commands, conn, task)
    }

    fn close(&self, conn: u64, code: u32, reason: &[u8]) -> i32 {
        self.handshakes.result(conn, self.commands.close(conn, code, reason))
    }

    fn abort(&self, conn: u64) -> i32 {
        self.handshakes.result(conn, self.commands.abort(conn))
    }

    // What follows is allowed in callbacks only, and such a thread is in none.

    fn fact(&self, _: u64, _: Fact) -> ws_bytes {
        ABSENT
    }

    fn number(&self, _: u64, _: Number) -> u32 {
        0
    }

    fn header(&self, _: u64, _: &[u8]) -> ws_bytes {
        ABSENT
    }

    fn header_at(&self, _: u64, _: usize) -> Option<(ws_bytes, ws_bytes)> {
        None
    }

    fn address(&self, _: u64, _: End) -> Option<Address> {
        None
    }

    fn receive(&self, _: u64, _: i64) -> Result<ws_message, i32> {
        Err(WS_E_PLACE)
    }

    fn set_timer(&self, _: u64, _: u64, _: u64, _: Task) -> i64 {
        i64::from(WS_E_PLACE)
    }

    fn clear_timer(&self, _: u64, _: i64) -> i32 {
        WS_E_PLACE
    }

    fn set_user(&self, _: u64, _: User) -> i32 {
        WS_E_PLACE
    }

    fn user(&self, _: u64) -> *mut c_void {
        null_mut()
    }

    fn set_state(&self, _: u64, _: &[u8]) -> i32 {
        WS_E_PLACE
    }
}
