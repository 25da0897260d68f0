//! Negotiation of permessage-deflate (RFC 7692 sections 5 and 7.1).
//!
//! Decides what both sides agree on; compresses nothing, see `codec`.

use std::collections::BTreeSet;

use crate::proto::ws::extension::Offer;

const NAME: &str = "permessage-deflate";
/// What a client of ours offers, as browsers do.
pub const OFFER: &str = "permessage-deflate; client_max_window_bits";
const SERVER_NO_CONTEXT_TAKEOVER: &str = "server_no_context_takeover";
const CLIENT_NO_CONTEXT_TAKEOVER: &str = "client_no_context_takeover";
const SERVER_MAX_WINDOW_BITS: &str = "server_max_window_bits";
const CLIENT_MAX_WINDOW_BITS: &str = "client_max_window_bits";
const PARAMETERS: [&str; 4] =
    [SERVER_NO_CONTEXT_TAKEOVER, CLIENT_NO_CONTEXT_TAKEOVER, SERVER_MAX_WINDOW_BITS, CLIENT_MAX_WINDOW_BITS];

/// What the server is willing to agree on, and how it compresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether permessage-deflate is negotiated at all.
    pub enabled: bool,
    /// The largest window used for sending, 9 to 15 (base-2 logarithm of bytes).
    pub server_max_window_bits: u8,
    /// The largest window asked of clients that let themselves be asked, 9 to 15.
    pub client_max_window_bits: u8,
    /// Compress each message on its own even where the client does not ask for it.
    pub server_no_context_takeover: bool,
    /// Have the client compress each message on its own, so that no inflater is kept for it.
    pub client_no_context_takeover: bool,
    /// Shorter messages are sent uncompressed; bytes.
    pub threshold: u32,
    /// 1 (fast) to 9 (small).
    pub level: u8,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            enabled: true,
            server_max_window_bits: 15,
            client_max_window_bits: 15,
            server_no_context_takeover: false,
            client_no_context_takeover: true,
            threshold: 64,
            level: 1,
        }
    }
}

/// What was agreed on: the parameters of the response. Four bytes, so that it travels in a connection's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Window bits, 9 to 15; 0 where the response does not name them, which means 15.
    server_bits: u8,
    /// Window bits, 8 to 15; 0 where the response does not name them, which means 15.
    client_bits: u8,
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
}

impl Params {
    /// The window of the messages we send, 9 to 15, if the response names it.
    pub fn server_max_window_bits(self) -> Option<u8> {
        (self.server_bits != 0).then_some(self.server_bits)
    }

    /// Whether each message we send is compressed on its own.
    pub fn server_no_context_takeover(self) -> bool {
        self.server_no_context_takeover
    }

    /// Whether each message we receive was compressed on its own.
    pub fn client_no_context_takeover(self) -> bool {
        self.client_no_context_takeover
    }

    /// The value of Sec-WebSocket-Extensions in the response.
    pub fn header_value(self) -> String {
        let mut value = String::from(NAME);
        for (set, key) in [
            (self.server_no_context_takeover, SERVER_NO_CONTEXT_TAKEOVER),
            (self.client_no_context_takeover, CLIENT_NO_CONTEXT_TAKEOVER),
        ] {
            if set {
                value.push_str("; ");
                value.push_str(key);
            }
        }
        for (bits, key) in
            [(self.server_bits, SERVER_MAX_WINDOW_BITS), (self.client_bits, CLIENT_MAX_WINDOW_BITS)]
        {
            if bits != 0 {
                value.push_str(&format!("; {key}={bits}"));
            }
        }
        value
    }

    /// The same as a number, never 0, to be read by [`Params::from_bits`] in another process or version.
    pub fn to_bits(self) -> u32 {
        u32::from_be_bytes([
            1,
            u8::from(self.server_no_context_takeover) | u8::from(self.client_no_context_takeover) << 1,
            self.client_bits,
            self.server_bits,
        ])
    }

