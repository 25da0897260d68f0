//! Decodes single values of a query and of a Cookie header.

/// The first parameter of this name in a query (application/x-www-form-urlencoded, as the URL standard parses it).
pub fn query_param(query: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    query.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()).find_map(|pair| {
        let (key, value) = split(pair, b'=');
        (percent(key, true) == name).then(|| percent(value, true))
    })
}

/// The first cookie of this name in the value of a Cookie header (RFC 6265 section 4.2.1).
pub fn cookie(cookies: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    cookies.split(|byte| *byte == b';').find_map(|pair| {
        let (key, value) = split(pair, b'=');
        let value = value.trim_ascii();
        let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        (key.trim_ascii() == name).then(|| percent(quoted.unwrap_or(value), false))
    })
}

fn split(pair: &[u8], at: u8) -> (&[u8], &[u8]) {
    let mut parts = pair.splitn(2, |byte| *byte == at);
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

/// Decodes `%XX`, and "+" as a space if `plus`. A "%" without two hexadecimal digits is kept.
fn percent(text: &[u8], plus: bool) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        rest = match rest {
            [] => return decoded,
            [b'%', high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                decoded.push(digit(*high) << 4 | digit(*low));
                after
            }
            [byte, after @ ..] => {
                decoded.push(if plus && *byte == b'+' { b' ' } else { *byte });
                after
            }
        };
    }
}

fn digit(byte: u8) -> u8 {
    (byte as char).to_digit(16).unwrap_or_default() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param(query: &str, name: &str) -> Option<String> {
        query_param(query.as_bytes(), name.as_bytes())
            .map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    fn of(cookies: &str, name: &str) -> Option<String> {
        cookie(cookies.as_bytes(), name.as_bytes()).map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    #[test]
    fn a_parameter_is_found_by_its_decoded_name() {
        let query = "a=1&room=blue%20moon+x&room=2&%C3%A9=%e2%82%ac&flag&=nameless&b=c=d";
        assert_eq!(param(query, "a").as_deref(), Some("1"));
        assert_eq!(param(query, "room").as_deref(), Some("blue moon x"));
        assert_eq!(param(query, "\u{e9}").as_deref(), Some("\u{20ac}"));
        assert_eq!(param(query, "flag").as_deref(), Some(""));
        assert_eq!(param(query, "").as_deref(), Some("nameless"));
        assert_eq!(param(query, "b").as_deref(), Some("c=d"));
        assert_eq!(param(query, "roo"), None);
        assert_eq!(param("", ""), None);
        assert_eq!(param("x=%&y=%4&z=%zz%41", "x").as_deref(), Some("%"));
        assert_eq!(param("x=%&y=%4&z=%zz%41", "y").as_deref(), Some("%4"));
        assert_eq!(param("x=%&y=%4&z=%zz%41", "z").as_deref(), Some("%zzA"));
    }

    #[test]
    fn a_cookie_is_found_by_its_name() {
        let cookies = "a=1; session=\"s%3A4+2\";b = 2 ; a=3; empty=; =x";
        assert_eq!(of(cookies, "a").as_deref(), Some("1"));
        assert_eq!(of(cookies, "session").as_deref(), Some("s:4+2"));
        assert_eq!(of(cookies, "b").as_deref(), Some("2"));
        assert_eq!(of(cookies, "empty").as_deref(), Some(""));
        assert_eq!(of(cookies, "A"), None);
        assert_eq!(of("x=\"", "x").as_deref(), Some("\""));
    }
}
