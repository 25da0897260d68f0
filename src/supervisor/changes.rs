//! What a reload changes for clients, for the log.

use std::collections::BTreeMap;
use std::path::Path;

use crate::fleet::routes::{Routes, Stamp};

/// Names of each kind in a line; the others are counted.
const MAX_NAMES: usize = 20;

/// What became of the resources: `added: /a, /b; removed: /c`; empty if nothing did. Changed are those whose handler is
/// another one, or has been built anew.
pub fn between(before: &Routes, after: &Routes) -> String {
    let (before, after) = (resources(before), resources(after));
    let is_new = |name: &&str| !before.contains_key(name);
    let is_other = |name: &&str| before.get(name).is_some_and(|old| after.get(name) != Some(old));
    let added: Vec<&str> = after.keys().copied().filter(is_new).collect();
    let changed: Vec<&str> = after.keys().copied().filter(is_other).collect();
    let removed: Vec<&str> = before.keys().copied().filter(|name| !after.contains_key(name)).collect();
    let kinds = [("added", added), ("changed", changed), ("removed", removed)];
    let kinds = kinds.into_iter().filter(|(_, names)| !names.is_empty()).map(|(kind, names)| {
        let more = match names.len().saturating_sub(MAX_NAMES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("{kind}: {}{more}", names[..names.len().min(MAX_NAMES)].join(", "))
    });
    kinds.collect::<Vec<_>>().join("; ")
}

/// Each resource with the file that serves it.
fn resources(routes: &Routes) -> BTreeMap<&str, (&Path, Stamp)> {
    let with_file = |(resource, number): (_, u16)| {
        let route = routes.get(number)?;
        Some((resource, (route.file.as_path(), route.stamp)))
    };
    routes.resources().filter_map(with_file).collect()
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
        assert_eq!(between(&before, &after), "added: /d, /e; changed: /b; removed: /c");
        assert_eq!(between(&before, &before), "");
    }

    #[test]
    fn a_line_has_an_end() {
        let names: Vec<String> = (10..35).map(|number| format!("/{number}")).collect();
        let all = routes(&names.iter().map(|name| (&**name, 1)).collect::<Vec<_>>());
        let line = between(&all, &Routes::default());
        assert!(line.starts_with("removed: /10, /11, ") && line.ends_with(", /29 and 5 more"), "{line}");
    }
}
