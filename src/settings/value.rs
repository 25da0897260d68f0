//! Parses the values of settings. Errors say what was expected.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Component, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::Listen;

/// Maximum size of a buffer; bytes.
pub const MAX_SIZE: u64 = 1 << 30;
/// Maximum memory of a process; bytes.
pub const MAX_MEMORY: u64 = 1 << 40;
/// Maximum time.
const MAX_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Parses a `server_host`: an address, which gets this port, or the path of a socket.
pub fn host(text: &str, port: u16) -> Result<Listen, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return match path.starts_with('/') {
            true => Ok(Listen::Unix(path.into())),
            false => Err("expected an absolute path after unix:".to_owned()),
        };
    }
    let name = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let is_ipv6 = name.parse::<std::net::Ipv6Addr>().is_ok();
    let is_name = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || ":/[]".contains(c));
    match is_ipv6 || is_name {
        true => Ok(Listen::Tcp { host: name.to_owned(), port }),
        false => Err("expected an address, a host name (without its port), or unix:/PATH".to_owned()),
    }
}

/// Directories below another one, separated by commas; slashes at the beginning and end are ignored.
pub fn directories(texts: &[String]) -> Result<Vec<PathBuf>, String> {
    let directory = |text: &str| {
        let path = PathBuf::from(text.trim_matches('/'));
        let is_plain = path.components().all(|component| matches!(component, Component::Normal(_)));
        let expected = "expected directories relative to the document root, such as /cgi-bin";
        (is_plain && path.components().next().is_some()).then_some(path).ok_or_else(|| expected.to_owned())
    };
    texts.iter().flat_map(|text| text.split(',')).map(directory).collect()
}

/// An address with its port.
pub fn address(text: &str) -> Result<Listen, String> {
    let expected = || "expected HOST:PORT, [IPV6]:PORT or unix:/PATH".to_owned();
    if text.starts_with("unix:") {
        return host(text, 0);
    }
    let (name, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let port = port.parse().map_err(|_| expected())?;
    // An IPv6 address needs brackets: otherwise its end could be a port.
    match !name.contains(':') || name.starts_with('[') {
        true => host(name, port).map_err(|_| expected()),
        false => Err(expected()),
    }
}

/// A number in this range.
pub fn count(text: &str, range: &RangeInclusive<i64>) -> Result<i64, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("expected an integer from {} to {}", range.start(), range.end()))
}

/// A number of bytes in this range.
pub fn size(text: &str, range: &RangeInclusive<u64>) -> Result<u64, String> {
    match bytes(text)? {
        size if size < *range.start() => Err(format!("expected at least {}", written(*range.start()))),
        size if size > *range.end() => Err(format!("expected at most {}", written(*range.end()))),
        size => Ok(size),
    }
}

/// A size with the largest unit that fits.
fn written(size: u64) -> String {
    let units = [(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    let unit = units.into_iter().find(|(unit, _)| size >= *unit && size.is_multiple_of(*unit));
    unit.map_or(size.to_string(), |(unit, name)| format!("{}{name}", size / unit))
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
    // A number that is too large is above every limit.
    Ok(digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).unwrap_or(u64::MAX))
}

/// A time: numbers with units, in any order. `M` is not a unit: it could be a minute or a month.
pub fn time(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a time with its unit, such as 500ms, 30s, 10m, 1h or 7d";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.trim_end();
    let mut milliseconds: u64 = 0;
    if rest.is_empty() {
        return Err(EXPECTED.to_owned());
    }
    while !rest.is_empty() {
        rest = rest.trim_start();
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = rest.split_at(digits);
        let letters = unit.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = unit.split_at(letters);
        let factor: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60 * 1000,
            "h" => 60 * 60 * 1000,
            "d" => 24 * 60 * 60 * 1000,
            _ => return Err(EXPECTED.to_owned()),
        };
        if number.is_empty() {
            return Err(EXPECTED.to_owned());
        }
        let number = number.parse::<u64>().unwrap_or(u64::MAX);
        milliseconds = milliseconds.saturating_add(number.saturating_mul(factor));
        rest = after;
    }
    match Duration::from_millis(milliseconds) {
        time if time > MAX_TIME => Err("expected at most 365d".to_owned()),
        time => Ok(time),
    }
}

