//! Which handler serves which resource: found before fork, the same in every process. Knows paths and names
//! only; the code of a handler is the worker's business.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// A handler, as its probe described it.
#[derive(Clone, Debug)]
pub struct Route {
    /// The shared object, by its real path.
    pub file: PathBuf,
    /// The first resource that names it.
    pub resource: String,
    /// For people and logs.
    pub name: String,
    /// Of the handler; may be empty.
    pub version: String,
    /// Whether it sets `transfer_data`: a thread for each connection.
    pub blocking: bool,
    /// `ws_handler.flags`.
    pub flags: u32,
}

/// All handlers and the resources they serve.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    handlers: Vec<Route>,
    resources: BTreeMap<String, u16>,
}

impl Routes {
    /// The most handlers that can be told apart.
    pub const MAX: usize = u16::MAX as usize - 1;

    /// Adds a handler under [`Route::resource`]. Its number, or None when there are [`Routes::MAX`] already.
    pub fn add(&mut self, route: Route) -> Option<u16> {
        let number =
            u16::try_from(self.handlers.len()).ok().filter(|number| usize::from(*number) < Self::MAX)?;
        self.resources.insert(route.resource.clone(), number);
        self.handlers.push(route);
        Some(number)
    }

    /// Serves `resource` by what serves `existing`. False: nothing does.
    pub fn alias(&mut self, resource: &str, existing: &str) -> bool {
        let Some(number) = self.find(existing) else { return false };
        self.resources.insert(resource.to_owned(), number);
        true
    }

    /// All handlers, by number.
    pub fn handlers(&self) -> &[Route] {
        &self.handlers
    }

    /// The number of the handler for a path (without query).
    pub fn find(&self, path: &str) -> Option<u16> {
        self.resources.get(path).copied()
    }

    /// All resources with the numbers of their handlers, sorted.
    pub fn resources(&self) -> impl ExactSizeIterator<Item = (&str, u16)> {
        self.resources.iter().map(|(resource, number)| (resource.as_str(), *number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(resource: &str) -> Route {
        Route {
            file: PathBuf::from(format!("/handlers{resource}_wsh.so")),
            resource: resource.to_owned(),
            name: String::new(),
            version: String::new(),
            blocking: false,
            flags: 0,
        }
    }

    #[test]
    fn a_resource_is_found_by_its_exact_path() {
        let mut routes = Routes::default();
        assert_eq!(routes.add(route("/b")), Some(0));
        assert_eq!(routes.add(route("/a/b")), Some(1));
        assert_eq!(routes.find("/b"), Some(0));
        assert_eq!(routes.find("/a/b"), Some(1));
        for path in ["", "/", "/a", "/a/", "/a/b/", "/A/b", "b", "/b?"] {
            assert_eq!(routes.find(path), None, "{path}");
        }
        assert_eq!(routes.resources().collect::<Vec<_>>(), [("/a/b", 1), ("/b", 0)]);
    }

    #[test]
    fn an_alias_may_name_an_alias_and_may_replace() {
        let mut routes = Routes::default();
        routes.add(route("/a"));
        routes.add(route("/b"));
        assert!(!routes.alias("/y", "/x"));
        assert!(routes.alias("/x", "/a"));
        assert!(routes.alias("/y", "/x"));
        assert!(routes.alias("/b", "/a"));
        assert_eq!(routes.resources().collect::<Vec<_>>(), [("/a", 0), ("/b", 0), ("/x", 0), ("/y", 0)]);
        assert_eq!(routes.handlers().len(), 2);
    }
}
