//! The grammar of header fields: names, values, lists, quoted strings (RFC 9110 section 5).

use std::borrow::Cow;

/// Whether `text` is a token (section 5.6.2), such as the name of a field.
pub fn is_token(text: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_tchar)
}

/// Whether `text` can be the value of a field (section 5.5): no control characters, so no second line.
pub fn is_value(text: &[u8]) -> bool {
    text.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

/// The elements of comma-separated lists, without the empty ones (section 5.6.1).
pub fn list<'a>(values: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    values
        .flat_map(|value| value.split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// The pieces between separators, without the white space around them; separators in quoted strings do not count. A
/// quoted string without an end reaches to the end of the text, and is none for [`unquoted`].
pub fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let pieces = text.split(move |&byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ => {}
        }
        byte == separator && !is_quoted
    });
    pieces.map(<[u8]>::trim_ascii)
}

/// What a token or a quoted string (section 5.6.4) says; `None` if `text` is neither.
pub fn unquoted(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(inner) = text.strip_prefix(b"\"") else { return is_token(text).then_some(text.into()) };
    let inner = inner.strip_suffix(b"\"")?;
    let (mut said, mut is_escaped) = (Vec::with_capacity(inner.len()), false);
    for &byte in inner {
        match byte {
            b'"' if !is_escaped => return None,
            b'\\' if !is_escaped => is_escaped = true,
            _ => {
                is_escaped = false;
                said.push(byte);
            }
        }
    }
    (!is_escaped).then_some(said.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_name_nor_value_can_break_its_line() {
        assert!(is_token(b"X-Header_1") && is_value(b"a b\tc\xe9"));
        for name in ["", "a b", "a:", "a\r\n", "\u{e9}"] {
            assert!(!is_token(name.as_bytes()), "{name:?}");
        }
        for value in ["a\r\nb: c", "a\n", "\r", "\0", "\x7f"] {
            assert!(!is_value(value.as_bytes()), "{value:?}");
        }
    }
}
