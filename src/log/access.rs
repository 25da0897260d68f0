//! Optional fields of the access log.

/// An optional field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessField {
    /// Request method.
    Method,
    /// `Host` of the request.
    Host,
    /// `Origin` of the request.
    Origin,
    /// `User-Agent` of the request.
    UserAgent,
    /// Name of the handler.
    Handler,
    /// Bytes of content in the response.
    ReplyBytes,
}

impl AccessField {
    /// All fields.
    pub const ALL: [AccessField; 6] = [
        AccessField::Method,
        AccessField::Host,
        AccessField::Origin,
        AccessField::UserAgent,
        AccessField::Handler,
        AccessField::ReplyBytes,
    ];

    /// Its name in the configuration and in log lines.
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

    /// The request header field with its value, if there is one.
    pub fn header(self) -> Option<&'static str> {
        match self {
            AccessField::Host => Some("Host"),
            AccessField::Origin => Some("Origin"),
            AccessField::UserAgent => Some("User-Agent"),
            AccessField::Method | AccessField::Handler | AccessField::ReplyBytes => None,
        }
    }
}
