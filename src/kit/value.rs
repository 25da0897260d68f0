//! Values of options, from text.

use std::time::Duration;

/// The longest time that can be asked for.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// A time above zero.
pub fn time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if !time.is_zero() && time <= MAX_TIME => Ok(time),
        Ok(_) => Err("expected a time above 0 and up to 24h".to_owned()),
        Err(_) => Err("expected a time with its unit, such as 500ms, 30s or 2m".to_owned()),
    }
}

/// The largest message that can be sent; bytes.
const MAX_SIZE: usize = 64 << 20;

/// A number of bytes, with K or M for 1024 and its square.
pub fn size(text: &str) -> Result<usize, String> {
    let (digits, factor) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => text.strip_suffix(['M', 'm']).map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    let number = digits.parse::<usize>().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let size = number.and_then(|number| number.checked_mul(factor)).filter(|size| *size <= MAX_SIZE);
    size.ok_or_else(|| "expected a size such as 64, 4K or 1M, at most 64M".to_owned())
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
