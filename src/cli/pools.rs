//! The tables `[handler."/RESOURCE"]` and `[pool.NAME]` of the configuration file: which pool of workers serves which
//! resource, what these workers may do, and the handlers' own settings.

use std::collections::BTreeMap;

use clap::{CommandFactory, Parser, value_parser};
use nix::unistd::{Gid, Uid};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::account::{Account, group, identity, must_be_root, user};
use super::file::{self, Entry, File};
use super::value::{Time, count, memory, time, time_or_off};
use super::{admission, authentication};
use crate::config::{Children, Config, Pool, RESERVED_DESCRIPTORS};
use crate::log::Level;

/// The most workers of all pools together.
pub const MAX_WORKERS: usize = 1024;
/// The pool that needs no table.
const DEFAULT: &str = "default";
/// The keys that are tables.
const TABLES: [&str; 2] = ["handler", "pool"];
/// The table in a handler's table.
const SETTINGS: &str = "settings";

/// `[handler."/RESOURCE"]`
#[derive(Debug, Parser)]
#[command(name = "handler", disable_help_flag = true)]
struct HandlerTable {
    /// Whose processes run the handler: shared (workers of the server), pool or connection (one for each)
    #[arg(long, value_name = "ISOLATION", default_value = "shared", value_parser = isolation)]
    isolation: Isolation,
    /// The pool [default: one named after the resource]
    #[arg(long, value_name = "NAME", value_parser = pool_name)]
    pool: Option<String>,
    /// Time over which connections that cannot move are closed when their worker is replaced, or never [default:
    /// that of the server]
    #[arg(long, value_name = "TIME", value_parser = drain)]
    drain_timeout: Option<Drain>,
    /// How long the handler may run without calling the server before its worker is killed (0: forever) [default: that
    /// of the server]
    #[arg(long, value_name = "TIME", value_parser = time_or_off)]
    handler_timeout: Option<Time>,
    /// Compress each message on its own, without a context that is kept between messages
    #[arg(long)]
    no_deflate_takeover: bool,
    /// Least level of what the handler writes to the log [default: that of the log]
    #[arg(long, value_name = "LEVEL", value_enum)]
    log_level: Option<Level>,
    #[command(flatten)]
    admission: admission::HandlerArgs,
    #[command(flatten)]
    authentication: authentication::HandlerPolicyArgs,
}

/// See [`Config::drain_time`].
#[derive(Clone, Copy, Debug)]
struct Drain(Option<Time>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isolation {
    Shared,
    Pool,
    Connection,
}

/// `[pool.NAME]`
#[derive(Debug, Parser)]
#[command(name = "pool", disable_help_flag = true)]
struct PoolTable {
    /// Number of worker processes
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = count::<usize>(MAX_WORKERS as u64))]
    workers: usize,
    #[command(flatten)]
    admission: admission::PoolArgs,
    /// Who they run as [default: as the server]
    #[arg(long, value_name = "USER", value_parser = user)]
    user: Option<Account>,
    /// Their only group [default: the groups of the user]
    #[arg(long, value_name = "GROUP", value_parser = group)]
    group: Option<Gid>,
    /// Added to the nice value of the server
    #[arg(long, value_name = "NICE", default_value_t = 0, value_parser = nice)]
    nice: i32,
    /// Address space of each [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    max_memory: Option<u64>,
    /// Open files of each [default: as the server]
    #[arg(long, value_name = "COUNT", value_parser = value_parser!(u64).range(RESERVED_DESCRIPTORS + 1..=10_000_000))]
    max_files: Option<u64>,
    /// Processor time of each, after which it is killed [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    max_cpu: Option<Time>,
    /// Processes and threads of their user, all together [default: no limit]
    #[arg(long, value_name = "COUNT", value_parser = value_parser!(u64).range(LEAST_PROCESSES..=MOST_PROCESSES))]
    max_processes: Option<u64>,
    /// With a process for each connection: how many wait for one
    #[arg(long, value_name = "COUNT", default_value_t = Children::default().spare, value_parser = count::<usize>(MAX_WORKERS as u64))]
    spare: usize,
    /// With a process for each connection: how many there are at most
    #[arg(long, value_name = "COUNT", default_value_t = Children::default().most, value_parser = count::<usize>(MAX_WORKERS as u64))]
    processes: usize,
}

