//! The grammar of Sec-WebSocket-Extensions (RFC 6455 section 9.1).
//!
//! Knows no extension: what an offer means is for `deflate` to say.

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

/// The handshake fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Not the grammar of RFC 6455 section 9.1.
    #[error("expected: token *( ; token [= value] ), comma separated")]
    Malformed,
    /// More than [`MAX_ITEMS`].
    #[error("more than 128 extensions and parameters")]
    TooMany,
}

/// Parses all values of the header, which are one list (RFC 6455 section 9.1: "may be split").
/// Empty elements between commas are skipped (RFC 9110 section 5.6.1.2).
pub fn parse<'a>(values: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Offer>, Wrong> {
    let (mut offers, mut items) = (Vec::new(), 0);
    for value in values {
        let mut input = Input(value);
        loop {
            input.skip_space();
            if !input.is_empty() && !input.at(b',') {
                offers.push(offer(&mut input, &mut items)?);
            }
            if input.is_empty() {
                break;
            }
            input.take(b',').ok_or(Wrong::Malformed)?;
        }
    }
    Ok(offers)
}

/// `extension = extension-token *( ";" extension-param )`
fn offer(input: &mut Input, items: &mut usize) -> Result<Offer, Wrong> {
    let mut count = || {
        *items += 1;
        if *items > MAX_ITEMS { Err(Wrong::TooMany) } else { Ok(()) }
    };
    count()?;
    let name = input.token().ok_or(Wrong::Malformed)?.to_owned();
    let mut params = Vec::new();
    loop {
        input.skip_space();
        if input.take(b';').is_none() {
            return Ok(Offer { name, params });
        }
        input.skip_space();
        count()?;
        let key = input.token().ok_or(Wrong::Malformed)?.to_owned();
        input.skip_space();
        let value = match input.take(b'=') {
            Some(()) => {
                input.skip_space();
                Some(input.token_or_quoted().ok_or(Wrong::Malformed)?)
            }
            None => None,
        };
        params.push((key, value));
    }
}

/// Whether `text` is a token (RFC 9110 section 5.6.2).
pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().copied().all(is_token_byte)
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What is left of one header value.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn at(&self, byte: u8) -> bool {
        self.0.first() == Some(&byte)
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[byte])?;
        Some(())
    }

    fn skip_space(&mut self) {
        while let Some((b' ' | b'\t', rest)) = self.0.split_first() {
            self.0 = rest;
        }
    }

    fn token(&mut self) -> Option<&'a str> {
        let end = self.0.iter().position(|&byte| !is_token_byte(byte)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at_checked(end)?;
        self.0 = rest;
        if token.is_empty() { None } else { std::str::from_utf8(token).ok() }
    }

    /// RFC 6455 section 9.1: what a quoted value says, once unescaped, must be a token as well.
    fn token_or_quoted(&mut self) -> Option<String> {
        if self.take(b'"').is_none() {
            return self.token().map(str::to_owned);
        }
        let mut value = String::new();
        loop {
            let (mut byte, mut rest) = self.0.split_first()?;
            if *byte == b'\\' {
                (byte, rest) = rest.split_first()?;
            } else if *byte == b'"' {
                self.0 = rest;
                return (!value.is_empty()).then_some(value);
            }
            if !is_token_byte(*byte) {
                return None;
            }
            value.push(char::from(*byte));
            self.0 = rest;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Written as `name;key=value;key`, offers separated by `|`.
    fn show(values: &[&str]) -> Result<String, Wrong> {
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
        assert_eq!(show(&[&offers[..], &["a, a, a"]].concat()), Err(Wrong::TooMany));
        assert_eq!(show(&[&"a,".repeat(MAX_ITEMS + 1)]), Err(Wrong::TooMany));
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
            assert_eq!(show(&[value]), Err(Wrong::Malformed), "{value:?}");
        }
    }
}
