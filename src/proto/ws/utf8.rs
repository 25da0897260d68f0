//! UTF-8 checked as it arrives, in pieces that may end anywhere, failing at
//! the first octet that no valid text can have there (RFC 6455 8.1, RFC 3629).
//! Keeps no text: only the octets of a character whose rest has not come.

/// The state of one text: at most three octets of an unfinished character.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validator {
    pending: [u8; 3],
    /// `0 <= have <= 3`, octets used in `pending`.
    have: u8,
}

/// The octets fed so far cannot begin any valid text (or, at the end, a
/// character is unfinished).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8;

/// Below this length the standard library is as quick as simdutf8.
const LONG: usize = 64;

impl Validator {
    /// Takes the next piece. After an error the validator must not be used on.
    #[inline]
    pub fn feed(&mut self, data: &[u8]) -> Result<(), NotUtf8> {
        if self.have == 0 && data.len() < LONG && is_ascii(data) {
            return Ok(());
        }
        self.feed_any(data)
    }

    /// The text ends here: no character may be unfinished.
    #[inline]
    pub fn finish(self) -> Result<(), NotUtf8> {
        if self.have == 0 { Ok(()) } else { Err(NotUtf8) }
    }

    #[inline(never)]
    fn feed_any(&mut self, mut data: &[u8]) -> Result<(), NotUtf8> {
        while self.have > 0 {
            let Some((&octet, rest)) = data.split_first() else { return Ok(()) };
            self.complete(octet)?;
            data = rest;
        }
        let good = if data.len() < LONG {
            std::str::from_utf8(data).map_err(|error| (error.valid_up_to(), error.error_len()))
        } else {
            simdutf8::compat::from_utf8(data).map_err(|error| (error.valid_up_to(), error.error_len()))
        };
        match good {
            Ok(_) => Ok(()),
            // No length: the input ends within a character that is good so far.
            Err((start, None)) => {
                let tail = data.get(start..).unwrap_or_default();
                for (slot, octet) in self.pending.iter_mut().zip(tail) {
                    *slot = *octet;
                }
                self.have = tail.len().min(3) as u8;
                Ok(())
            }
            Err(_) => Err(NotUtf8),
        }
    }

    /// Adds one octet to the unfinished character.
    fn complete(&mut self, octet: u8) -> Result<(), NotUtf8> {
        let [a, b, c] = self.pending;
        let mut character = [a, b, c, 0];
        let have = usize::from(self.have);
        if let Some(slot) = character.get_mut(have) {
            *slot = octet;
        }
        match std::str::from_utf8(character.get(..=have).unwrap_or_default()) {
            Ok(_) => self.have = 0,
            Err(error) if error.error_len().is_none() => {
                let [a, b, c, _] = character;
                self.pending = [a, b, c];
                self.have += 1;
            }
            Err(_) => return Err(NotUtf8),
        }
        Ok(())
    }
}

/// A whole text that is there at once.
#[inline]
pub fn is_valid(data: &[u8]) -> bool {
    if data.len() < LONG {
        is_ascii(data) || std::str::from_utf8(data).is_ok()
    } else {
        simdutf8::basic::from_utf8(data).is_ok()
    }
}

