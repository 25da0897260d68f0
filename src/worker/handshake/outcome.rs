//! Where a request goes that does not get to a handler here.

use std::borrow::Cow;

use crate::auth::User;
use crate::http::Response;

/// A request that another process is to answer, with what was read of it from its first byte on.
pub enum Elsewhere<'a> {
    /// This pool serves its handler.
    Pool(usize, Cow<'a, [u8]>),
    /// It is for a program.
    Program(Asked, Cow<'a, [u8]>),
}

/// A request for a program.
pub struct Asked {
    /// The authenticated user, if that was asked.
    pub user: Option<User>,
    /// Path and query without a token, if one may be there.
    pub resource: Option<String>,
}

/// Why a request does not get to its handler.
pub enum Unserved {
    /// This is the answer.
    Reply(Response),
    /// It was answered.
    Answered,
    /// Its password is being compared.
    Waits,
    /// It is for a program.
    Program(Asked),
}

impl From<Response> for Unserved {
    fn from(reply: Response) -> Self {
        Self::Reply(reply)
    }
}
