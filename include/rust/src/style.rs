//! The two styles: what a handler implements.

use std::time::Duration;

use crate::bytes::{Bytes, Message};
use crate::conn::{Blocking, Current};
use crate::error::Outcome;
use crate::handshake::{Handshake, Reply};
use crate::raw;

/// Which side ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum By {
    /// The peer sent the first Close frame, or just vanished.
    Peer,
    /// `close()`, `abort()`, or the end of `transfer_data`.
    Handler,
    /// The server: a breach of the protocol, a limit, a shutdown.
    Host,
    /// It has not ended: it moves to another process.
    Move,
}

impl By {
    /// That of a `WS_BY_` value; one of a newer host is the host's.
    pub(crate) fn from_raw(by: u32) -> By {
        match by {
            raw::WS_BY_PEER => By::Peer,
            raw::WS_BY_HANDLER => By::Handler,
            raw::WS_BY_MOVE => By::Move,
            _ => By::Host,
        }
    }
}

/// A handler in the event style: callbacks on the worker's event loop, which
/// must not wait. Each connection has a value of the type, from `on_open` until
/// after `on_close`.
pub trait Handler: Sized + 'static {
    /// The connection is open, or has moved here from another process: see
    /// [`Current::is_resumed`].
    ///
    /// # Errors
    /// Any: the connection is closed with 1011.
    fn on_open(conn: &Current) -> Outcome<Self>;

    /// A message (with `WS_STREAM`: a fragment) has arrived.
    ///
    /// # Errors
    /// Any: the connection is closed with 1011.
    fn on_message(&mut self, conn: &Current, msg: Message) -> Outcome;

    /// A worker starts; no connection exists.
    ///
    /// # Errors
    /// Any: takes the handler out of service in this worker.
    fn on_worker_start() -> Outcome {
        Ok(())
    }

    /// A worker stops; no connection exists.
    fn on_worker_stop() {}

    /// The opening handshake, before any reply (RFC 6455, 4.2).
    ///
    /// # Errors
    /// Any: 500.
    fn do_extra_handshake(_conn: &Current, _handshake: &Handshake) -> Outcome<Reply> {
        Ok(Reply::ACCEPT)
    }

    /// The peer has sent the first Close frame (RFC 6455, 7.1.3); `conn.close()` chooses the
    /// answer, by default the same code without a reason.
    ///
    /// # Errors
    /// Any: 1011 is answered.
    fn passive_closing_handshake(&mut self, _conn: &Current) -> Outcome {
        Ok(())
    }

    /// The connection has ended, or ([`By::Move`]) moves to another process.
    fn on_close(self, _conn: &Current, _by: By, _code: u32) {}

    /// A Pong (RFC 6455, 5.5.3) to an earlier `ping()` has arrived, after `rtt`.
    ///
    /// # Errors
    /// Any: the connection is closed with 1011.
    fn on_pong(&mut self, _conn: &Current, _data: Bytes, _rtt: Duration) -> Outcome {
        Ok(())
    }

    /// After [`crate::Error::Full`] the send queue has drained.
    ///
    /// # Errors
    /// Any: the connection is closed with 1011.
    fn on_writable(&mut self, _conn: &Current) -> Outcome {
        Ok(())
    }

    /// The server wants this connection to end soon.
    ///
    /// # Errors
    /// Any: the connection is closed with 1011.
    fn on_drain(&mut self, _conn: &Current) -> Outcome {
        Ok(())
    }
}

/// A handler in the blocking style: each connection has a thread, on which
/// [`Blocking::receive`] waits. Callbacks that come meanwhile run inside it,
/// hence `&self` everywhere.
///
/// ```
/// use ws_handler::{Blocking, BlockingHandler, Current, Outcome};
///
/// struct Echo;
///
/// impl BlockingHandler for Echo {
///     fn on_open(_conn: &Current) -> Outcome<Self> {
///         Ok(Echo)
///     }
///
///     fn transfer_data(&self, conn: &mut Blocking) -> Outcome {
///         let peer = conn.conn();
///         while let Some(msg) = conn.receive()? {
///             peer.send(msg)?;
///         }
///         Ok(())
///     }
/// }
///
/// ws_handler::export!(blocking Echo, name(c"echo"));
/// ```
pub trait BlockingHandler: Sized + 'static {
    /// As of [`Handler::on_open`].
    ///
    /// # Errors
    /// Any: the connection is closed with 1011.
    fn on_open(conn: &Current) -> Outcome<Self>;

    /// The life of the connection. It is closed with 1000 when this returns.
    ///
    /// # Errors
    /// Any: it is closed with 1011 instead. `Draining` and `Gone`, as they come
    /// from [`Blocking::receive`], count as a normal end.
    fn transfer_data(&self, conn: &mut Blocking) -> Outcome;

    /// As of [`Handler::on_worker_start`].
    ///
    /// # Errors
    /// Any: takes the handler out of service in this worker.
    fn on_worker_start() -> Outcome {
        Ok(())
    }

    /// As of [`Handler::on_worker_stop`].
    fn on_worker_stop() {}

    /// As of [`Handler::do_extra_handshake`]; may wait.
    ///
    /// # Errors
    /// Any: 500.
    fn do_extra_handshake(_conn: &Current, _handshake: &Handshake) -> Outcome<Reply> {
        Ok(Reply::ACCEPT)
    }

    /// As of [`Handler::passive_closing_handshake`].
    ///
    /// # Errors
    /// Any: 1011 is answered.
    fn passive_closing_handshake(&self, _conn: &Current) -> Outcome {
        Ok(())
    }

    /// As of [`Handler::on_close`].
    fn on_close(self, _conn: &Current, _by: By, _code: u32) {}

    /// As of [`Handler::on_pong`].
    ///
    /// # Errors
    /// Any: the connection is closed with 1011.
    fn on_pong(&self, _conn: &Current, _data: Bytes, _rtt: Duration) -> Outcome {
        Ok(())
    }
}
