//! The console page: a WebSocket client for browsers, in one file. Its Content-Security-Policy allows only its own
//! script and connections to this server.

use std::borrow::Cow;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Resource;
use super::response::{Body, Response};

/// Path of the page. A file of this name in the document root is not served.
pub const PATH: &str = "/console.html";

const PAGE: &str = include_str!("console/page.html");
const STYLE: &str = include_str!("console/page.css");
/// The parts of one module script, in order.
const SCRIPT: [&str; 5] = [
    include_str!("console/format.js"),
    include_str!("console/journal.js"),
    include_str!("console/connection.js"),
    include_str!("console/composer.js"),
    include_str!("console/main.js"),
];

/// The page and its Content-Security-Policy.
pub struct Console {
    page: Vec<u8>,
    policy: String,
}

impl Console {
    /// `resources` are those that the page offers to connect to.
    pub fn new(resources: &[Resource]) -> Self {
        let script = SCRIPT.concat();
        let page = PAGE
            .replace("{{style}}", STYLE)
            .replace("{{script}}", &script)
            .replace("{{facts}}", &facts(resources));
        let policy = format!(
            "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
            source_hash(&script),
            source_hash(STYLE)
        );
        Self { page: page.into_bytes(), policy }
    }

    /// The response with the page.
    pub fn response(&self, now: SystemTime) -> Response {
        let headers = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Security-Policy", self.policy.as_str()),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-cache"),
        ];
        Response::new(now, 200, &headers, Body::Bytes(Cow::Owned(self.page.clone())))
    }
}

/// A hash-source of Content Security Policy Level 3.
fn source_hash(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

/// The JSON data block that the page's script reads, without characters of HTML markup.
fn facts(resources: &[Resource]) -> String {
    let facts = json!({ "version": env!("CARGO_PKG_VERSION"), "resources": resources });
    facts.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn page(resources: &[&str]) -> (String, String) {
        let protocols = || vec!["v2".to_owned(), "<v1>".to_owned()];
        let resource = |path: &&str| Resource { path: path.to_string(), protocols: protocols() };
        let resources: Vec<Resource> = resources.iter().map(resource).collect();
        let console = Console::new(&resources);
        (String::from_utf8(console.page).unwrap(), console.policy)
    }

    fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
        text.split_once(start).unwrap().1.split_once(end).unwrap().0
    }

    #[test]
    fn the_policy_allows_only_the_script_and_style_of_the_page() {
        let (page, policy) = page(&["/echo"]);
        let script = between(&page, "<script type=\"module\">", "</script>");
        let style = between(&page, "<style>", "</style>");
        assert!(policy.contains(&format!("script-src '{}'", source_hash(script))));
        assert!(policy.contains(&format!("style-src '{}'", source_hash(style))));
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"));
        // A hash does not allow event handlers and style attributes.
        for inline in [" style=\"", " onclick=", " onload=", "javascript:"] {
            assert!(!page.contains(inline), "{inline}");
        }
    }

    /// The example of Content Security Policy Level 3, 2.3.1.
    #[test]
    fn hash_of_the_specification() {
        assert_eq!(
            source_hash("alert('Hello, world.');"),
            "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng="
        );
    }

    #[test]
    fn the_page_is_complete_and_loads_nothing() {
        let (page, _) = page(&[]);
        assert!(!page.contains("{{"), "a placeholder is left");
        let rest = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!rest.contains("http://") && !rest.contains("https://"));
        assert!(!page.contains(" src=") && !page.contains("@import") && !page.contains("url("));
    }

    #[test]
    fn resource_names_cannot_end_the_script() {
        let name = "/a</script><script>alert(1)//&\"\\\u{2028}";
        let (page, _) = page(&[name, "/b"]);
        let data = between(&page, "id=\"facts\">", "</script>");
        assert!(!data.contains(['<', '>', '&']), "{data}");
        let protocols = ["v2", "<v1>"];
        let resources =
            json!([{ "path": name, "protocols": protocols }, { "path": "/b", "protocols": protocols }]);
        let facts = json!({ "version": env!("CARGO_PKG_VERSION"), "resources": resources });
        assert_eq!(serde_json::from_str::<serde_json::Value>(data).unwrap(), facts);
    }
}
