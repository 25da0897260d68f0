//! Range requests (RFC 9110 14), with one range of bytes. A header that is malformed, has another unit or several
//! ranges is ignored, as RFC 9110 14.2 allows.

/// What to send.
#[derive(Debug, PartialEq, Eq)]
pub enum Selection {
    /// Everything: 200.
    Whole,
    /// `length` bytes from `offset` on, at least one: 206.
    Part {
        /// In bytes from the start.
        offset: u64,
        /// In bytes; `offset + length` is at most the size of the file.
        length: u64,
    },
    /// The range begins after the end of the file: 416.
    Unsatisfiable,
}

/// Selects the part of a file of `size` bytes; `value` is the Range header.
pub fn select(value: &[u8], size: u64) -> Selection {
    let Some((first, last)) = parse(value) else { return Selection::Whole };
    let (offset, end) = match (first, last) {
        (Some(first), Some(last)) if last < first => return Selection::Whole,
        (Some(first), Some(last)) => (first, size.min(last.saturating_add(1))),
        (Some(first), None) => (first, size),
        // RFC 9110 14.1.2: a suffix longer than the content selects all of it.
        (None, Some(suffix)) => (size - suffix.min(size), size),
        (None, None) => return Selection::Whole,
    };
    if offset >= end { Selection::Unsatisfiable } else { Selection::Part { offset, length: end - offset } }
}

/// `bytes=FIRST-LAST`; one of the two may be absent.
fn parse(value: &[u8]) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, range) = std::str::from_utf8(value).ok()?.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim_matches([' ', '\t']).split_once('-')?;
    Some((position(first)?, position(last)?))
}

/// Digits, or nothing. A position beyond u64 is after the end of every file.
fn position(digits: &str) -> Option<Option<u64>> {
    if digits.is_empty() {
        return Some(None);
    }
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| Some(digits.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(offset: u64, length: u64) -> Selection {
        Selection::Part { offset, length }
    }

    /// The examples of RFC 9110 14.1.2 for a representation of 10,000 bytes.
    #[test]
    fn examples_of_the_rfc() {
        assert_eq!(select(b"bytes=0-499", 10_000), part(0, 500));
        assert_eq!(select(b"bytes=500-999", 10_000), part(500, 500));
        assert_eq!(select(b"bytes=-500", 10_000), part(9_500, 500));
        assert_eq!(select(b"bytes=9500-", 10_000), part(9_500, 500));
        assert_eq!(select(b"bytes=0-0,-1", 10_000), Selection::Whole);
    }

    #[test]
    fn ranges_end_with_the_file() {
        assert_eq!(select(b"bytes=0-99999", 10), part(0, 10));
        assert_eq!(select(b"bytes=9-9", 10), part(9, 1));
        assert_eq!(select(b"bytes=-11", 10), part(0, 10));
        assert_eq!(select(b"bytes=3-99999999999999999999999", 10), part(3, 7));
        assert_eq!(select(b"BYTES=1-2", 10), part(1, 2));
    }

    #[test]
    fn ranges_after_the_end_are_unsatisfiable() {
        for value in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(select(value.as_bytes(), 10), Selection::Unsatisfiable, "{value}");
        }
        for value in ["bytes=0-", "bytes=0-0", "bytes=-1"] {
            assert_eq!(select(value.as_bytes(), 0), Selection::Unsatisfiable, "{value} of an empty file");
        }
    }

    #[test]
    fn malformed_ranges_are_ignored() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-4",
            "bytes=+1-2",
            "bytes=1-2-3",
            "lines=1-2",
            "bytes 1-2",
        ] {
            assert_eq!(select(value.as_bytes(), 10), Selection::Whole, "{value}");
        }
        assert_eq!(select(b"bytes=\xff-", 10), Selection::Whole);
    }
}
