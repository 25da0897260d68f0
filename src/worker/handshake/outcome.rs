//! Where a request goes that does not get to a handler here, and what it gets if it does not become a WebSocket.

use std::time::SystemTime;

use crate::auth::User;
use crate::http::{self, Body, Response};

/// Which other process is to answer a request.
pub enum Elsewhere {
    /// This pool serves its handler.
    Pool(usize),
    /// It is for a program.
    Program(Asked),
}

pub struct Asked {
    /// The authenticated user, if that was asked.
    pub user: Option<User>,
    /// Path and query without a token, if one may be there.
    pub resource: Option<String>,
}

/// Why a request does not get to its handler.
pub enum Unserved {
    Reply(Response),
    Answered,
    Waits,
    Elsewhere(Elsewhere),
}

impl From<Response> for Unserved {
    fn from(reply: Response) -> Self {
        Self::Reply(reply)
    }
}

/// 503, try again.
pub fn unavailable(why: &str) -> Response {
    http::error(503, why, &[("Retry-After", "1")])
}

/// 503 of a handler whose breaker is open.
pub fn quarantined(seconds: u64) -> Response {
    let why = "the handler of this resource has crashed too often and is not served for a while";
    http::error(503, why, &[("Retry-After", &seconds.to_string())])
}

/// A handler's rejection. Content-Type is that of the body given; without one the handler may have added its own
/// header.
pub fn rejection(
    status: u16,
    content_type: Option<&str>,
    body: Vec<u8>,
    headers: &[(String, String)],
) -> Response {
    let (content_type, body) = match content_type {
        Some(content_type) => (content_type, body),
        None => {
            let text = format!("{status} {}\n", http::reason_phrase(status));
            ("text/plain; charset=utf-8", text.into_bytes())
        }
    };
    let own = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let content_type = (!content_type.is_empty()).then_some(("Content-Type", content_type));
    let fields: Vec<(&str, &str)> = content_type.into_iter().chain(own).collect();
    Response::new(SystemTime::now(), status, &fields, Body::Bytes(body.into()))
}