    /// `None` for a number that [`Params::to_bits`] cannot have returned.
    pub fn from_bits(bits: u32) -> Option<Params> {
        let [mark, takeover, client_bits, server_bits] = bits.to_be_bytes();
        let valid = mark == 1
            && takeover < 4
            && matches!(client_bits, 0 | 8..=15)
            && matches!(server_bits, 0 | 9..=15);
        valid.then_some(Params {
            server_bits,
            client_bits,
            server_no_context_takeover: takeover & 1 != 0,
            client_no_context_takeover: takeover & 2 != 0,
        })
    }
}

/// The first acceptable offer in the client's order of preference (RFC 7692 section 5); `None` declines all.
pub fn negotiate(offers: &[Offer], config: &Config) -> Option<Params> {
    if !config.enabled {
        return None;
    }
    offers.iter().filter(|offer| offer.name == NAME).find_map(|offer| accept(offer, config))
}

/// RFC 7692 section 7.1: declines an offer with an unknown, repeated or invalid parameter.
fn accept(offer: &Offer, config: &Config) -> Option<Params> {
    let asked = parameters(offer)?;
    let server_asks = switch(asked(SERVER_NO_CONTEXT_TAKEOVER))?;
    let client_hints = switch(asked(CLIENT_NO_CONTEXT_TAKEOVER))?;

    // 7.1.2.1: needs a value; the response must name the same or a smaller one. Deflate of a 256 byte window is
    // not to be had from zlib, which silently takes 512, so 8 is declined.
    let server_limit = config.server_max_window_bits.clamp(9, 15);
    let server_bits = match asked(SERVER_MAX_WINDOW_BITS) {
        Some(value) => match window_bits(value?)? {
            8 => return None,
            bits => bits.min(server_limit),
        },
        None if server_limit < 15 => server_limit,
        None => 0,
    };

    // 7.1.2.2: only a client that names it may be limited; the value is a hint of what it will use anyway.
    let client_limit = config.client_max_window_bits.clamp(9, 15);
    let client_bits = match asked(CLIENT_MAX_WINDOW_BITS) {
        Some(value) => {
            let hint = value.map_or(Some(15), window_bits)?;
            let bits = hint.min(client_limit);
            if bits < 15 { bits } else { 0 }
        }
        None => 0,
    };

    Some(Params {
        server_bits,
        client_bits,
        server_no_context_takeover: server_asks || config.server_no_context_takeover,
        client_no_context_takeover: client_hints || config.client_no_context_takeover,
    })
}

/// For a client that has offered [`OFFER`]: what the server's response agrees on, with the sides exchanged, so that
/// "server" is who sends in `codec`. `None` for a response that must fail the connection.
pub fn answered(response: &[Offer]) -> Option<Params> {
    let [answer] = response else { return None };
    let asked = parameters(answer).filter(|_| answer.name == NAME)?;
    let bits = |name| asked(name).map_or(Some(0), |value| window_bits(value?));
    Some(Params {
        // A window of 256 bytes is not to be had from zlib: as in `accept`.
        server_bits: bits(CLIENT_MAX_WINDOW_BITS).filter(|bits| *bits != 8)?,
        client_bits: bits(SERVER_MAX_WINDOW_BITS)?,
        server_no_context_takeover: switch(asked(CLIENT_NO_CONTEXT_TAKEOVER))?,
        client_no_context_takeover: switch(asked(SERVER_NO_CONTEXT_TAKEOVER))?,
    })
}

/// The parameters by name: absent, or present with or without a value. `None` if one is unknown or repeated.
fn parameters<'a>(offer: &'a Offer) -> Option<impl Fn(&'static str) -> Option<Option<&'a str>>> {
    let names = offer.params.iter().map(|(name, _)| name.as_str());
    let is_known = |name: &str| PARAMETERS.contains(&name);
    if !names.clone().all(is_known) || names.clone().collect::<BTreeSet<_>>().len() < offer.params.len() {
        return None;
    }
    Some(move |name| offer.params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_deref()))
}

/// 7.1.1: a parameter that is present or not, and has no value.
fn switch(param: Option<Option<&str>>) -> Option<bool> {
    match param {
        None => Some(false),
        Some(None) => Some(true),
        Some(Some(_)) => None,
    }
}

