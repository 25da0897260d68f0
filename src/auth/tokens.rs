//! Bearer tokens: JWT (RFC 7519) signed with HS256, RS256 or ES256. The key determines the algorithm; a token that
//! names another one is refused.

use std::borrow::Cow;
use std::fmt;

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use percent_encoding::percent_decode_str;
use ring::hmac;
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use signature::Verifier;

use super::{Denied, Outcome, User};
use crate::proto::http1::head::Head;

/// RFC 7518 section 3.2: a key of HS256 is at least as long as the hash.
const MIN_SECRET: usize = 32;
/// Tolerated difference between clocks; seconds.
const LEEWAY: u64 = 30;
/// How a public key on P-256 begins (RFC 5480): algorithm, curve and an uncompressed point. Keys on other curves have
/// the same size.
const P256_KEY: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE";
/// Minimum bytes of an RSA public key in DER: a modulus of 2048 bits and its encoding.
const RSA_KEY: usize = 265;

/// What is required of a token besides its signature and time, and where it may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenRules {
    /// Accepted issuers; empty: any.
    pub issuers: Vec<String>,
    /// Accepted audiences; empty: only tokens without an audience.
    pub audiences: Vec<String>,
    /// Query parameter that may hold the token.
    pub query: Option<String>,
    /// Prefix of an offered subprotocol that holds the token.
    pub protocol: Option<String>,
}

/// Finds tokens in requests, and verifies them.
pub struct Tokens {
    key: DecodingKey,
    validation: Validation,
    rules: TokenRules,
    /// SHA-256 of the key's file.
    digest: [u8; 32],
}

/// The claim that is used here; the library checks the others.
#[derive(Deserialize)]
struct Subject {
    sub: String,
}

impl Tokens {
    /// Accepts tokens signed with the key in this file: a PEM public key (RSA: RS256, P-256: ES256), or else a secret
    /// (HS256), whose trailing line end is removed. The error says what was expected.
    pub fn new(file: &[u8], rules: TokenRules) -> Result<Self, &'static str> {
        let _ = PROVIDER.install_default(); // fails if it is installed already
        let text = String::from_utf8_lossy(file);
        let (key, algorithm) = match text.contains("-----BEGIN ") {
            true => public_key(&text)?,
            false => (secret(file)?, Algorithm::HS256),
        };
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        let mut required = vec!["exp", "sub"];
        if !rules.issuers.is_empty() {
            validation.set_issuer(&rules.issuers);
            required.push("iss");
        }
        if !rules.audiences.is_empty() {
            validation.set_audience(&rules.audiences);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        Ok(Self { key, validation, rules, digest: Sha256::digest(file).into() })
    }

    /// The token of a request without one in Authorization: in a subprotocol, which a page can set, or else in the
    /// query.
    pub fn find<'a>(&self, head: &'a Head) -> Option<&'a [u8]> {
        self.in_protocol(head).or_else(|| self.in_query(head))
    }

    fn in_protocol<'a>(&self, head: &'a Head) -> Option<&'a [u8]> {
        let prefix = self.rules.protocol.as_deref()?;
        let offered =
            head.header_all("sec-websocket-protocol").flat_map(|list| list.split(|byte| *byte == b','));
        offered.map(<[u8]>::trim_ascii).find_map(|name| name.strip_prefix(prefix.as_bytes()))
    }

    fn in_query<'a>(&self, head: &'a Head) -> Option<&'a [u8]> {
        let name = self.rules.query.as_deref()?;
        // A token is base64url and dots: nothing in it is percent-encoded.
        head.query()?.split('&').find_map(|parameter| value_of(parameter, name)).map(str::as_bytes)
    }

    /// A resource without its token.
    pub fn hide<'a>(&self, resource: &'a str) -> Cow<'a, str> {
        let parts = self.rules.query.as_deref().zip(resource.split_once('?'));
        let Some((name, (path, query))) = parts else { return resource.into() };
        let is_other = |parameter: &&str| value_of(parameter, name).is_none();
        let left: Vec<&str> = query.split('&').filter(is_other).collect();
        match left.len() {
            same if same == query.split('&').count() => resource.into(),
            0 => path.into(),
            _ => format!("{path}?{}", left.join("&")).into(),
        }
    }

    /// Whether a subprotocol that was offered is a token.
    pub fn is_token(&self, protocol: &str) -> bool {
        self.rules.protocol.as_deref().is_some_and(|prefix| protocol.starts_with(prefix))
    }

    /// Verifies a token; its subject is the user.
    pub fn verify(&self, token: &[u8]) -> Outcome {
        let header = jsonwebtoken::decode_header(token);
        // RFC 7515 section 4.1.11: unknown critical headers make a token invalid.
        if header.is_ok_and(|header| header.crit.is_some()) {
            return Outcome::Denied(Denied::Token("the token has unknown critical headers"));
        }
        match decode::<Subject>(token, &self.key, &self.validation) {
            Ok(data) => match User::new(&data.claims.sub) {
                Some(user) => Outcome::User(user),
                None => Outcome::Denied(Denied::Token("the subject of the token is not a valid user name")),
            },
            Err(error) => Outcome::Denied(Denied::Token(why(&error))),
        }
    }
}