/// What a pool's table says.
struct Table {
    /// Where it stands.
    place: String,
    pool: Pool,
    children: Children,
    /// Where something is said about workers, and about processes for each connection.
    workers_at: Option<String>,
    children_at: Option<String>,
}

/// A worker has a few threads of its own.
const LEAST_PROCESSES: u64 = 8;
/// The kernel's PID_MAX_LIMIT.
const MOST_PROCESSES: u64 = 4_194_304;

/// The commands whose options are the keys of these tables.
pub fn commands() -> [clap::Command; 2] {
    [HandlerTable::command(), PoolTable::command()]
}

/// The entries of the file that are not in a table.
pub fn outside<'t, 'f>(document: &'t DeTable<'f>) -> impl Iterator<Item = Entry<'t, 'f>> {
    document.iter().filter(|(key, _)| !TABLES.contains(&&**key.get_ref()))
}

/// Reads the tables into the configuration.
pub fn read(file: &File, document: &DeTable<'_>, config: &mut Config) -> Result<(), String> {
    let mut pools = BTreeMap::new();
    for (name, table) in file.tables(document, "pool")? {
        let place = file.place(name.span(), &format!("pool.\"{}\"", name.get_ref()));
        pool_name(name.get_ref()).map_err(|expected| format!("{place}: {expected}"))?;
        pools.insert(name.get_ref().to_string(), pool(file, name.get_ref(), table, place)?);
    }
    for (resource, table) in file.tables(document, "handler")? {
        let settings = handler(file, resource, table, &pools, config)?;
        config.settings.insert(resource.get_ref().to_string(), settings);
    }
    let [default, others @ ..] = &mut config.pools[..] else { return Ok(()) };
    for pool in others.iter_mut().filter(|pool| pool.user.is_none()) {
        pool.user = default.user;
        if pool.groups.is_empty() {
            pool.groups.clone_from(&default.groups);
        }
    }
    if let Some((_, Table { place, .. })) = pools.iter().find(|(name, _)| config.pool(name).is_none()) {
        return Err(format!("{place}: expected a handler with isolation = \"pool\" for this pool"));
    }
    match config.pools.iter().map(Pool::processes).sum() {
        0..=MAX_WORKERS => Ok(()),
        all => {
            Err(format!("{}: expected at most {MAX_WORKERS} workers in all pools, not {all}", file.name()))
        }
    }
}

