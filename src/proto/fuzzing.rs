//! The body of the fuzz target over all of `proto`: a client's stream from its first octet, answered as a worker with
//! an echo handler would. Has no socket, so it says nothing about writing.

use super::http1::field::is_token;
use super::http1::head::{HeadLimits, Parsed, parse};
use super::ws::{connection, deflate::negotiate as deflate, extension, handshake};

/// The first three octets choose settings and cuts, the rest is what the client sends. A request is refused with a
/// status of its own, or answered with 101 that a client can read; for what follows it see [`connection::fuzz`].
pub fn stream(data: &[u8]) {
    let [settings, step, seed, stream @ ..] = data else { return };
    let limits = HeadLimits { bytes: 4096, headers: 32 };
    let Ok(Parsed::Head { head, consumed }) = parse(stream, &limits) else { return };
    let opening = match handshake::check(&head) {
        Ok(opening) => opening,
        Err(bad) => return assert!(matches!(bad.status, 400 | 405 | 426 | 431 | 501)),
    };
    assert!(head.method() == "GET" && handshake::is_upgrade(&head) && !head.has_body());
    assert!(opening.protocols.iter().all(|name| is_token(name.as_bytes())));
    let params = deflate::negotiate(&opening.extensions, &deflate::Config::default());
    let value = params.map(|params| params.header_value());
    let protocol = opening.protocols.first().map(String::as_str);
    // Whatever a handler adds stays in its line.
    let text = String::from_utf8_lossy(stream).into_owned();
    let mut out = Vec::new();
    handshake::write_switching(&mut out, &opening, protocol, value.as_deref(), &[(text.clone(), text)]);

    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut fields);
    assert_eq!(response.parse(&out), Ok(httparse::Status::Complete(out.len())), "{}", out.escape_ascii());
    assert_eq!(response.code, Some(101));
    let agreed = response.headers.iter().filter(|field| field.name == "Sec-WebSocket-Extensions");
    let agreed = extension::parse(agreed.map(|field| field.value)).unwrap();
    assert_eq!(agreed.len(), usize::from(params.is_some()));
    connection::check(*settings, params, [*step, *seed], &stream[consumed..]);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use crate::proto::http1::{head, proxy};
    use crate::proto::ws::{connection, deflate::codec, frame};

    type Target = (&'static str, fn(&[u8]));

    /// As in fuzz/targets/.
    const TARGETS: [Target; 6] = [
        ("codec", codec::fuzz),
        ("connection", connection::fuzz),
        ("frame", frame::fuzz),
        ("head", head::fuzz),
        ("proxy", proxy::fuzz),
        ("stream", super::stream),
    ];

    fn names_in(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The seeds, and all that once broke something.
    #[test]
    fn the_corpora_are_replayed() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let targets = names_in(&fuzz.join("targets"));
        assert_eq!(targets, TARGETS.map(|(name, _)| format!("{name}.rs")), "as in fuzz/targets");
        for (target, body) in TARGETS {
            let corpus = fuzz.join("corpus").join(target);
            let seeds = names_in(&corpus);
            assert!(!seeds.is_empty(), "{} is empty", corpus.display());
            for seed in seeds {
                let octets = std::fs::read(corpus.join(&seed)).unwrap();
                // Named by the test runner's captured output if the body panics.
                println!("{target}: {seed}");
                body(&octets);
            }
        }
    }
}