/// The value of a parameter of a query, if it has this name.
fn value_of<'a>(parameter: &'a str, name: &str) -> Option<&'a str> {
    let (key, value) = parameter.split_once('=')?;
    percent_decode_str(key).eq(name.bytes()).then_some(value)
}

fn why(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidIssuer => "the token is from another issuer",
        ErrorKind::InvalidAudience => "the token is for another audience",
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => {
            "the token is signed with another algorithm"
        }
        ErrorKind::InvalidSignature => "the signature of the token is wrong",
        ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
            "exp" => "the token has no expiry (exp)",
            "aud" => "the token has no audience (aud)",
            "iss" => "the token has no issuer (iss)",
            _ => "the token has no subject (sub)",
        },
        _ => "malformed token",
    }
}

fn secret(file: &[u8]) -> Result<DecodingKey, &'static str> {
    let text = file.strip_suffix(b"\n").unwrap_or(file);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    match text.len() {
        0..MIN_SECRET => Err("expected a PEM public key, or a secret of at least 32 bytes"),
        _ => Ok(DecodingKey::from_secret(text)),
    }
}

fn public_key(pem: &str) -> Result<(DecodingKey, Algorithm), &'static str> {
    if pem.contains("PRIVATE KEY-----") {
        return Err("expected the public key, not the private one");
    }
    let size = |key: &DecodingKey| key.try_get_as_bytes().map_or(0, <[u8]>::len);
    if let Ok(key) = DecodingKey::from_rsa_pem(pem.as_bytes()) {
        return match size(&key) {
            0..RSA_KEY => Err("expected an RSA key of at least 2048 bits"),
            _ => Ok((key, Algorithm::RS256)),
        };
    }
    match DecodingKey::from_ec_pem(pem.as_bytes()) {
        Ok(key) if pem.contains(P256_KEY) => Ok((key, Algorithm::ES256)),
        Ok(_) => Err("expected a key on the curve P-256"),
        Err(_) => Err("expected a PEM public key, RSA or on the curve P-256"),
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({:?}, {:?})", self.validation.algorithms, self.rules)
    }
}

impl PartialEq for Tokens {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.rules == other.rules
    }
}

/// The cryptography for the library: ring, for these algorithms, verification only.
static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: Ring::for_key,
    key_utils: KeyUtils::new_unimplemented(),
};

