//! The map file of aliases: in each line an alias and an existing resource, `#` begins a comment. Processed top
//! to bottom, so that an alias may name an alias above it. Knows no files and no handlers, only resources.

use crate::fleet::routes::Routes;

/// A line of the map file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// From 1.
    pub line: usize,
    /// The resource to be served.
    pub alias: String,
    /// By what serves this one.
    pub existing: String,
}

/// A line that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct Fault {
    /// From 1.
    pub line: usize,
    /// What is wrong, and what was expected.
    pub why: String,
}

/// Reads the text of a map file; stops at the first line that is no alias.
pub fn parse(text: &str) -> Result<Vec<Alias>, Fault> {
    let mut aliases = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let content = content.split_once('#').map_or(content, |(before, _)| before);
        let mut words = content.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (None, ..) => {}
            (Some(alias), Some(existing), None) => {
                for resource in [alias, existing] {
                    if !resource.starts_with('/') || resource.contains('?') {
                        let why = format!("got {resource:?}, expected a path that begins with \"/\"");
                        return Err(Fault { line, why });
                    }
                }
                aliases.push(Alias { line, alias: alias.to_owned(), existing: existing.to_owned() });
            }
            _ => {
                let why = format!("got {:?}, expected \"ALIAS EXISTING\"", content.trim());
                return Err(Fault { line, why });
            }
        }
    }
    Ok(aliases)
}

/// Adds the aliases to the routes; returns those that name nothing that exists.
pub fn apply(aliases: &[Alias], routes: &mut Routes) -> Vec<Fault> {
    let mut faults = Vec::new();
    for Alias { line, alias, existing } in aliases {
        if !routes.alias(alias, existing) {
            let why = format!("{alias} is not served: no handler serves {existing}");
            faults.push(Fault { line: *line, why });
        }
    }
    faults
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fleet::routes::Route;

    #[test]
    fn aliases_comments_and_blank_lines() {
        let text = "# all of it\n\n/chat /a/chat\n\t/talk\t/chat  # also\r\n   # more\n/x#y /z\n";
        let error = parse(text).unwrap_err();
        assert_eq!(error.to_string(), "line 6: got \"/x\", expected \"ALIAS EXISTING\"");
        let aliases = parse(&text[..text.len() - "/x#y /z\n".len()]).unwrap();
        let alias = |line, alias: &str, existing: &str| Alias {
            line,
            alias: alias.into(),
            existing: existing.into(),
        };
        assert_eq!(aliases, [alias(3, "/chat", "/a/chat"), alias(4, "/talk", "/chat")]);
    }

    #[test]
    fn a_line_that_is_no_alias_is_named() {
        for (text, expected) in [
            ("/a", "line 1: got \"/a\", expected \"ALIAS EXISTING\""),
            ("\n/a /b /c", "line 2: got \"/a /b /c\", expected \"ALIAS EXISTING\""),
            ("a /b", "line 1: got \"a\", expected a path that begins with \"/\""),
            ("/a b", "line 1: got \"b\", expected a path that begins with \"/\""),
            ("/a?x /b", "line 1: got \"/a?x\", expected a path that begins with \"/\""),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn top_to_bottom() {
        let mut routes = Routes::default();
        routes.add(Route::for_test("/a"));
        let faults = apply(&parse("/early /x\n/x /a\n/late /x\n").unwrap(), &mut routes);
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].to_string(), "line 1: /early is not served: no handler serves /x");
        assert_eq!(
            routes.resources().map(|(resource, _)| resource).collect::<Vec<_>>(),
            ["/a", "/late", "/x"]
        );
    }
}