/// What the table of a handler says goes into the configuration; returns the handler's own settings.
fn handler(
    file: &File,
    resource: &Spanned<DeString<'_>>,
    table: &DeTable<'_>,
    pools: &BTreeMap<String, Table>,
    config: &mut Config,
) -> Result<Vec<(String, String)>, String> {
    let place = file.place(resource.span(), &format!("handler.\"{}\"", resource.get_ref()));
    let resource: &str = resource.get_ref();
    let Some(own_name) = resource.strip_prefix('/') else {
        return Err(format!("{place}: expected a resource, which begins with /"));
    };
    let keys = table.iter().filter(|(key, _)| key.get_ref() != SETTINGS);
    let (found, keys) = file.structure::<HandlerTable>(keys)?;
    let number = match (found.isolation, &found.pool) {
        (Isolation::Shared, None) => 0,
        (Isolation::Shared, Some(_)) => {
            let place = place_of(&keys, "pool").unwrap_or(&place);
            return Err(format!("{place}: expected isolation = \"pool\" beside it"));
        }
        (_, Some(name)) if !pools.contains_key(name) => {
            let place = place_of(&keys, "pool").unwrap_or(&place);
            return Err(format!("{place} = \"{name}\": expected a table [pool.\"{name}\"]"));
        }
        (isolation, name) => {
            let name = name.as_deref().unwrap_or(own_name);
            pool_name(name).map_err(|expected| format!("{place}: its pool {name:?}: {expected}"))?;
            let pool = pool_for(isolation, name, pools.get(name))?;
            let number = config.pool(name).unwrap_or_else(|| {
                config.pools.push(pool.clone());
                config.pools.len() - 1
            });
            if config.pools.get(number) != Some(&pool) {
                let place = place_of(&keys, "isolation").unwrap_or(&place);
                return Err(format!("{place}: expected the same for all handlers of its pool"));
            }
            number
        }
    };
    config.isolation.insert(resource.to_owned(), number);
    if let Some(Drain(time)) = found.drain_timeout {
        config.drain_times.insert(resource.to_owned(), time);
    }
    config.handler_times.extend(found.handler_timeout.map(|time| (resource.to_owned(), time)));
    config.without_takeover.extend(found.no_deflate_takeover.then(|| resource.to_owned()));
    config.log.handlers.extend(found.log_level.map(|level| (resource.to_owned(), level)));
    found.admission.apply(resource, &mut config.admission);
    found
        .authentication
        .apply(resource, &mut config.authentication)
        .map_err(|(id, why)| format!("{}: {why}", place_of(&keys, id).unwrap_or(&place)))?;
    match table.get(SETTINGS) {
        None => Ok(Vec::new()),
        Some(value) => settings(file, file.table(SETTINGS, value, "a table")?),
    }
}

fn drain(text: &str) -> Result<Drain, String> {
    match text {
        "never" => Ok(Drain(None)),
        _ => time_or_off(text)
            .map(|time| Drain(Some(time)))
            .map_err(|expected| format!("{expected}, or never")),
    }
}

/// The settings of a handler, sorted by key.
fn settings(file: &File, table: &DeTable<'_>) -> Result<Vec<(String, String)>, String> {
    let texts = table.iter().map(|(key, value)| {
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => file::decimal(number),
            DeValue::Boolean(is_on) => is_on.to_string(),
            _ => {
                let place = file.place(value.span(), key.get_ref());
                let kind = file::kind(value);
                return Err(format!("{place}: expected a string, an integer or a boolean, not {kind}"));
            }
        };
        Ok((key.get_ref().to_string(), text))
    });
    texts.collect()
}

/// The pool of a handler with this isolation.
fn pool_for(isolation: Isolation, name: &str, table: Option<&Table>) -> Result<Pool, String> {
    let Some(Table { pool, children, workers_at, children_at, .. }) = table else {
        let children = (isolation == Isolation::Connection).then(Children::default);
        return Ok(Pool { children, ..Pool::new(name, 1) });
    };
    match (isolation, workers_at, children_at) {
        (Isolation::Connection, Some(place), _) => Err(format!(
            "{place}: expected processes instead, as its handlers have isolation = \"connection\""
        )),
        (Isolation::Connection, None, _) => Ok(Pool { children: Some(*children), ..pool.clone() }),
        (_, _, Some(place)) => {
            Err(format!("{place}: expected handlers with isolation = \"connection\" for this pool"))
        }
        _ => Ok(pool.clone()),
    }
}

