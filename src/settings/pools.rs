//! The tables `[handler."/RESOURCE"]` and `[pool.NAME]` of the configuration file: which pool serves which resource,
//! the limits of pools, and the handlers' own settings.

use std::collections::BTreeMap;
use std::sync::Arc;

use nix::unistd::Uid;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::account::identity;
use super::draft::{Draft, Isolation};
use super::effective::{Effective, string};
use super::file::{self, File};
use super::resolve::assign;
use super::table::pool::{check_nice, name as pool_name};
use super::table::workers::MAX_WORKERS;
use super::{Error, Location, Scope, Values};
use crate::config::{Config, Pool, Processes};

/// The keys that are tables.
pub const TABLES: [&str; 3] = ["handler", "pool", "listener"];
/// The table in a handler's table.
const OWN: &str = "settings";

/// The table of a pool.
struct Table {
    location: Location,
    given: Values,
    pool: Pool,
    processes: Processes,
}

/// Reads the tables of all files into the configuration; `server` is the draft of the server.
pub fn read(
    documents: &[(&File, DeTable<'_>)],
    server: &Draft,
    config: &mut Config,
    effective: &mut Effective,
) -> Result<(), Error> {
    let mut pools: BTreeMap<String, Table> = BTreeMap::new();
    for (file, document) in documents {
        for (name, table) in file.tables(document, "pool")? {
            let location = file.location(name.span(), &format!("pool.\"{}\"", name.get_ref()));
            pool_name(name.get_ref()).map_err(|expected| location.wrong(expected))?;
            if let Some(before) = pools.get(&**name.get_ref()) {
                return Err(location.wrong(format!("it is already set at {}", before.location)));
            }
            let table = pool(file, name.get_ref(), table, location, server)?;
            let heading = format!("[pool.{}]", string(name.get_ref()));
            effective.tables.push((heading, Scope::Pool, table.given.clone()));
            pools.insert(name.get_ref().to_string(), table);
        }
    }
    for (file, document) in documents {
        for (resource, table) in file.tables(document, "handler")? {
            let location = file.location(resource.span(), &format!("handler.\"{}\"", resource.get_ref()));
            if config.isolation.contains_key(&**resource.get_ref()) {
                return Err(location.wrong("it already has a table in another file"));
            }
            let given = handler(file, resource, table, &pools, server, config)?;
            let heading = format!("[handler.{}]", string(resource.get_ref()));
            effective.tables.push((heading, Scope::Handler, given));
        }
    }
    effective.own = config.settings.clone().into_iter().collect();
    let [default, others @ ..] = &mut config.pools[..] else { return Ok(()) };
    for pool in others.iter_mut().filter(|pool| pool.user.is_none()) {
        pool.user = default.user;
        if pool.groups.is_empty() {
            pool.groups.clone_from(&default.groups);
        }
    }
    if let Some((_, Table { location, .. })) = pools.iter().find(|(name, _)| config.pool(name).is_none()) {
        return Err(location.wrong("expected a handler with isolation = \"pool\" for this pool"));
    }
    match config.pools.iter().map(Pool::processes).sum() {
        0..=MAX_WORKERS => Ok(()),
        all => Err(Error::Config(format!(
            "{}: expected at most {MAX_WORKERS} workers in all pools, not {all}",
            documents.first().map(|(file, _)| file.path().display().to_string()).unwrap_or_default()
        ))),
    }
}

/// Reads the table of a handler into the configuration.
fn handler(
    file: &File,
    resource: &Spanned<DeString<'_>>,
    table: &DeTable<'_>,
    pools: &BTreeMap<String, Table>,
    server: &Draft,
    config: &mut Config,
) -> Result<Values, Error> {
    let location = file.location(resource.span(), &format!("handler.\"{}\"", resource.get_ref()));
    let resource: &str = resource.get_ref();
    let Some(own_name) = resource.strip_prefix('/') else {
        return Err(location.wrong("expected a resource, which begins with /"));
    };
    let keys = table.iter().filter(|(key, _)| key.get_ref() != OWN);
    let given = file.values(keys, Scope::Handler)?;
    let mut draft = Draft { handler: server.handler.clone(), ..Draft::default() };
    assign(&given, Scope::Handler, &mut draft)?;
    let at = |key: &str| given.get(key).map_or(&location, |given| &given.location);
    let number = match (draft.isolation, &draft.pool_name) {
        (Isolation::Shared, None) => 0,
        (Isolation::Shared, Some(_)) => {
            return Err(at("pool").wrong("needs isolation = \"pool\""));
        }
        (_, Some(name)) if !pools.contains_key(name) => {
            return Err(given.unusable("pool", format!("expected a table [pool.\"{name}\"]")));
        }
        (isolation, name) => {
            let name = name.as_deref().unwrap_or(own_name);
            pool_name(name).map_err(|expected| location.wrong(format!("its pool {name:?}: {expected}")))?;
            let pool = pool_for(isolation, name, pools.get(name), server)?;
            let number = config.pool(name).unwrap_or_else(|| {
                config.pools.push(pool.clone());
                config.pools.len() - 1
            });
            if config.pools.get(number) != Some(&pool) {
                return Err(at("isolation").wrong("expected the same for all handlers of its pool"));
            }
            number
        }
    };
    config.isolation.insert(resource.to_owned(), number);
    for further in draft.resources {
        if let Some(other) = config.resources.insert(further.clone(), resource.to_owned()) {
            return Err(at("resources").wrong(format!("{further} is already a resource of {other}")));
        }
    }
    config.handler_of.insert(resource.to_owned(), draft.handler.normalized());
    let policy = draft.policy.policy(&given)?.map(Arc::new);
    match (draft.is_open, &policy) {
        (true, Some(_)) => return Err(at("auth").wrong("false cannot be combined with users or a key")),
        (false, None) => {}
        _ => drop(config.authentication.of.insert(resource.to_owned(), policy)),
    }
    let own = match table.get(OWN) {
        None => Vec::new(),
        Some(value) => own_settings(file, file.table(OWN, value, "a table")?)?,
    };
    config.settings.insert(resource.to_owned(), own);
    Ok(given)
}

/// The handler's own settings, sorted by key.
fn own_settings(file: &File, table: &DeTable<'_>) -> Result<Vec<(String, String)>, Error> {
    let texts = table.iter().map(|(key, value)| {
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => file::decimal(number),
            DeValue::Boolean(is_on) => is_on.to_string(),
            _ => {
                let why = format!("expected a string, an integer or a boolean, not {}", file::kind(value));
                return Err(file.location(value.span(), key.get_ref()).wrong(why));
            }
        };
        Ok((key.get_ref().to_string(), text))
    });
    texts.collect()
}

/// The pool of a handler with this isolation.
fn pool_for(isolation: Isolation, name: &str, table: Option<&Table>, server: &Draft) -> Result<Pool, Error> {
    let Some(Table { pool, processes, given, .. }) = table else {
        let mut draft = server.pool_without_table();
        assign(&Values::default(), Scope::Pool, &mut draft)?;
        let children = (isolation == Isolation::Connection).then_some(draft.processes);
        return Ok(Pool { children, name: name.to_owned(), ..draft.pool });
    };
    let location_of = |key: &str| given.get(key).map(|given| &given.location);
    match (isolation, location_of("workers"), location_of("processes").or(location_of("spare"))) {
        (Isolation::Connection, Some(location), _) => {
            Err(location.wrong("expected processes instead, as its handlers have isolation = \"connection\""))
        }
        (Isolation::Connection, None, _) => Ok(Pool { children: Some(*processes), ..pool.clone() }),
        (_, _, Some(location)) => {
            Err(location.wrong("expected handlers with isolation = \"connection\" for this pool"))
        }
        _ => Ok(pool.clone()),
    }
}

fn pool(
    file: &File,
    name: &str,
    table: &DeTable<'_>,
    location: Location,
    server: &Draft,
) -> Result<Table, Error> {
    let given = file.values(table.iter(), Scope::Pool)?;
    let mut draft = server.pool_without_table();
    assign(&given, Scope::Pool, &mut draft)?;
    let (user, groups) = identity(draft.user, draft.group).map_err(|why| given.wrong("user", why))?;
    check_nice(draft.pool.nice).map_err(|why| given.wrong("nice", why))?;
    // RLIMIT_NPROC is per user, and does not apply to root.
    if draft.pool.max_processes.is_some() && user.is_none_or(Uid::is_root) {
        return Err(given.wrong("max_processes", "needs a user other than root"));
    }
    let Processes { spare, most } = draft.processes;
    if given.get("spare").is_some() && spare > most {
        return Err(given.wrong("spare", format!("expected no more than processes, which is {most}")));
    }
    let pool = Pool { name: name.to_owned(), user, groups, ..draft.pool };
    Ok(Table { location, given, pool, processes: Processes { spare: spare.min(most), most } })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nix::unistd::{Gid, geteuid};

    use super::*;
    use crate::settings::tests::{config, fails};

    /// Names and workers of all pools.
    fn pools(config: &Config) -> Vec<(&str, usize)> {
        config.pools.iter().map(|pool| (pool.name.as_str(), pool.workers)).collect()
    }

    #[test]
    fn without_tables_there_is_only_the_default_pool() {
        for config in [config("workers = 3", &[]).unwrap(), config("", &["workers=3"]).unwrap()] {
            assert_eq!(config.pools, [Pool::new("default", 3)]);
            assert_eq!((config.workers, config.all_workers(), config.pool_of("/x")), (3, 3, 0));
        }
    }

    #[test]
    fn a_pool_is_named_or_has_the_name_of_the_resource() {
        let text = r#"
            workers = 2
            [handler."/a/b"]
            isolation = "pool"
            [handler."/c"]
            isolation = "pool"
            pool = "slow"
            [handler."/d"]
            isolation = "pool"
            pool = "slow"
            [handler."/e"]
            isolation = "shared"
            [handler."/f"]
            [handler."/g"]
            isolation = "pool"
            [pool.slow]
            workers = 3
            [pool.g]
            nice = 19
        "#;
        let config = config(text, &[]).unwrap();
        assert_eq!(pools(&config), [("default", 2), ("a/b", 1), ("slow", 3), ("g", 1)]);
        let pool_of = ["/a/b", "/c", "/d", "/e", "/f", "/g", "/x"].map(|resource| config.pool_of(resource));
        assert_eq!(pool_of, [1, 2, 2, 0, 0, 3, 0]);
        assert_eq!((config.pools[3].nice, config.all_workers()), (19, 7));
        let named: Vec<&str> = config.isolation.keys().map(String::as_str).collect();
        assert_eq!(named, ["/a/b", "/c", "/d", "/e", "/f", "/g"], "those without effect, too");
    }

    #[test]
    fn seccomp_of_a_pool_defaults_to_that_of_the_server() {
        let tables = "[handler.'/a']\nisolation = 'pool'\n[handler.'/b']\nisolation = 'pool'\n[pool.b]\n";
        for (server, pool, expected) in [
            ("", "", [false, false, false]),
            ("seccomp = true\n", "", [true, true, true]),
            ("seccomp = true\n", "seccomp = false", [true, true, false]),
            ("", "seccomp = true", [false, false, true]),
        ] {
            let config = config(&[server, tables, pool].concat(), &[]).unwrap();
            assert!(config.pools.iter().map(|pool| pool.seccomp).eq(expected), "{server}{pool}");
        }
    }

    /// A file with a pool that has these keys in line 4.
    fn pool_with(keys: &str) -> String {
        format!("[handler.'/a']\nisolation = 'pool'\n[pool.a]\n{keys}\n")
    }

    #[test]
    fn limits_of_a_pool() {
        let text = pool_with("max_memory = '4G'\nmax_files = 65\nmax_cpu = '2m'\nnice = 1\nworkers = 1024");
        let error = config(&text, &["workers=1"]).unwrap_err();
        assert_eq!(error, "w.conf: expected at most 1024 workers in all pools, not 1025");
        let config = config(&text.replace("1024", "1023"), &["workers=1"]).unwrap();
        let limits = Pool {
            nice: 1,
            max_memory: Some(4 << 30),
            max_files: Some(65),
            max_cpu: Some(std::time::Duration::from_secs(120)),
            ..Pool::new("a", 1023)
        };
        assert_eq!(config.pools[1], limits);
    }

    #[test]
    fn invalid_limits() {
        for (line, expected) in [
            ("max_memory = '2000G'", "expected at most 1024G"),
            ("max_memory = 0", "expected at least 1"),
            ("max_files = 64", "expected an integer from 65 to 10000000"),
            ("max_cpu = '1500ms'", "expected whole seconds"),
            ("max_cpu = 0", "expected a time above 0: this limit cannot be off"),
            ("nice = 20", "expected an integer from -20 to 19"),
            ("workers = 0", "expected an integer from 1 to 1024"),
            ("max_processes = 7", "expected an integer from 8 to 4194304"),
        ] {
            fails(&pool_with(line), &format!("w.conf:4: {line}: {expected}"));
        }
        fails(&pool_with("max_processes = 9"), "w.conf:4: max_processes: needs a user other than root");
        fails(&pool_with("memory = 1"), "w.conf:4: memory: no such key, did you mean max_memory?");
        let keys = "user, group, seccomp, workers, max_connections, nice, max_memory, max_files, max_cpu, max_processes, spare, \
                    processes";
        fails(&pool_with("xyzzy = 1"), &format!("w.conf:4: xyzzy: no such key, expected one of {keys}"));
        fails(&pool_with("nice = '1'"), "w.conf:4: nice: expected an integer, not a string");
    }

    #[test]
    fn users_and_groups_by_name_and_number() {
        let root = |keys: &str| config(&pool_with(keys), &[]).map(|config| config.pools[1].clone());
        if !geteuid().is_root() {
            let error = root("user = 0").unwrap_err();
            assert!(error.starts_with("w.conf:4: user = 0: needs root"), "{error}");
            return;
        }
        // An account that every system has, and that is the same everywhere.
        for keys in ["user = 'root'", "user = 0", "user = 'root'\ngroup = 'root'", "user = '0'\ngroup = 0"] {
            let pool = root(keys).unwrap();
            assert_eq!(
                (pool.user, pool.groups.first()),
                (Some(Uid::from_raw(0)), Some(&Gid::from_raw(0))),
                "{keys}"
            );
        }
        fails(
            &pool_with("max_processes = 9\nuser = 0"),
            "w.conf:4: max_processes: needs a user other than root",
        );
        let pool = root("user = 4_000_000_000\ngroup = 4_000_000_001\nmax_processes = 9").unwrap();
        assert_eq!(pool.max_processes, Some(9));
        let ids = (Some(Uid::from_raw(4_000_000_000)), vec![Gid::from_raw(4_000_000_001)]);
        assert_eq!((pool.user, pool.groups), ids);
        assert_eq!(
            root("user = 4_000_000_000").unwrap_err(),
            "w.conf:4: user: needs a group, as the user database has no user 4000000000"
        );
        for (line, what) in [("user = 'no such'", "user"), ("group = 'no such'", "group")] {
            let expected = format!("w.conf:4: {line}: expected the name or number of a {what}");
            assert_eq!(root(line).unwrap_err(), expected);
        }
        let largest = root("user = 4294967295").unwrap_err(); // (uid_t)-1
        assert!(largest.contains("expected the name or number of a user"), "{largest}");
        assert_eq!(root("nice = -20").unwrap().nice, -20);
    }

    #[test]
    fn a_pool_of_processes_for_each_connection() {
        let text = "[handler.'/a']\nisolation = 'connection'\n[handler.'/b']\nisolation = 'connection'\n\
                    [pool.b]\nprocesses = 1\n[handler.'/c']\nisolation = 'connection'\n[pool.c]\nspare = 5\n";
        let pools = config(text, &["workers=1"]).unwrap().pools;
        let children = pools.iter().map(|pool| pool.children.map(|children| (children.spare, children.most)));
        assert_eq!(children.collect::<Vec<_>>(), [None, Some((2, 64)), Some((1, 1)), Some((5, 64))]);
        assert_eq!(pools.iter().map(Pool::processes).collect::<Vec<_>>(), [1, 65, 2, 65]);
        let error = config(&format!("{text}processes = 960"), &["workers=1"]).unwrap_err();
        assert_eq!(error, "w.conf: expected at most 1024 workers in all pools, not 1029");
    }

    #[test]
    fn settings_of_a_handler_are_text() {
        let text = "[handler.'/a'.settings]\ns = 'x y'\ni = 0x10\nb = true\n'any key' = -1\n";
        let config = config(text, &[]).unwrap();
        let expected = [("any key", "-1"), ("b", "true"), ("i", "16"), ("s", "x y")];
        let expected: Vec<_> = expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        assert_eq!(config.settings["/a"], expected);
        let wrong = "expected a string, an integer or a boolean, not";
        fails("[handler.'/a'.settings]\nx = 1.5", &format!("w.conf:2: x: {wrong} a float"));
        fails("[handler.'/a'.settings]\nx = ['y']", &format!("w.conf:2: x: {wrong} an array"));
        fails("[handler.'/a']\nsettings = 1", "w.conf:2: settings: expected a table, not an integer");
    }

    #[test]
    fn invalid_handler_tables() {
        for (text, expected) in [
            ("[handler.a]", "1: handler.\"a\": expected a resource, which begins with /"),
            ("[handler.'/a']\nisolate = 1", "2: isolate: no such key, did you mean isolation?"),
            (
                "[handler.'/a']\nisolation = 'none'",
                "2: isolation = 'none': expected one of shared, pool, connection",
            ),
            (
                "[handler.'/a']\nisolation = 'connection'\n[pool.a]\nworkers = 2",
                "4: workers: expected processes instead, as its handlers have isolation = \"connection\"",
            ),
            (
                "[handler.'/a']\nisolation = 'pool'\n[pool.a]\nspare = 2",
                "4: spare: expected handlers with isolation = \"connection\" for this pool",
            ),
            (
                "[handler.'/a']\nisolation = 'connection'\n[pool.a]\nspare = 3\nprocesses = 2",
                "4: spare: expected no more than processes, which is 2",
            ),
            (
                "[handler.'/a']\nisolation = 'pool'\npool = 'p'\n[handler.'/b']\nisolation = 'connection'\n\
                 pool = 'p'\n[pool.p]",
                "5: isolation: expected the same for all handlers of its pool",
            ),
            ("[handler.'/a']\nisolation = 1", "2: isolation: expected a string, not an integer"),
            (
                "[handler.'/a']\nisolation = 'shared'\npool = 'a'\n[pool.a]",
                "3: pool: needs isolation = \"pool\"",
            ),
            (
                "[handler.'/a']\nisolation = 'pool'\npool = 'b'",
                "3: pool = 'b': expected a table [pool.\"b\"]",
            ),
            (
                "[handler.'/default']\nisolation = 'pool'",
                "1: handler.\"/default\": its pool \"default\": expected another name: default is the pool of all \
                 other handlers",
            ),
            (
                "[pool.default]\nworkers = 2",
                "1: pool.\"default\": expected another name: default is the pool of all other handlers",
            ),
            (
                "[pool.'a b']",
                "1: pool.\"a b\": expected a name of letters, digits and -._~!$&'()*+,;=:@/ that does not begin \
                 with /",
            ),
            ("[pool.a]", "1: pool.\"a\": expected a handler with isolation = \"pool\" for this pool"),
            ("handler = 1", "1: handler: expected tables such as [handler.\"NAME\"], not an integer"),
            ("[pool]\nworkers = 1", "2: pool.\"workers\": expected a table, not an integer"),
            ("[[handler]]", "1: handler: expected tables such as [handler.\"NAME\"], not an array"),
        ] {
            fails(text, &format!("w.conf:{expected}"));
        }
    }
}
