//! Compression on behalf of workers: once for all that want a message in the same form.
//!
//! Bounded, since it delays the messages of all pools. A worker compresses the messages that the bus does not.

use super::{Subscriber, Topic};
use crate::fleet::sockets::bus_wire::{Form, Publication};
use crate::proto::ws::deflate::codec::{Codecs, compress_alone};

/// Forms that a worker can request for a topic; others are ignored.
const MAX_FORMS: usize = 2;
/// Longest message to compress; bytes.
const MAX_SIZE: usize = 64 * 1024;
/// Highest level: no message takes much longer than a millisecond up to this one; some take 200 ms at level 9.
const MAX_LEVEL: u8 = 5;

impl Subscriber {
    /// Requests messages of `least` bytes and more in this form.
    pub(super) fn want(&mut self, form: Form, least: u32) {
        if let Some((_, known)) = self.forms.iter_mut().find(|(known, _)| *known == form) {
            *known = least.min(*known);
        } else if self.forms.len() < MAX_FORMS && form.1 <= MAX_LEVEL {
            self.forms.push((form, least));
        }
    }

    /// Whether it wants this message in this form.
    pub(super) fn wants(&self, form: Form, message: Publication<'_>) -> bool {
        self.forms.iter().any(|(known, least)| *known == form && message.payload.len() >= *least as usize)
    }
}

impl Topic {
    /// The message in each form that several workers want.
    pub(super) fn compress(&self, message: Publication<'_>, codecs: &mut Codecs) -> Vec<(Form, Vec<u8>)> {
        let mut compressed: Vec<(Form, Vec<u8>)> = Vec::new();
        if !message.compress || message.payload.len() > MAX_SIZE {
            return compressed;
        }
        for (index, one) in self.subscribers.iter().enumerate() {
            let others = self.subscribers.get(index + 1..).unwrap_or_default();
            for (form, _) in one.forms.iter().filter(|(form, _)| one.wants(*form, message)) {
                let is_new = compressed.iter().all(|(known, _)| known != form);
                if is_new && others.iter().any(|other| other.wants(*form, message)) {
                    let mut smaller = Vec::new();
                    compress_alone(codecs, *form, message.payload, &mut smaller);
                    compressed.push((*form, smaller));
                }
            }
        }
        compressed
    }
}
