//! Close frames: which status codes may travel and what a body may be
//! (RFC 6455 5.5.1, 7.4). No state: who closes and when is `connection`'s.

use crate::proto::ws::utf8;

/// An endpoint goes away: a server going down, a limit on idleness (RFC 6455 7.4.1, as all of these).
pub const GOING_AWAY: u16 = 1001;
/// The peer broke the protocol.
pub const PROTOCOL_ERROR: u16 = 1002;
/// Reported, never sent: the Close frame had no code.
pub const NO_CODE: u16 = 1005;
/// Octets that do not fit the message's type: not UTF-8, or not deflate data.
pub const INVALID_DATA: u16 = 1007;
/// The peer broke a rule of ours.
pub const POLICY: u16 = 1008;
/// A message or frame over the limit.
pub const TOO_BIG: u16 = 1009;

/// The longest reason: a control frame has at most 125 octets (RFC 6455 5.5), two are the code's.
pub const MAX_REASON: usize = 123;

/// Whether a code may stand in a Close frame, in either direction.
///
/// RFC 6455 7.4: 0-999 are unused; 1004 is reserved; 1005, 1006 and 1015 never travel; 1012 to 1014 were
/// registered later (IANA), 1016-2999 are not defined; 3000-4999 are for frameworks and applications.
pub fn may_travel(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// What the peer did wrong: the code to fail the connection with (RFC 6455 7.1.7), and a text for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// 1002, 1007, 1008 or 1009.
    pub code: u16,
    /// What was wrong.
    pub why: &'static str,
}

impl Violation {
    /// 1002.
    pub fn of_protocol(why: &'static str) -> Self {
        Violation { code: PROTOCOL_ERROR, why }
    }
}

/// The code of a Close frame's body: 1005 for an empty one. What follows the first two octets is the
/// reason, checked to be UTF-8.
pub fn parse(body: &[u8]) -> Result<u16, Violation> {
    match *body {
        [] => Ok(NO_CODE),
        // RFC 6455 5.5.1: if there is a body, the first two octets are the code.
        [_] => Err(Violation::of_protocol("Close body of one octet")),
        [high, low, ref reason @ ..] => {
            let code = u16::from_be_bytes([high, low]);
            if !may_travel(code) {
                return Err(Violation::of_protocol("Close code that must not be sent"));
            }
            if !utf8::is_valid(reason) {
                return Err(Violation { code: INVALID_DATA, why: "Close reason is not UTF-8" });
            }
            Ok(code)
        }
    }
}

/// Checks what a handler gave to close with: the code for the frame (`None`: an
/// empty one), if code and reason may be sent.
pub fn checked(code: u32, reason: &[u8]) -> Option<Option<u16>> {
    let code = u16::try_from(code).ok()?;
    if code == 1005 {
        return reason.is_empty().then_some(None);
    }
    let valid = may_travel(code) && reason.len() <= MAX_REASON && str::from_utf8(reason).is_ok();
    valid.then_some(Some(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        // The ranges of RFC 6455 7.4.2 and the registry it founds (11.7), written out.
        let defined = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014];
        for code in 0..=u16::MAX {
            let expected = defined.contains(&code) || (3000..5000).contains(&code);
            assert_eq!(may_travel(code), expected, "{code}");
        }
    }

    #[test]
    fn bodies() {
        assert_eq!(parse(b""), Ok(1005));
        assert_eq!(parse(b"\x03\xe8"), Ok(1000));
        assert_eq!(parse(b"\x0f\xa0bye"), Ok(4000));
        assert_eq!(parse(b"\x03").map_err(|bad| bad.code), Err(1002));
        assert_eq!(parse(b"\x03\xed").map_err(|bad| bad.code), Err(1002));
        assert_eq!(parse(b"\x03\xe8\xff").map_err(|bad| bad.code), Err(1007));
        assert_eq!(parse(b"\x03\xe8\xe2\x82").map_err(|bad| bad.code), Err(1007));
    }
}