/// Meant for short data: words first, then what is left, octet by octet.
#[inline]
fn is_ascii(data: &[u8]) -> bool {
    let (words, rest) = data.as_chunks::<8>();
    let mut all = words.iter().fold(0, |all, word| all | u64::from_le_bytes(*word));
    let (halves, rest) = rest.as_chunks::<4>();
    all |= halves.iter().fold(0, |all, half| all | u64::from(u32::from_le_bytes(*half)));
    all |= rest.iter().fold(0, |all, octet| all | u64::from(*octet));
    all & 0x8080_8080_8080_8080 == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where the first octet stands that no valid text can have there.
    fn first_bad(data: &[u8]) -> Option<usize> {
        let error = std::str::from_utf8(data).err()?;
        let from = error.valid_up_to();
        error.error_len()?;
        (from..data.len()).find(|&last| {
            std::str::from_utf8(&data[from..=last]).is_err_and(|error| error.error_len().is_some())
        })
    }

    /// The index at which octet-by-octet feeding fails.
    fn fails_at(data: &[u8]) -> Option<usize> {
        let mut validator = Validator::default();
        data.iter().position(|octet| validator.feed(&[*octet]).is_err())
    }

    fn fed_in_pieces(data: &[u8], cuts: &[usize]) -> Result<(), NotUtf8> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| (*cut).min(data.len())).collect();
        cuts.push(data.len());
        cuts.sort_unstable();
        let (mut validator, mut start) = (Validator::default(), 0);
        for cut in cuts {
            validator.feed(&data[start..cut])?;
            start = cut;
        }
        validator.finish()
    }

    /// The encoding of a number by the table of RFC 3629 section 3, in `octets`
    /// octets whether or not that is the shortest form or a scalar value.
    fn encode(number: u32, octets: u32) -> Vec<u8> {
        let lead = match octets {
            1 => return vec![number as u8],
            2 => 0xc0,
            3 => 0xe0,
            4 => 0xf0,
            5 => 0xf8,
            _ => 0xfc,
        };
        let mut encoded = vec![(lead | number >> (6 * (octets - 1))) as u8];
        for place in (0..octets - 1).rev() {
            encoded.push((0x80 | number >> (6 * place) & 0x3f) as u8);
        }
        encoded
    }

    #[track_caller]
    fn check(data: &[u8], valid: bool) {
        assert_eq!(is_valid(data), valid, "{data:02x?} at once");
        for cut in 0..=data.len() {
            assert_eq!(fed_in_pieces(data, &[cut]).is_ok(), valid, "{data:02x?} cut at {cut}");
        }
        assert_eq!(fails_at(data), first_bad(data), "{data:02x?}: first bad octet");
    }

    #[test]
    fn state_is_small() {
        assert!(size_of::<Validator>() <= 8);
    }

    #[test]
    fn boundaries_of_every_length() {
        for (number, octets) in [
            (0, 1),
            (0x7f, 1),
            (0x80, 2),
            (0x7ff, 2),
            (0x800, 3),
            (0xd7ff, 3),
            (0xe000, 3),
            (0xfffd, 3),
            (0xfffe, 3),
            (0xffff, 3),
            (0x1_0000, 4),
            (0x10_ffff, 4),
        ] {
            check(&encode(number, octets), true);
        }
        // RFC 3629 section 3: the last scalar value is U+10FFFF; no forms of 5 and 6 octets.
        for (number, octets) in [
            (0x11_0000, 4),
            (0x1f_ffff, 4),
            (0x20_0000, 5),
            (0x3ff_ffff, 5),
            (0x400_0000, 6),
            (0x7fff_ffff, 6),
        ] {
            check(&encode(number, octets), false);
        }
    }

    #[test]
    fn overlong_forms_are_refused() {
        for (limit, octets) in [(0x80u32, 2), (0x800, 3), (0x1_0000, 4), (0x20_0000, 5), (0x400_0000, 6)] {
            for number in [0, 0x2f, limit - 1] {
                check(&encode(number, octets), false);
            }
        }
    }

    #[test]
    fn surrogates_are_refused() {
        for number in [0xd800, 0xdb7f, 0xdb80, 0xdbff, 0xdc00, 0xdf80, 0xdfff] {
            check(&encode(number, 3), false);
        }
        check(&[encode(0xd800, 3), encode(0xdc00, 3)].concat(), false);
    }

    #[test]
    fn lone_continuations_and_leads_are_refused() {
        for octet in 0x80..=0xbf {
            check(&[octet], false);
            check(&[b'a', octet, b'b'], false);
        }
        for octet in 0xc0..=0xff {
            check(&[octet, b' '], false);
            check(&[octet], false);
        }
    }

    #[test]
    fn truncated_characters_fail_at_the_end_only() {
        for number in [0x7ff, 0xffff, 0x10_ffff] {
            let whole = char::from_u32(number).unwrap().to_string().into_bytes();
            for length in 1..whole.len() {
                let part = &whole[..length];
                check(part, false);
                assert_eq!(fails_at(part), None);
                // Followed by ASCII it fails at that octet.
                assert_eq!(fails_at(&[part, b"x"].concat()), Some(length));
            }
        }
    }

    /// RFC 6455 8.1 leaves no room to wait for the end: these are lost with their second octet.
    #[test]
    fn second_octet_decides() {
        for text in [b"\xe0\x9f", b"\xed\xa0", b"\xf0\x8f", b"\xf4\x90"] {
            assert_eq!(fails_at(text), Some(1), "{text:02x?}");
        }
        for text in [b"\xe0\xa0", b"\xed\x9f", b"\xf0\x90", b"\xf4\x8f"] {
            assert_eq!(fails_at(text), None, "{text:02x?}");
        }
    }

    fn octets() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            "\\PC{0,40}".prop_map(String::into_bytes),
            "[ -~]{0,90}".prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..3),
            proptest::collection::vec(0x80u8..=0xff, 0..5),
        ];
        proptest::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn agrees_with_the_standard_library(
            data in octets(),
            cuts in proptest::collection::vec(0usize..300, 0..8),
        ) {
            let valid = std::str::from_utf8(&data).is_ok();
            prop_assert_eq!(is_valid(&data), valid);
            prop_assert_eq!(fed_in_pieces(&data, &cuts).is_ok(), valid);
            prop_assert_eq!(fails_at(&data), first_bad(&data));
        }
    }
}
