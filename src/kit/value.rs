//! Values of options and scripts, with the bounds of these commands.

use std::time::Duration;

use tungstenite::http::{HeaderName, HeaderValue};

use crate::settings::value;

/// The longest time.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The largest message; bytes.
const MAX_SIZE: u64 = 64 << 20;

/// A time above zero.
pub fn time(text: &str) -> Result<Duration, String> {
    match value::time(text)? {
        time if time.is_zero() || time > MAX_TIME => Err("expected a time above 0 and up to 24h".to_owned()),
        time => Ok(time),
    }
}

/// A number of bytes, with K or M for 1024 and its square.
pub fn size(text: &str) -> Result<usize, String> {
    value::size(text, &(0..=MAX_SIZE)).map(|size| size as usize)
}

/// A header of a request: `NAME: VALUE`, in ASCII.
pub fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    const EXPECTED: &str = "expected NAME: VALUE";
    let (name, value) = text.split_once(':').ok_or(EXPECTED)?;
    let name = name.trim().parse().map_err(|_| format!("{EXPECTED}, the name a token"))?;
    let value = value.trim().parse().map_err(|_| format!("{EXPECTED}, the value printable ASCII"))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_sizes_a_bound() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(["0", "64", "4K", "64M"].map(size), [Ok(0), Ok(64), Ok(4096), Ok(64 << 20)]);
        for wrong in ["", "K", "-1", "+1", "65M", "1G", "1.5K"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "5", "0s", "25h", "-1s"] {
            assert!(time(wrong).is_err_and(|error| error.starts_with("expected")), "{wrong}");
        }
    }
}
