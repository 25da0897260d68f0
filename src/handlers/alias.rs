//! The map file of aliases: in each line an alias and an existing resource, `#` begins a comment. Knows no files and no
//! handlers, only resources.

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

/// Reads the text of a map file; the error names the first line that is no alias, and what was expected.
pub fn parse(text: &str) -> Result<Vec<Alias>, String> {
    let mut aliases = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let content = content.split('#').next().unwrap_or_default();
        match content.split_whitespace().collect::<Vec<_>>()[..] {
            [] => {}
            [alias, existing] => {
                for resource in [alias, existing] {
                    if !resource.starts_with('/') || resource.contains('?') {
                        let expected = "expected a path that begins with \"/\"";
                        return Err(format!("line {line}: got {resource:?}, {expected}"));
                    }
                }
                aliases.push(Alias { line, alias: alias.to_owned(), existing: existing.to_owned() });
            }
            _ => return Err(format!("line {line}: got {:?}, expected \"ALIAS EXISTING\"", content.trim())),
        }
    }
    Ok(aliases)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn aliases_comments_and_blank_lines() {
        let text = "# all of it\n\n/chat /a/chat\n\t/talk\t/chat  # also\r\n   # more\n/x#y /z\n";
        let error = parse(text).unwrap_err();
        assert_eq!(error, "line 6: got \"/x\", expected \"ALIAS EXISTING\"");
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
            assert_eq!(parse(text).unwrap_err(), expected);
        }
    }
}
