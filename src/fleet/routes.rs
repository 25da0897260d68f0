//! Which handler serves which resource: found before fork, the same in every process. Knows paths and names
//! only; the code of a handler is the worker's business.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A handler, as its probe described it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Route {
    /// The shared object, by its real path.
    #[serde(with = "any_path")]
    pub file: PathBuf,
    /// What it was like when it was probed.
    pub stamp: Stamp,
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
    /// Its subprotocols, in order of preference.
    pub protocols: Vec<String>,
    /// Whether it was there before a reload only, and keeps its number so that no other gets it.
    pub retired: bool,
}

/// A path need not be UTF-8.
pub(super) mod any_path {
    use std::ffi::OsString;
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().serialize(to)
    }

    pub fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<PathBuf, D::Error> {
        OsString::deserialize(from).map(PathBuf::from)
    }
}

/// Tells one version of a file from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// Device and inode.
    pub inode: (u64, u64),
    /// Bytes.
    pub size: u64,
    /// Seconds and nanoseconds of its last change.
    pub modified: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(file: &Metadata) -> Self {
        let (inode, modified) = ((file.dev(), file.ino()), (file.mtime(), file.mtime_nsec()));
        Self { inode, size: file.size(), modified }
    }
}

/// All handlers and the resources they serve.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Routes {
    handlers: Vec<Route>,
    resources: BTreeMap<String, u16>,
    /// Whether any resource is a prefix, which is looked for then.
    has_prefixes: bool,
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
        self.has_prefixes |= resource.ends_with("/*");
        self.resources.insert(resource.to_owned(), number);
        true
    }

    /// The same with numbers that go on from those of `before`: a resource keeps its handler's number, and the
    /// number of what is no longer there is not given away. None when there are more than [`Routes::MAX`].
    pub fn following(self, before: &Routes) -> Option<Self> {
        let retired = before.handlers.iter().map(|route| Route { retired: true, ..route.clone() });
        let mut handlers: Vec<Route> = retired.collect();
        let mut numbers = Vec::new();
        for route in self.handlers {
            let number = handlers.iter().position(|old| old.resource == route.resource);
            match number.and_then(|number| handlers.get_mut(number)) {
                Some(old) => *old = route,
                None => handlers.push(route),
            }
            let number = number.unwrap_or(handlers.len() - 1);
            numbers.push(u16::try_from(number).ok().filter(|number| usize::from(*number) < Self::MAX)?);
        }
        let renumbered = |(resource, number): (String, u16)| {
            numbers.get(usize::from(number)).map(|number| (resource, *number))
        };
        let resources = self.resources.into_iter().filter_map(renumbered).collect();
        Some(Self { handlers, resources, has_prefixes: self.has_prefixes })
    }

    /// The handler of this number.
    pub fn get(&self, handler: u16) -> Option<&Route> {
        self.handlers.get(usize::from(handler))
    }

    /// All handlers, by number, also those that are retired.
    pub fn handlers(&self) -> &[Route] {
        &self.handlers
    }

    /// The handlers in service, with their numbers.
    pub fn in_service(&self) -> impl Iterator<Item = (u16, &Route)> {
        (0..).zip(&self.handlers).filter(|(_, route)| !route.retired)
    }

    /// The number of the handler for a path (without query): that of this resource, else that of the longest prefix,
    /// which is a resource that ends in `/*`.
    pub fn find(&self, path: &str) -> Option<u16> {
        let exact = self.resources.get(path);
        let prefix = || {
            let mut ends = path.rmatch_indices('/').map(|(at, _)| at);
            ends.find_map(|at| self.resources.get(&format!("{}/*", path.get(..at)?)))
        };
        exact.or_else(|| if self.has_prefixes { prefix() } else { None }).copied()
    }

    /// All resources with the numbers of their handlers, sorted.
    pub fn resources(&self) -> impl ExactSizeIterator<Item = (&str, u16)> {
        self.resources.iter().map(|(resource, number)| (resource.as_str(), *number))
    }
}

#[cfg(test)]
impl Route {
    /// A handler for this resource, of which nothing else matters.
    pub fn for_test(resource: &str) -> Self {
        Self {
            file: PathBuf::from(format!("/handlers{resource}_wsh.so")),
            stamp: Stamp::default(),
            resource: resource.to_owned(),
            name: String::new(),
            version: String::new(),
            blocking: false,
            flags: 0,
            protocols: Vec::new(),
            retired: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(resource: &str) -> Route {
        Route::for_test(resource)
    }

    fn routes(resources: &[&str]) -> Routes {
        let mut routes = Routes::default();
        resources.iter().for_each(|resource| assert!(routes.add(route(resource)).is_some()));
        routes
    }

    #[test]
    fn numbers_outlive_a_reload_and_are_not_given_away() {
        let before = routes(&["/a", "/b", "/c"]);
        let mut new = routes(&["/d", "/c", "/a"]);
        new.alias("/x", "/c");
        let after = new.following(&before).unwrap();
        assert_eq!(after.resources().collect::<Vec<_>>(), [("/a", 0), ("/c", 2), ("/d", 3), ("/x", 2)]);
        assert!(after.handlers()[1].retired);
        assert_eq!(after.in_service().map(|(number, _)| number).collect::<Vec<_>>(), [0, 2, 3]);
        let again = routes(&["/b"]).following(&after).unwrap();
        assert_eq!(again.resources().collect::<Vec<_>>(), [("/b", 1)]);
        assert_eq!(again.in_service().count(), 1);
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
    fn a_prefix_is_for_what_is_below_it_and_the_longest_wins() {
        let mut routes = routes(&["/a", "/b", "/room/x"]);
        assert!(routes.alias("/room/*", "/a") && routes.alias("/room/x/*", "/b"));
        for (path, handler) in [
            ("/room/1", Some(0)),
            ("/room/", Some(0)),
            ("/room/1/2", Some(0)),
            ("/room/x", Some(2)),
            ("/room/x/y", Some(1)),
            ("/room", None),
            ("/rooms/1", None),
            ("/", None),
            ("", None),
        ] {
            assert_eq!(routes.find(path), handler, "{path}");
        }
        assert!(routes.alias("/*", "/b"));
        assert_eq!((routes.find("/anything"), routes.find("/room/1")), (Some(1), Some(0)));
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