struct Ring {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Ring {
    fn for_key(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
        // Otherwise an attacker could sign with HMAC, with the public key as the secret.
        if algorithm.family() != key.family() {
            return Err(ErrorKind::InvalidAlgorithm.into());
        }
        Ok(Box::new(Ring { algorithm: *algorithm, key: key.clone() }))
    }
}

impl Verifier<Vec<u8>> for Ring {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let key = self.key.try_get_as_bytes().map_err(|_| signature::Error::new())?;
        let verified = match self.algorithm {
            Algorithm::HS256 => hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), message, signature),
            Algorithm::RS256 => {
                UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key).verify(message, signature)
            }
            Algorithm::ES256 => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(message, signature)
            }
            _ => return Err(signature::Error::new()),
        };
        verified.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Ring {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::super::tests::head;
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    /// Created with another library. The tokens: sub "ann", exp 2100, nbf 2023, iss "https://id.example", aud "chat",
    /// "other".
    const RSA: &[u8] = include_bytes!("testdata/rsa.pem");
    const RSA_PKCS1: &[u8] = include_bytes!("testdata/rsa_pkcs1.pem");
    const P256: &[u8] = include_bytes!("testdata/p256.pem");
    const RS256: &str = include_str!("testdata/rs256.jwt");
    const ES256: &str = include_str!("testdata/es256.jwt");
    const FAR: u64 = 4_102_444_800;

    fn rules(issuer: &str, audience: &str) -> TokenRules {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned()).into_iter().collect();
        TokenRules { issuers: some(issuer), audiences: some(audience), ..TokenRules::default() }
    }

    fn verify(file: &[u8], rules: TokenRules, token: &str) -> Result<String, &'static str> {
        match Tokens::new(file, rules).unwrap().verify(token.trim_end().as_bytes()) {
            Outcome::User(user) => Ok(user.name().to_owned()),
            Outcome::Denied(Denied::Token(why)) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    /// A token with this header and these claims, signed with HMAC.
    fn token(header: &str, claims: &str, key: &[u8]) -> String {
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        let message = format!("{header}.{claims}");
        let sum = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(sum))
    }

    fn hs256(claims: &str) -> String {
        token(r#"{"alg":"HS256"}"#, claims, SECRET)
    }

    fn now() -> u64 {
        jsonwebtoken::get_current_timestamp()
    }

    #[test]
    fn tokens_signed_by_another_library() {
        for key in [RSA, RSA_PKCS1] {
            assert_eq!(verify(key, rules("https://id.example", "chat"), RS256), Ok("ann".to_owned()));
        }
        assert_eq!(verify(P256, rules("https://id.example", "other"), ES256), Ok("ann".to_owned()));
        assert_eq!(verify(P256, rules("", "chat"), ES256), Ok("ann".to_owned()), "any issuer");
        let other = "the token is for another audience";
        assert_eq!(verify(P256, rules("", "mail"), ES256), Err(other));
        assert_eq!(verify(P256, rules("", ""), ES256), Err(other), "RFC 7519 section 4.1.3");
        assert_eq!(verify(RSA, rules("a", "chat"), RS256), Err("the token is from another issuer"));
        for (key, token) in [(RSA, RS256), (P256, ES256)] {
            let (signed, signature) = token.rsplit_once('.').unwrap();
            let first = if signature.starts_with('A') { "B" } else { "A" };
            let changed = format!("{signed}.{first}{}", &signature[1..]);
            assert_eq!(verify(key, rules("", "chat"), &changed), Err("the signature of the token is wrong"));
        }
    }

    #[test]
    fn the_key_determines_the_algorithm() {
        let wrong = "the token is signed with another algorithm";
        let claims = format!(r#"{{"sub":"eve","exp":{FAR}}}"#);
        // Signed with HMAC, with the public key as the secret.
        for key in [RSA, P256] {
            assert_eq!(verify(key, rules("", ""), &token(r#"{"alg":"HS256"}"#, &claims, key)), Err(wrong));
        }
        assert_eq!(verify(P256, rules("", "chat"), RS256), Err(wrong));
        assert_eq!(verify(SECRET, rules("", ""), &token(r#"{"alg":"HS512"}"#, &claims, SECRET)), Err(wrong));
        for none in ["none", "None", "NONE"] {
            let [header, body] =
                [format!(r#"{{"alg":"{none}"}}"#), claims.clone()].map(|p| URL_SAFE_NO_PAD.encode(p));
            for unsigned in [format!("{header}.{body}."), format!("{header}.{body}")] {
                assert_eq!(verify(SECRET, rules("", ""), &unsigned), Err("malformed token"));
            }
        }
        let critical = token(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, &claims, SECRET);
        assert!(verify(SECRET, rules("", ""), &critical).is_err_and(|why| why.contains("critical")));
    }

    #[test]
    fn time_and_claims() {
        let now = now();
        let minute = 60;
        for (claims, expected) in [
            (format!(r#"{{"sub":"ann","exp":{}}}"#, now + minute), Ok("ann")),
            (format!(r#"{{"sub":"ann","exp":{}}}"#, now - 5), Ok("ann")),
            (format!(r#"{{"sub":"ann","exp":{}}}"#, now - minute), Err("the token has expired")),
            (
                format!(r#"{{"sub":"ann","exp":{FAR},"nbf":{}}}"#, now + minute),
                Err("the token is not valid yet"),
            ),
            (r#"{"sub":"ann"}"#.to_owned(), Err("the token has no expiry (exp)")),
            (format!(r#"{{"exp":{FAR}}}"#), Err("malformed token")),
            (format!(r#"{{"sub":"ann","exp":"{FAR}"}}"#), Err("the token has no expiry (exp)")),
            (
                format!(r#"{{"sub":"a\nb","exp":{FAR}}}"#),
                Err("the subject of the token is not a valid user name"),
            ),
            (
                format!(r#"{{"sub":"","exp":{FAR}}}"#),
                Err("the subject of the token is not a valid user name"),
            ),
            ("[]".to_owned(), Err("malformed token")),
        ] {
            let got = verify(SECRET, rules("", ""), &hs256(&claims));
            assert_eq!(got.as_deref().map_err(|why| *why), expected, "{claims}");
        }
        let claims = format!(r#"{{"sub":"ann","exp":{FAR}}}"#);
        assert_eq!(
            verify(SECRET, rules("", "chat"), &hs256(&claims)),
            Err("the token has no audience (aud)")
        );
        assert_eq!(verify(SECRET, rules("me", ""), &hs256(&claims)), Err("the token has no issuer (iss)"));
        for malformed in ["", ".", "..", "a.b.c", "a.b.c.d", "\u{e4}"] {
            assert_eq!(verify(SECRET, rules("", ""), malformed), Err("malformed token"), "{malformed}");
        }
    }

    #[test]
    fn where_a_token_may_be() {
        let some = |text: &str| Some(text.to_owned());
        let rules =
            TokenRules { query: some("access_token"), protocol: some("bearer."), ..TokenRules::default() };
        let tokens = Tokens::new(SECRET, rules).unwrap();
        let find = |target: &str, lines: &str| {
            tokens.find(&head(target, lines)).map(|token| String::from_utf8_lossy(token).into_owned())
        };
        assert_eq!(find("/a?x=1&access_token=a.b.c&y", ""), some("a.b.c"));
        assert_eq!(find("/a?access%5ftoken=a.b.c", ""), some("a.b.c"));
        assert_eq!(find("/a?token=a.b.c&access_token", ""), None);
        let lines = "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: v2 , bearer.d.e.f\r\n";
        assert_eq!(find("/a?access_token=a.b.c", lines), some("d.e.f"));
        assert!(tokens.is_token("bearer.x") && !tokens.is_token("bearer") && !tokens.is_token("chat"));
        for (resource, hidden) in [
            ("/a?x=1&access_token=a.b.c&y", "/a?x=1&y"),
            ("/a?access%5Ftoken=a.b.c&access_token=", "/a"),
            ("/a?access_token", "/a?access_token"),
            ("/a?", "/a?"),
            ("/a", "/a"),
        ] {
            assert_eq!(tokens.hide(resource), hidden);
        }
        let nowhere = Tokens::new(SECRET, TokenRules::default()).unwrap();
        assert_eq!(nowhere.find(&head("/a?access_token=a.b.c", lines)), None);
        assert!(!nowhere.is_token(""));
    }

    #[test]
    fn invalid_keys() {
        let private = "-----BEGIN PRIVATE KEY-----\nMII=\n-----END PRIVATE KEY-----\n";
        for (file, expected) in [
            (&b"short\n"[..], "expected a PEM public key, or a secret of at least 32 bytes"),
            (private.as_bytes(), "expected the public key, not the private one"),
            (include_bytes!("testdata/p384.pem"), "expected a key on the curve P-256"),
            (include_bytes!("testdata/secp256k1.pem"), "expected a key on the curve P-256"),
            (include_bytes!("testdata/rsa1024.pem"), "expected an RSA key of at least 2048 bits"),
            (
                b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
                "expected a PEM public key, RSA or on the curve P-256",
            ),
        ] {
            assert_eq!(Tokens::new(file, TokenRules::default()).err(), Some(expected));
        }
        let text = format!("{:?}", Tokens::new(SECRET, TokenRules::default()).unwrap());
        assert!(text.contains("HS256") && !text.contains("0123"), "{text}");
        let (with_line_end, claims) = ([SECRET, b"\n"].concat(), format!(r#"{{"sub":"ann","exp":{FAR}}}"#));
        assert_eq!(verify(&with_line_end, rules("", ""), &hs256(&claims)), Ok("ann".to_owned()));
    }
}
