//! Topics: messages for all connections that are subscribed.

use crate::bytes::Message;
use crate::conn::Conn;
use crate::error::{Result, check};
use crate::host::{given, host};

impl Conn {
    /// Subscribes the connection to a topic: it gets what is published after this
    /// call. `flags`: 0, or [`crate::WS_DROP`] to have messages dropped, and counted
    /// by [`Conn::missed`], when the connection does not keep up, instead of
    /// being closed with 1013.
    ///
    /// # Errors
    /// `Invalid`: not a name of a topic. `Limit`: too many topics. `Gone`: the
    /// connection is not open yet, closing or gone.
    pub fn subscribe(self, topic: &str, flags: u32) -> Result {
        // SAFETY: the name is valid for the call.
        check(unsafe { (host().subscribe)(self.0, topic.as_ptr().cast(), topic.len(), flags) })
    }

    /// Ends a subscription, as the end of the connection does.
    ///
    /// # Errors
    /// `Invalid`: there is none. `Gone`.
    pub fn unsubscribe(self, topic: &str) -> Result {
        // SAFETY: the name is valid for the call.
        check(unsafe { (host().unsubscribe)(self.0, topic.as_ptr().cast(), topic.len()) })
    }

    /// How many messages of its topics the connection has missed since the last
    /// call.
    pub fn missed(self) -> u64 {
        // SAFETY: takes a number.
        unsafe { (host().missed)(self.0) }
    }
}

/// Sends a message to all subscribers of a topic, on any thread.
///
/// # Errors
/// As of [`publish_flags`].
pub fn publish<'m>(topic: &str, message: impl Into<Message<'m>>) -> Result {
    publish_flags(topic, message, 0)
}

/// The same with flags: [`crate::WS_NOT_SELF`], [`crate::WS_UNCOMPRESSED`].
///
/// # Errors
/// `Full`: too much is on its way; nothing was published. `Invalid`: not a name
/// of a topic, or unknown flags. `Limit`: more than
/// [`WS_PUBLISH_MAX`](crate::raw::WS_PUBLISH_MAX) bytes. `Place`: the worker does
/// not serve yet.
pub fn publish_flags<'m>(topic: &str, message: impl Into<Message<'m>>, flags: u32) -> Result {
    let message = message.into();
    let (kind, data) = (message.kind.raw(), message.data);
    // SAFETY: name and data are valid for the call, in which the host copies them.
    check(unsafe {
        (host().publish)(
            given(),
            topic.as_ptr().cast(),
            topic.len(),
            kind,
            data.as_ptr().cast(),
            data.len(),
            flags,
        )
    })
}

/// How many connections are subscribed to a topic: in this worker, and in others
/// as far as it has heard while it has subscribers itself.
pub fn subscribers(topic: &str) -> u64 {
    // SAFETY: the name is valid for the call.
    unsafe { (host().subscribers)(given(), topic.as_ptr().cast(), topic.len()) }
}
