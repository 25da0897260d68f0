//! The grammar of Sec-WebSocket-Extensions (RFC 6455 section 9.1).
//!
//! Knows no extension: what an offer means is for `deflate` to say.

use crate::proto::http1::field::{is_token, split, unquoted};
use crate::proto::http1::head::{BadRequest, bad};

/// One element of the header: an extension and its parameters, as offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The extension's name, a token.
    pub name: String,
    /// Parameters in their order, duplicates included. A value that was quoted is stored without its quotes.
    pub params: Vec<(String, Option<String>)>,
}

/// Extensions and parameters of a request together.
pub const MAX_ITEMS: usize = 128;

const MALFORMED: BadRequest = bad("malformed Sec-WebSocket-Extensions");
const TOO_MANY: BadRequest = BadRequest::new(431, "more than 128 extensions and parameters");

/// Parses all values of the header, which are one list (RFC 6455 section 9.1: "may be split").
/// Empty elements between commas are skipped (RFC 9110 section 5.6.1.2).
pub fn parse<'a>(values: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Offer>, BadRequest> {
    let elements = values.flat_map(|value| split(value, b',')).filter(|element| !element.is_empty());
    let mut items = 0;
    let offer = |element| {
        let mut parts = split(element, b';').map(|part| {
            items += 1;
            if items > MAX_ITEMS { Err(TOO_MANY) } else { Ok(part) }
        });
        let name = token(parts.next().unwrap_or(Err(MALFORMED))?)?;
        let params = parts.map(|part| param(part?)).collect::<Result<_, _>>()?;
        Ok(Offer { name, params })
    };
    elements.map(offer).collect()
}

/// `extension-param = token [ "=" ( token / quoted-string ) ]`, where what is quoted is a token as well.
fn param(text: &[u8]) -> Result<(String, Option<String>), BadRequest> {
    let mut halves = text.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
    let name = token(halves.next().unwrap_or_default())?;
    let value = halves.next().map(|value| token(&unquoted(value).ok_or(MALFORMED)?));
    Ok((name, value.transpose()?))
}

fn token(text: &[u8]) -> Result<String, BadRequest> {
    let text = str::from_utf8(text).ok().filter(|text| is_token(text.as_bytes()));
    text.map(str::to_owned).ok_or(MALFORMED)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Written as `name;key=value;key`, offers separated by `|`.
    fn show(values: &[&str]) -> Result<String, BadRequest> {
        let offers = parse(values.iter().map(|value| value.as_bytes()))?;
        let show = |offer: &Offer| {
            let mut text = offer.name.clone();
            for (key, value) in &offer.params {
                text.push(';');
                text.push_str(key);
                if let Some(value) = value {
                    text.push('=');
                    text.push_str(value);
                }
            }
            text
        };
        Ok(offers.iter().map(show).collect::<Vec<_>>().join("|"))
    }

    #[test]
    fn accepts_what_the_grammar_allows() {
        for (values, expected) in [
            (&[][..], ""),
            (&[""], ""),
            (&["foo"], "foo"),
            (&["foo, bar"], "foo|bar"),
            // The three spellings of RFC 6455 section 9.1 that mean the same.
            (&["foo", "bar; baz=2"], "foo|bar;baz=2"),
            (&["foo, bar; baz=2"], "foo|bar;baz=2"),
            (&["\tfoo ,bar ;\tbaz = 2 "], "foo|bar;baz=2"),
            (&[", foo,,bar,"], "foo|bar"),
            (&["bar; baz=\"2\""], "bar;baz=2"),
            (&["bar; baz=\"a\\bc\"; q"], "bar;baz=abc;q"),
            (&["a;b;b=1;b"], "a;b;b=1;b"),
        ] {
            assert_eq!(show(values).as_deref(), Ok(expected), "{values:?}");
        }
    }

    #[test]
    fn counts_extensions_and_parameters_together() {
        let offers = ["a; b; c=1"; MAX_ITEMS / 3];
        assert!(show(&offers).is_ok());
        assert_eq!(show(&[&offers[..], &["a, a, a"]].concat()), Err(TOO_MANY));
        assert_eq!(show(&[&"a,".repeat(MAX_ITEMS + 1)]), Err(TOO_MANY));
    }

    #[test]
    fn refuses_everything_else() {
        #[rustfmt::skip]
        let table = [
            "foo bar", "foo;", "foo; =1", "foo; a=", "foo; a=,bar", ";", "=", "foo; a=\"", "foo; a=\"\"",
            "foo; a=\"b c\"", "foo; a=\"b,c\"", "foo; a=\"b\\\"", "foo; a=\"b\"c", "foo; a=\"b\\\"c\"", "f\u{e9}",
            "foo; a b", "\"foo\"", "foo; a==1", "foo\0",
        ];
        for value in table {
            assert_eq!(show(&[value]), Err(MALFORMED), "{value:?}");
        }
    }
}
