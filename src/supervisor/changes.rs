//! What a reload changes for clients, for the log.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::fleet::routes::{Routes, Stamp};

/// Resources, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    added: Vec<String>,
    /// Their handler is another one, or has been built anew.
    changed: Vec<String>,
    /// They are served no longer.
    removed: Vec<String>,
}

/// Names of each kind in a line; the others are counted.
const MAX_NAMES: usize = 20;

impl Changes {
    /// From the routes before and after a reload.
    pub fn between(before: &Routes, after: &Routes) -> Self {
        let (before, after) = (resources(before), resources(after));
        let names = |resources: &BTreeMap<&str, _>, is_one: &dyn Fn(&str) -> bool| {
            resources.keys().filter(|name| is_one(name)).map(|name| (*name).to_owned()).collect()
        };
        Self {
            added: names(&after, &|name| !before.contains_key(name)),
            changed: names(&after, &|name| before.get(name).is_some_and(|old| after.get(name) != Some(old))),
            removed: names(&before, &|name| !after.contains_key(name)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

/// Each resource with the file that serves it.
fn resources(routes: &Routes) -> BTreeMap<&str, (&Path, Stamp)> {
    let with_file = |(resource, number): (_, u16)| {
        let route = routes.get(number)?;
        Some((resource, (route.file.as_path(), route.stamp)))
    };
    routes.resources().filter_map(with_file).collect()
}

/// `added: /a, /b; removed: /c`
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [("added", &self.added), ("changed", &self.changed), ("removed", &self.removed)];
        let kinds = kinds.into_iter().filter(|(_, names)| !names.is_empty()).map(|(kind, names)| {
            let more = match names.len().saturating_sub(MAX_NAMES) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let first: Vec<&str> = names.iter().take(MAX_NAMES).map(String::as_str).collect();
            format!("{kind}: {}{more}", first.join(", "))
        });
        f.write_str(&kinds.collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::routes::Route;

    fn routes(resources: &[(&str, u64)]) -> Routes {
        let mut routes = Routes::default();
        for (resource, size) in resources {
            let stamp = Stamp { size: *size, ..Stamp::default() };
            routes.add(Route { stamp, ..Route::for_test(resource) });
        }
        routes
    }

    #[test]
    fn resources_come_change_and_go() {
        let before = routes(&[("/a", 1), ("/b", 1), ("/c", 1)]);
        let mut after = routes(&[("/a", 1), ("/b", 2), ("/d", 1)]);
        after.alias("/e", "/a");
        let changes = Changes::between(&before, &after);
        assert_eq!(changes.to_string(), "added: /d, /e; changed: /b; removed: /c");
        assert!(Changes::between(&before, &before).is_empty());
    }

    #[test]
    fn a_line_has_an_end() {
        let names: Vec<String> = (10..35).map(|number| format!("/{number}")).collect();
        let all = routes(&names.iter().map(|name| (&**name, 1)).collect::<Vec<_>>());
        let line = Changes::between(&all, &Routes::default()).to_string();
        assert!(line.starts_with("removed: /10, /11, ") && line.ends_with(", /29 and 5 more"), "{line}");
    }
}
