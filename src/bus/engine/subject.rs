//! The name of a topic at the engine: a subject of NATS, a channel of Redis.
//!
//! It is PREFIX.SCOPE.TOPIC. In scope and topic, every byte except letters, digits, `-`, `_` and `/` is
//! percent-encoded: no character with a special meaning for an engine is left.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::fleet::sockets::bus_wire::split_key;

const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'/');

/// The subject of a topic, by its scope and name.
pub fn of(prefix: &str, key: &str) -> String {
    let (scope, name) = split_key(key).unwrap_or((key, ""));
    format!("{prefix}.{}.{}", utf8_percent_encode(scope, ENCODED), utf8_percent_encode(name, ENCODED))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::sockets::bus_wire::key_of;

    #[test]
    fn special_characters_are_encoded() {
        assert_eq!(of("wshd", "/chat\0lobby-1"), "wshd./chat.lobby-1");
        assert_eq!(of("a.b", "chat\0news.* >\u{e9}%"), "a.b.chat.news%2E%2A%20%3E%C3%A9%25");
    }

    proptest! {
        #[test]
        fn a_subject_decodes_to_its_name(scope in "[^\\x00]{1,20}", name in "[^\\x00]{1,20}") {
            let subject = of("p", &key_of(&scope, &name));
            let [_, first, second] = subject.split('.').collect::<Vec<_>>()[..] else { panic!("{subject}") };
            let decoded = |token| percent_decode_str(token).decode_utf8().unwrap();
            prop_assert_eq!((&*decoded(first), &*decoded(second)), (&*scope, &*name));
            prop_assert!(!subject.contains(|c: char| " *>\r\n?[]\\".contains(c) || !c.is_ascii_graphic()));
        }
    }
}
