//! `wshd ctl publish`: a message from standard input, as a request carries it.

use std::fmt;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The longest message that can be published so; bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// A message: in base64 in a request.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Payload(Vec<u8>);

impl Payload {
    /// All that there is to read.
    pub fn read(from: impl Read) -> Result<Self, String> {
        let mut bytes = Vec::new();
        let read = from.take(MAX_MESSAGE as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| format!("standard input: {error}"))?;
        Self::of(bytes).map_err(|why| format!("standard input: {why}"))
    }

    /// Its bytes, [`MAX_MESSAGE`] at most.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn of(bytes: Vec<u8>) -> Result<Self, String> {
        match bytes.len() {
            0..=MAX_MESSAGE => Ok(Payload(bytes)),
            _ => Err(format!("expected a message of at most {MAX_MESSAGE} bytes")),
        }
    }
}

impl TryFrom<String> for Payload {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::of(STANDARD.decode(text).map_err(|_| "expected data in base64".to_owned())?)
    }
}

impl From<Payload> for String {
    fn from(payload: Payload) -> String {
        STANDARD.encode(payload.0)
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_a_bound_and_travels_as_base64() {
        let payload = Payload::read(&b"\0\xff"[..]).unwrap();
        assert_eq!(serde_json::to_string(&payload).unwrap(), "\"AP8=\"");
        assert_eq!(serde_json::from_str::<Payload>("\"AP8=\"").unwrap(), payload);
        assert!(serde_json::from_str::<Payload>("\"?\"").is_err());
        assert!(Payload::read(std::io::repeat(0).take(MAX_MESSAGE as u64)).is_ok());
        assert!(Payload::read(std::io::repeat(0)).unwrap_err().contains("65536 bytes"));
    }
}
