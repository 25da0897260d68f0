//! The request of a WebSocket, as handlers may ask about it.

use std::borrow::Cow;
use std::sync::OnceLock;

use crate::auth::{Policy, User};
use crate::proto::http1::head::{Head, TerminatedHead};
use crate::proto::ws::handshake::Opening;
use crate::worker::conn::record::Strings;

/// A request for a WebSocket that breaks no rule. Kept for the connection's
/// whole life only if the handler asks for it.
pub struct Request {
    pub head: Head,
    pub opening: Opening,
    /// Made when a handler asks for one of its parts.
    terminated: OnceLock<TerminatedHead>,
    /// Each followed by a NUL, as those below; no subprotocol.
    strings: Strings<Vec<u8>>,
    protocols: Option<Vec<u8>>,
    extensions: Option<Vec<u8>>,
}

impl Request {
    /// Prepares what handlers may ask for, without a token that the policy has found in it.
    pub fn new(head: Head, mut opening: Opening, user: Option<User>, policy: Option<&Policy>) -> Self {
        let terminated = |text: &[u8]| [text, b"\0"].concat();
        let joined = |name: &str| {
            let values: Vec<&[u8]> = head.header_all(name).collect();
            (!values.is_empty()).then(|| terminated(&values.join(&b", "[..])))
        };
        let offered = opening.protocols.len();
        opening.protocols.retain(|name| !policy.is_some_and(|policy| policy.is_token(name)));
        let protocols = match opening.protocols.len() {
            same if same == offered => joined("Sec-WebSocket-Protocol"),
            0 => None,
            _ => Some(terminated(opening.protocols.join(", ").as_bytes())),
        };
        let resource = policy.map_or(Cow::Borrowed(head.resource()), |policy| policy.resource(&head));
        Request {
            strings: Strings {
                resource: terminated(resource.as_bytes()),
                origin: head.header("Origin").map(terminated),
                user: user.map(|user| terminated(user.name().as_bytes())),
                protocol: None,
            },
            protocols,
            extensions: joined("Sec-WebSocket-Extensions"),
            terminated: OnceLock::new(),
            head,
            opening,
        }
    }

    /// Resource, origin and user; no subprotocol.
    pub fn strings(&self) -> Strings<&[u8]> {
        self.terminated_strings().map(|text| text.strip_suffix(b"\0").unwrap_or(text))
    }

    /// The same, each with the NUL behind it.
    pub fn terminated_strings(&self) -> Strings<&[u8]> {
        self.strings.as_slices()
    }

    /// The subprotocols offered, joined with ", ", and a NUL.
    pub fn protocols(&self) -> Option<&[u8]> {
        self.protocols.as_deref()
    }

    /// The extensions offered, joined with ", ", and a NUL.
    pub fn extensions(&self) -> Option<&[u8]> {
        self.extensions.as_deref()
    }

    pub fn terminated(&self) -> &TerminatedHead {
        self.terminated.get_or_init(|| self.head.terminated())
    }
}