/// 7.1.2: a decimal integer from 8 to 15 without leading zeros.
fn window_bits(value: &str) -> Option<u8> {
    (8..=15).find(|bits: &u8| bits.to_string() == value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::proto::ws::extension;

    fn answer_with(offers: &str, config: &Config) -> Option<String> {
        let offers = extension::parse([offers.as_bytes()].into_iter()).unwrap();
        let params = negotiate(&offers, config)?;
        assert_eq!(Params::from_bits(params.to_bits()), Some(params));
        Some(params.header_value())
    }

    fn answer(offers: &str) -> Option<String> {
        answer_with(offers, &Config { client_no_context_takeover: false, ..Config::default() })
    }

    #[test]
    fn defaults() {
        assert_eq!(
            answer_with("permessage-deflate; client_max_window_bits", &Config::default()).as_deref(),
            Some("permessage-deflate; client_no_context_takeover")
        );
        assert_eq!(answer_with("permessage-deflate", &Config { enabled: false, ..Config::default() }), None);
        assert_eq!(answer(""), None);
        assert_eq!(answer("x-webkit-deflate-frame, permessage-bzip2"), None);
    }

    #[test]
    fn the_configuration_limits_windows() {
        let config = Config {
            server_max_window_bits: 11,
            client_max_window_bits: 12,
            client_no_context_takeover: false,
            ..Config::default()
        };
        for (offer, expected) in [
            // 7.1.2.1: the server may name its own limit unasked; 7.1.2.2: but not the client's.
            ("permessage-deflate", "permessage-deflate; server_max_window_bits=11"),
            (
                "permessage-deflate; client_max_window_bits; server_max_window_bits=15",
                "permessage-deflate; server_max_window_bits=11; client_max_window_bits=12",
            ),
            (
                "permessage-deflate; client_max_window_bits=10; server_max_window_bits=9",
                "permessage-deflate; server_max_window_bits=9; client_max_window_bits=10",
            ),
        ] {
            assert_eq!(answer_with(offer, &config).as_deref(), Some(expected), "{offer}");
        }
        let alone = Config { server_no_context_takeover: true, ..Config::default() };
        assert_eq!(
            answer_with("permessage-deflate", &alone).as_deref(),
            Some("permessage-deflate; server_no_context_takeover; client_no_context_takeover")
        );
    }

    #[test]
    fn a_client_takes_the_other_side_and_refuses_what_it_did_not_offer() {
        let params = |text: &str| {
            answered(&extension::parse([text.as_bytes()].into_iter()).unwrap()).map(Params::header_value)
        };
        for (response, expected) in [
            ("permessage-deflate", "permessage-deflate"),
            (
                "permessage-deflate; server_no_context_takeover; client_max_window_bits=11",
                "permessage-deflate; client_no_context_takeover; server_max_window_bits=11",
            ),
            (
                "permessage-deflate; client_no_context_takeover; server_max_window_bits=8",
                "permessage-deflate; server_no_context_takeover; client_max_window_bits=8",
            ),
        ] {
            assert_eq!(params(response).as_deref(), Some(expected), "{response}");
        }
        for wrong in [
            "",
            "x",
            "permessage-deflate, x",
            "; x",
            "; client_max_window_bits",
            "; client_max_window_bits=8",
        ] {
            let wrong =
                if wrong.starts_with(';') { format!("permessage-deflate{wrong}") } else { wrong.to_owned() };
            assert_eq!(params(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn numbers_that_say_nothing_are_refused() {
        for bits in [0, 1, 0x0100_0008, 0x0100_1000, 0x0104_0000, 0x0200_0000, u32::MAX] {
            assert_eq!(Params::from_bits(bits), None, "{bits:#x}");
        }
        let params = Params::from_bits(0x0103_0809).unwrap();
        assert!(params.server_no_context_takeover() && params.client_no_context_takeover());
        assert_eq!((params.server_bits, params.client_bits), (9, 8));
        assert!(size_of::<Params>() <= 4);
    }
}
