//! Fields of the access log beyond those that each line has.

/// A field that can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessField {
    /// The method of the request.
    Method,
    /// The host that it was for.
    Host,
    /// The origin that it came from.
    Origin,
    /// The program that sent it.
    UserAgent,
    /// The name of the handler.
    Handler,
    /// Bytes of content in the answer.
    ReplyBytes,
}

impl AccessField {
    /// All of them.
    pub const ALL: [AccessField; 6] = [
        AccessField::Method,
        AccessField::Host,
        AccessField::Origin,
        AccessField::UserAgent,
        AccessField::Handler,
        AccessField::ReplyBytes,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            AccessField::Method => "method",
            AccessField::Host => "host",
            AccessField::Origin => "origin",
            AccessField::UserAgent => "user_agent",
            AccessField::Handler => "handler",
            AccessField::ReplyBytes => "reply_bytes",
        }
    }

    /// The header field of a request that has it, if one has.
    pub fn header(self) -> Option<&'static str> {
        match self {
            AccessField::Host => Some("Host"),
            AccessField::Origin => Some("Origin"),
            AccessField::UserAgent => Some("User-Agent"),
            AccessField::Method | AccessField::Handler | AccessField::ReplyBytes => None,
        }
    }
}