/// Parses each of these texts. The error is that of the first wrong one.
pub fn each<T, E: Display>(texts: &[String], parse: impl Fn(&str) -> Result<T, E>) -> Result<Vec<T>, String> {
    let parse = |text: &String| {
        parse(text).map_err(|why| if texts.len() == 1 { why.to_string() } else { format!("{text}: {why}") })
    };
    texts.iter().map(parse).collect()
}

/// Assigns the choice of this name; false: there is none.
pub fn choose<T: FromStr>(choice: &mut T, name: &str) -> bool {
    name.parse().map(|named| *choice = named).is_ok()
}

/// The path of a request: begins with a slash, no query, no fragment.
pub fn request_path(text: &str) -> Result<Box<str>, String> {
    let is_path =
        text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
    is_path.then(|| text.into()).ok_or_else(|| "expected a path such as /healthz".to_owned())
}

/// An absolute path.
pub fn absolute(text: &str) -> Result<PathBuf, String> {
    match text.starts_with('/') {
        true => Ok(text.into()),
        false => Err("expected an absolute path".to_owned()),
    }
}

/// An address or a network; `None`: `unix`, all peers on Unix sockets.
pub fn network(text: &str) -> Result<Option<IpNet>, &'static str> {
    if text == "unix" {
        return Ok(None);
    }
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    // Peers are compared in canonical form, so a mapped IPv4 address would never match.
    let is_mapped = |network: &IpNet| network.addr().to_canonical() != network.addr();
    match network {
        Ok(network) if !is_mapped(&network) => Ok(Some(network.trunc())),
        _ => Err("expected an address such as 10.0.0.1, a network such as 10.0.0.0/8, or unix"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let host = |text: &str| host(text, 7);
        let name = |text: &str| Ok(Listen::Tcp { host: text.to_owned(), port: 7 });
        assert_eq!(host("0.0.0.0"), name("0.0.0.0"));
        assert_eq!(host("[::]"), name("::"));
        assert_eq!(host("::1"), name("::1"));
        assert_eq!(host("example.com"), name("example.com"));
        assert_eq!(host("unix:/run/w s"), Ok(Listen::Unix("/run/w s".into())));
        for wrong in ["", "a:80", "http://a", "[::1", "::1]", "unix:", "unix:relative", "a b"] {
            assert!(host(wrong).is_err_and(|error| error.contains("expected")), "{wrong}");
        }
    }

    #[test]
    fn addresses() {
        let tcp = |host: &str, port| Ok(Listen::Tcp { host: host.to_owned(), port });
        assert_eq!(address("127.0.0.1:9102"), tcp("127.0.0.1", 9102));
        assert_eq!(address("[::1]:0"), tcp("::1", 0));
        assert_eq!(address("localhost:80"), tcp("localhost", 80));
        assert_eq!(address("unix:/run/m"), Ok(Listen::Unix("/run/m".into())));
        for wrong in ["", "9102", ":9102", "::1:9102", "a:b", "a:65536", "unix:m", "a b:1", "a:1:2"] {
            assert!(address(wrong).is_err_and(|why| why.contains("expected")), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        let buffer = |text: &str| size(text, &(1..=MAX_SIZE));
        for (text, bytes) in [("1", 1), ("64K", 65_536), ("3k", 3_072), ("16M", 16 << 20), ("1G", 1 << 30)] {
            assert_eq!(buffer(text), Ok(bytes));
        }
        for wrong in ["", "K", "1.5M", "1T", "+1", "-1", "16 M", "16MB"] {
            assert!(buffer(wrong).is_err_and(|error| error.contains("expected a size")), "{wrong}");
        }
        assert_eq!(buffer("0"), Err("expected at least 1".to_owned()));
        for large in ["2G", "99999999999999999999", "18014398509481984K"] {
            assert_eq!(buffer(large), Err("expected at most 1G".to_owned()));
        }
        assert_eq!(size("1025G", &(0..=MAX_MEMORY)), Err("expected at most 1024G".to_owned()));
    }

    #[test]
    fn times() {
        for (text, ms) in [
            ("500ms", 500),
            ("2m", 120_000),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for wrong in
            ["", "30", "s", "-1s", "10M", "1 fortnight", "1.5s", "366d", "99999999999999999999s", "s1"]
        {
            assert!(time(wrong).is_err_and(|error| error.contains("expected")), "{wrong}");
        }
    }
}
