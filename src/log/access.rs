//! Optional fields of the access log.

use strum::{EnumString, IntoStaticStr, VariantNames};

/// An optional field. As a string: its name in the configuration and in log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
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
