//! Decodes chunked content (RFC 9112 section 7.1), piece by piece.

/// The content is malformed.
#[derive(Debug, PartialEq, Eq)]
pub struct BadChunk;

/// The position in the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunks {
    /// In the size of a chunk, so far; none: before its first digit.
    Size(Option<u64>),
    /// After the CR of a size.
    SizeEnd(u64),
    /// In the data of a chunk, of which so many bytes are left.
    Data(u64),
    /// Before the CR after the data.
    DataEnd,
    /// Before the LF after the data.
    DataLine,
    /// Before the CR that ends the content. Trailers are not accepted: this server sends none.
    End,
    /// Before the last LF.
    LastLine,
    /// The content is complete.
    Complete,
}

impl Chunks {
    /// At the beginning.
    pub const START: Self = Chunks::Size(None);

    /// Decodes the next piece.
    pub fn decode(&mut self, mut piece: &[u8]) -> Result<Vec<u8>, BadChunk> {
        let mut content = Vec::new();
        while let Some((&first, rest)) = piece.split_first() {
            *self = match (*self, first) {
                (Chunks::Data(left), _) => {
                    let size = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
                    let (data, after) = piece.split_at(size);
                    content.extend_from_slice(data);
                    piece = after;
                    *self = match left - size as u64 {
                        0 => Chunks::DataEnd,
                        left => Chunks::Data(left),
                    };
                    continue;
                }
                (Chunks::Size(Some(size)), b'\r') => Chunks::SizeEnd(size),
                (Chunks::Size(size), digit) => {
                    let digit = char::from(digit).to_digit(16).ok_or(BadChunk)?;
                    let size = size.unwrap_or(0).checked_mul(16).ok_or(BadChunk)?;
                    Chunks::Size(Some(size + u64::from(digit)))
                }
                (Chunks::SizeEnd(0), b'\n') => Chunks::End,
                (Chunks::SizeEnd(size), b'\n') => Chunks::Data(size),
                (Chunks::DataEnd, b'\r') => Chunks::DataLine,
                (Chunks::DataLine, b'\n') => Chunks::START,
                (Chunks::End, b'\r') => Chunks::LastLine,
                (Chunks::LastLine, b'\n') => Chunks::Complete,
                _ => return Err(BadChunk),
            };
            piece = rest;
        }
        Ok(content)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn content_is_decoded_wherever_it_is_cut() {
        let whole = b"5\r\nhello\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n";
        for cut in 0..whole.len() {
            let mut chunks = Chunks::START;
            let mut content = chunks.decode(&whole[..cut]).unwrap();
            assert_ne!(chunks, Chunks::Complete);
            content.extend(chunks.decode(&whole[cut..]).unwrap());
            assert_eq!((&content[..], chunks), (&b"helloabcdefghijklmnopqrstuvwxyz"[..], Chunks::Complete));
        }
    }

    #[test]
    fn malformed_content_is_an_error() {
        for input in [
            "\r\n",
            "x\r\n",
            "1\n",
            "1\r\nab",
            "1;a=b\r\n",
            "0\r\nA: b\r\n",
            "0\r\n\r\nx",
            "10000000000000000\r\n",
        ] {
            assert_eq!(Chunks::START.clone().decode(input.as_bytes()), Err(BadChunk), "{input:?}");
        }
    }
}