fn pool(file: &File, name: &str, table: &DeTable<'_>, place: String) -> Result<Table, String> {
    let (found, keys) = file.structure::<PoolTable>(table.iter())?;
    let (user, groups) = identity(found.user, found.group)
        .map_err(|why| format!("{}: {why}", place_of(&keys, "user").unwrap_or_default()))?;
    // The kernel counts by user, and root without end.
    if found.max_processes.is_some() && user.is_none_or(Uid::is_root) {
        let place = place_of(&keys, "max_processes").unwrap_or_default();
        return Err(format!("{place}: expected a user other than root beside it"));
    }
    let place_of = |id| place_of(&keys, id).map(str::to_owned);
    let children = Children { spare: found.spare, most: found.processes };
    if let Some(place) = place_of("spare").filter(|_| children.spare > children.most) {
        return Err(format!("{place}: expected no more than processes, which is {}", children.most));
    }
    let pool = Pool {
        name: name.to_owned(),
        workers: found.workers,
        connections: found.admission.max_connections,
        user,
        groups,
        nice: found.nice,
        max_memory: found.max_memory,
        max_files: found.max_files,
        max_cpu: found.max_cpu.map(|time| time / NANOSECONDS),
        max_processes: found.max_processes,
        children: None,
    };
    let children = Children { spare: children.spare.min(children.most), ..children };
    let (workers_at, children_at) = (place_of("workers"), place_of("processes").or(place_of("spare")));
    Ok(Table { place, pool, children, workers_at, children_at })
}

fn place_of<'a>(settings: &'a [file::Setting], id: &str) -> Option<&'a str> {
    settings.iter().find(|setting| setting.id == id).map(|setting| setting.place.as_str())
}

fn isolation(text: &str) -> Result<Isolation, String> {
    match text {
        "shared" => Ok(Isolation::Shared),
        "pool" => Ok(Isolation::Pool),
        "connection" => Ok(Isolation::Connection),
        _ => Err("expected \"shared\", \"pool\" or \"connection\"".to_owned()),
    }
}

/// A name is seen in titles and logs, and may be a resource without its first `/`.
fn pool_name(text: &str) -> Result<String, String> {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/".contains(c);
    match text {
        DEFAULT => Err(format!("expected another name: {DEFAULT} is the pool of all other handlers")),
        name if !name.is_empty() && !name.starts_with('/') && name.chars().all(is_fit) => Ok(name.to_owned()),
        _ => {
            Err("expected a name of letters, digits and -._~!$&'()*+,;=:@/ that does not begin with /"
                .to_owned())
        }
    }
}

fn nice(text: &str) -> Result<i32, String> {
    let number = text.parse().ok().filter(|number| (-20..=19).contains(number));
    let number = number.ok_or_else(|| "expected a number from -20 to 19".to_owned())?;
    if number < 0 {
        must_be_root("a nice value below that of the server")?;
    }
    Ok(number)
}

/// A time in ns that is a number of seconds.
fn seconds(text: &str) -> Result<Time, String> {
    let time = time(text)?;
    match time % NANOSECONDS {
        0 => Ok(time),
        _ => Err("expected whole seconds".to_owned()),
    }
}

