//! permessage-deflate (RFC 7692): [`negotiate`] agrees on parameters (5, 7.1), [`codec`] compresses and inflates
//! messages (7.2).

pub mod codec;
pub mod negotiate;
