//! The options about metrics.

use super::value::{Host, host};
use crate::config::Listen;

/// See `--help`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Metrics")]
pub struct MetricsOptions {
    /// Serve metrics at /metrics on this address, HOST:PORT or unix:/PATH, to all who can reach it [default: none are
    /// served]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub metrics: Option<Listen>,
}

fn address(text: &str) -> Result<Listen, String> {
    let expected = || "expected HOST:PORT, [IPV6]:PORT or unix:/PATH".to_owned();
    if text.starts_with("unix:") {
        return match host(text)? {
            Host::Unix(path) => Ok(Listen::Unix(path)),
            Host::Name(_) => Err(expected()),
        };
    }
    let (name, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let port = port.parse().map_err(|_| expected())?;
    // Of an IPv6 address without brackets the end could be a port.
    match host(name) {
        Ok(Host::Name(host)) if !name.contains(':') || name.starts_with('[') => {
            Ok(Listen::Tcp { host, port })
        }
        _ => Err(expected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