/// In a second.
const NANOSECONDS: u64 = 1_000_000_000;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nix::unistd::geteuid;

    use super::*;
    use crate::cli::file::tests::{config, fails};

    /// Names and workers of all pools.
    fn pools(config: &Config) -> Vec<(&str, usize)> {
        config.pools.iter().map(|pool| (pool.name.as_str(), pool.workers)).collect()
    }

    #[test]
    fn without_tables_there_is_the_default_pool() {
        for config in [config("workers = 3", &[]).unwrap(), config("", &["--workers=3"]).unwrap()] {
            assert_eq!(config.pools, [Pool::new("default", 3)]);
            assert_eq!((config.workers, config.all_workers(), config.pool_of("/x")), (3, 3, 0));
        }
    }

    #[test]
    fn pools_have_a_name_or_that_of_the_resource() {
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

    /// A file with a pool that has these keys in line 4.
    fn pool_with(keys: &str) -> String {
        format!("[handler.'/a']\nisolation = 'pool'\n[pool.a]\n{keys}\n")
    }

    #[test]
    fn limits_of_a_pool() {
        let text = pool_with("max_memory = '4G'\nmax_files = 65\nmax_cpu = '2m'\nnice = 1\nworkers = 1024");
        let error = config(&text, &["--workers=1"]).unwrap_err();
        assert_eq!(error, "w.conf: expected at most 1024 workers in all pools, not 1025");
        let config = config(&text.replace("1024", "1023"), &["--workers=1"]).unwrap();
        let limits = Pool {
            nice: 1,
            max_memory: Some(4 << 30),
            max_files: Some(65),
            max_cpu: Some(120),
            ..Pool::new("a", 1023)
        };
        assert_eq!(config.pools[1], limits);
    }

    #[test]
    fn limits_that_are_wrong() {
        for (line, expected) in [
            ("max_memory = '2000G'", "expected at most 1024G"),
            ("max_memory = 0", "expected a size above 0"),
            ("max_files = 64", "64 is not in 65..=10000000"),
            ("max_cpu = '1500ms'", "expected whole seconds"),
            ("max_cpu = 0", "expected a time above 0: this limit can not be off"),
            ("nice = 20", "expected a number from -20 to 19"),
            ("workers = 0", "0 is not in 1..=1024"),
            ("max_processes = 7", "7 is not in 8..=4194304"),
        ] {
            fails(&pool_with(line), &format!("w.conf:4: {line}: {expected}"));
        }
        fails(
            &pool_with("max_processes = 9"),
            "w.conf:4: max_processes: expected a user other than root beside it",
        );
        let keys = "workers, max_connections, user, group, nice, max_memory, max_files, max_cpu, max_processes, spare, processes";
        fails(
            &pool_with("memory = 1"),
            &format!("w.conf:4: memory: there is no such key, expected one of {keys}"),
        );
        fails(&pool_with("nice = '1'"), "w.conf:4: nice: expected an integer, not a string");
    }

    #[test]
    fn users_and_groups_by_name_and_number() {
        let root = |keys: &str| config(&pool_with(keys), &[]).map(|config| config.pools[1].clone());
        if !geteuid().is_root() {
            let error = root("user = 0").unwrap_err();
            assert!(error.starts_with("w.conf:4: user = 0: expected to be root"), "{error}");
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
            "w.conf:4: max_processes: expected a user other than root beside it",
        );
        let pool = root("user = 4_000_000_000\ngroup = 4_000_000_001\nmax_processes = 9").unwrap();
        assert_eq!(pool.max_processes, Some(9));
        let ids = (Some(Uid::from_raw(4_000_000_000)), vec![Gid::from_raw(4_000_000_001)]);
        assert_eq!((pool.user, pool.groups), ids);
        assert_eq!(
            root("user = 4_000_000_000").unwrap_err(),
            "w.conf:4: user: expected a group beside it, as no user is known by the number 4000000000"
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
        let pools = config(text, &["--workers=1"]).unwrap().pools;
        let children = pools.iter().map(|pool| pool.children.map(|children| (children.spare, children.most)));
        assert_eq!(children.collect::<Vec<_>>(), [None, Some((2, 64)), Some((1, 1)), Some((5, 64))]);
        assert_eq!(pools.iter().map(Pool::processes).collect::<Vec<_>>(), [1, 65, 2, 65]);
        let error = config(&format!("{text}processes = 960"), &["--workers=1"]).unwrap_err();
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
    fn handlers_that_are_wrong() {
        for (text, expected) in [
            ("[handler.a]", "1: handler.\"a\": expected a resource, which begins with /"),
            (
                "[handler.'/a']\nisolate = 1",
                "2: isolate: there is no such key, expected one of wshd.conf(5), such as isolation",
            ),
            (
                "[handler.'/a']\nisolation = 'none'",
                "2: isolation = 'none': expected \"shared\", \"pool\" or \"connection\"",
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
                "3: pool: expected isolation = \"pool\" beside it",
            ),
            (
                "[handler.'/a']\nisolation = 'pool'\npool = 'b'",
                "3: pool = \"b\": expected a table [pool.\"b\"]",
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

    #[test]
    fn the_tables_are_sound() {
        for command in commands() {
            command.debug_assert();
        }
    }
}
