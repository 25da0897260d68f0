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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_bounds() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "5", "0s", "25h", "-1s"] {
            assert!(time(wrong).is_err_and(|error| error.starts_with("expected")), "{wrong}");
        }
    }
}
