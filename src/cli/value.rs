//! The values of options: from text to types, or what was expected.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{RangedU64ValueParser, TypedValueParser};

/// A value of `--server-host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address, without brackets, or a name.
    Name(String),
    /// The path of a socket.
    Unix(PathBuf),
}

/// Nanoseconds.
pub type Time = u64;

pub fn host(text: &str) -> Result<Host, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return match path.starts_with('/') {
            true => Ok(Host::Unix(path.into())),
            false => Err("expected an absolute path after unix:".to_owned()),
        };
    }
    let name = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let is_ipv6 = name.parse::<std::net::Ipv6Addr>().is_ok();
    let is_name = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || ":/[]".contains(c));
    match is_ipv6 || is_name {
        true => Ok(Host::Name(name.to_owned())),
        false => Err("expected an address, a host name (the port is --port), or unix:/PATH".to_owned()),
    }
}

pub fn size(text: &str) -> Result<usize, String> {
    size_or_zero(text).and_then(|size| match size {
        0 => Err("expected a size above 0".to_owned()),
        size => Ok(size),
    })
}

pub fn size_or_zero(text: &str) -> Result<usize, String> {
    let size = bytes(text)?;
    let size = usize::try_from(size).ok().filter(|size| *size <= MAX_SIZE);
    size.ok_or_else(|| "expected at most 1G".to_owned())
}

/// What a process may use.
pub fn memory(text: &str) -> Result<u64, String> {
    memory_or_zero(text).and_then(|size| match size {
        0 => Err("expected a size above 0".to_owned()),
        size => Ok(size),
    })
}

pub fn memory_or_zero(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        size if size > MAX_MEMORY => Err("expected at most 1024G".to_owned()),
        size => Ok(size),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "expected a size such as 65536, 64K, 16M or 1G";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match text.get(digits.len()..).unwrap_or_default() {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        _ => return Err(EXPECTED.to_owned()),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(EXPECTED.to_owned());
    }
    // What is larger than any number is above every limit.
    Ok(digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).unwrap_or(u64::MAX))
}

/// The largest size of a buffer that may be configured.
const MAX_SIZE: usize = 1 << 30;
/// The largest memory of a process that may be configured.
const MAX_MEMORY: u64 = 1 << 40;

pub fn time(text: &str) -> Result<Time, String> {
    time_or_off(text).and_then(|time| match time {
        0 => Err("expected a time above 0: this limit can not be off".to_owned()),
        time => Ok(time),
    })
}

pub fn time_or_off(text: &str) -> Result<Time, String> {
    let time = humantime::parse_duration(text)
        .map_err(|_| "expected a time with its unit, such as 500ms, 30s or 2m".to_owned())?;
    if time > MAX_TIME {
        return Err("expected at most 365d".to_owned());
    }
    u64::try_from(time.as_nanos()).map_err(|error| error.to_string())
}

/// The longest time that may be configured.
const MAX_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A number from 1 to `most`.
pub fn count<T>(most: u64) -> impl TypedValueParser<Value = T>
where
    T: TryFrom<u64, Error: std::error::Error + Send + Sync> + Clone + Send + Sync + 'static,
{
    RangedU64ValueParser::<T>::new().range(1..=most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let name = |text: &str| Ok(Host::Name(text.to_owned()));
        assert_eq!(host("0.0.0.0"), name("0.0.0.0"));
        assert_eq!(host("[::]"), name("::"));
        assert_eq!(host("::1"), name("::1"));
        assert_eq!(host("example.com"), name("example.com"));
        assert_eq!(host("unix:/run/w s"), Ok(Host::Unix("/run/w s".into())));
        for wrong in ["", "a:80", "http://a", "[::1", "::1]", "unix:", "unix:relative", "a b"] {
            assert!(host(wrong).is_err_and(|error| error.contains("expected")), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("1", 1), ("64K", 65_536), ("3k", 3_072), ("16M", 16 << 20), ("1G", 1 << 30)] {
            assert_eq!(size(text), Ok(bytes));
        }
        assert_eq!(size_or_zero("0"), Ok(0));
        let more_than_usize = ["99999999999999999999", "18014398509481984K"];
        for wrong in
            ["0", "", "K", "1.5M", "1T", "+1", "-1", "16 M", "16MB", "2G"].iter().chain(&more_than_usize)
        {
            assert!(size(wrong).is_err_and(|error| error.contains("expected")), "{wrong}");
        }
        assert_eq!(memory("1024G"), Ok(1 << 40));
        for wrong in ["0", "1025G", "99999999999999999999", "1T"] {
            assert!(memory(wrong).is_err_and(|error| error.contains("expected")), "{wrong}");
        }
    }

    #[test]
    fn times() {
        for (text, ns) in [("500ms", 500_000_000), ("2m", 120_000_000_000), ("1h 30m", 5_400_000_000_000)] {
            assert_eq!((time(text), time_or_off(text)), (Ok(ns), Ok(ns)));
        }
        assert_eq!(time_or_off("0"), Ok(0));
        assert!(time("0").is_err_and(|error| error.contains("can not be off")));
        for wrong in ["", "30", "s", "-1s", "1 fortnight", "366d", "99999999999999999999s"] {
            assert!(time_or_off(wrong).is_err_and(|error| error.contains("expected")), "{wrong}");
        }
    }
}
