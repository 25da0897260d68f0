//! Configurations of files and command lines, and their errors.

use std::collections::BTreeSet;
use std::path::Path;

use nix::unistd::{Uid, geteuid};

use super::file::File;
use super::*;
use crate::config::{Config, Listen};
use crate::log::{AccessLog, Destination, Format, Level, Rotation, Settings};

/// The configuration of a file with this text, called `w.conf` in errors, and settings `NAME=VALUE` of a command line.
pub fn config(text: &str, line: &[&str]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.conf");
    std::fs::write(&path, text).unwrap();
    let error = |error: Error| error.to_string().replace(&format!("{}/", dir.path().display()), "");
    resolve::load(given(line), Some(&path), None).map(|(config, _)| config).map_err(error)
}

fn given(line: &[&str]) -> Values {
    let mut given = Values::default();
    for (name, value) in ["websock_handlers=/h"].iter().chain(line).map(|text| text.split_once('=').unwrap())
    {
        let value = given::GivenValue::on_line(vec![value.to_owned()], Location::Line(format!("-o {name}")));
        given.insert(find(Scope::Server, name).unwrap().name, value);
    }
    given
}

/// Asserts that the configuration fails with this error.
#[track_caller]
pub fn fails(text: &str, expected: &str) {
    assert_eq!(config(text, &[]).err().as_deref(), Some(expected));
}

#[test]
fn every_type_of_value() {
    let text = r#"
        server_host = ["::1", "unix:/run/s"]
        port = 1_0
        log_file = "l"
        log_level = "warn"
        max_message = 0x10_000
        max_frame = "2k"
        idle_timeout = "2m"
        ping_interval = 0
        max_pings = 7
        deflate_level = 9
        deflate = false
        strict_handlers = false
    "#;
    let config = config(text, &[]).unwrap();
    let hosts: Vec<String> = config.listen.iter().map(Listen::to_string).collect();
    assert_eq!(hosts, ["[::1]:10", "unix:/run/s"]);
    let log_file = std::path::absolute("l").unwrap();
    assert_eq!(config.log.destination, crate::log::Destination::File(log_file));
    assert_eq!(config.log.level, crate::log::Level::Warn);
    assert_eq!((config.handler.limits.message, config.handler.limits.frame), (65_536, 2_048));
    assert_eq!(
        (config.handler.limits.idle.as_secs(), config.handler.limits.ping_interval.as_secs()),
        (120, 0)
    );
    assert_eq!((config.handler.limits.pings_per_second, config.handler.deflate.level), (7, 9));
    assert!(!config.handler.deflate.enabled && !config.strict_handlers);
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let bare = resolve::load(given(&[]), None, None).unwrap().0;
    let read = config("# nothing\n", &[]).unwrap();
    assert!(read.file.as_ref().is_some_and(|file| file.ends_with("w.conf")));
    assert_eq!(
        format!("{:?}", Config { file: None, effective: bare.effective.clone(), ..read }),
        format!("{bare:?}")
    );
}

#[test]
fn the_command_line_overrides_the_file() {
    let text = "server_host = [\"::1\", \"::2\"]\nport = 1\nmax_message = \"1K\"\nsend_high = 100\n";
    let line = ["port=2", "server_host=::3", "max_message=16M"];
    let config = config(text, &line).unwrap();
    assert_eq!(config.listen, [Listen::Tcp { host: "::3".into(), port: 2 }]);
    assert_eq!(config.handler.limits.message, 16 << 20, "also with a value that is the default");
    assert_eq!((config.sending.high, config.sending.low), (100, 25));
}

#[test]
fn a_key_that_does_not_exist() {
    fails("\nport = 1\nprot = 1\n", "w.conf:3: prot: no such key, did you mean port?");
    fails("max-message = 1", "w.conf:1: max-message: no such key, did you mean max_message?");
    fails("xyzzy = 1", "w.conf:1: xyzzy: no such key, wshd.conf(5) lists all");
}

#[test]
fn a_value_of_a_wrong_type() {
    for (line, expected) in [
        ("port = '80'", "port: expected an integer, not a string"),
        ("workers = 1.5", "workers: expected an integer, not a float"),
        ("log_file = 1", "log_file: expected a string, not an integer"),
        ("max_head = true", "max_head: expected a string or an integer, not a boolean"),
        ("deflate = 1", "deflate: expected true or false, not an integer"),
        ("server_host = []", "server_host: expected a string or an array of strings, not an empty array"),
        ("scan_dir = ['a']", "scan_dir: expected a string, not an array"),
        ("idle_timeout = 10:00:00", "idle_timeout: expected a string or an integer, not a datetime"),
        ("port.x = 1", "port: expected an integer, not a table"),
    ] {
        fails(&format!("# one\n\n{line}\n"), &format!("w.conf:3: {expected}"));
    }
    fails("server_host = [\n  'a',\n  2,\n]\n", "w.conf:3: server_host: expected strings, not an integer");
}

#[test]
fn a_value_out_of_range() {
    for (line, expected) in [
        ("max_message = '16Q'", "expected a size such as 65536, 64K, 16M or 1G"),
        ("idle_timeout = 30", "expected a time with its unit, such as 500ms, 30s, 10m, 1h or 7d"),
        ("pong_timeout = 0", "expected a time above 0: this limit cannot be off"),
        ("port = 65536", "expected an integer from 0 to 65535"),
        ("workers = -2", "expected an integer from 1 to 1024"),
        ("idle_timeout = '10M'", "expected a time with its unit, such as 500ms, 30s, 10m, 1h or 7d"),
        ("workers = 0", "expected an integer from 1 to 1024"),
        ("log_level = 'loud'", "expected one of fine, debug, info, warn, error, critical"),
        ("log_file = ''", "expected a path"),
        ("server_host = ['a:80']", "expected an address, a host name (without its port), or unix:/PATH"),
    ] {
        fails(&format!("{line}\n"), &format!("w.conf:1: {line}: {expected}"));
    }
}

#[test]
fn conflicting_values() {
    fails("document_root = '/nowhere'", "w.conf:1: document_root = '/nowhere': expected a directory");
    let error = config("\nsend_low = 2000", &["send_high=1K"]).unwrap_err();
    assert_eq!(error, "w.conf:2: send_low: 2000 is above -o send_high 1024: expected at most that");
}

#[test]
fn malformed_toml() {
    for (text, line) in
        [("port = 1\nport = 2\n", 2), ("a = \n", 1), ("\n\n[handler\n", 3), ("= 1", 1), ("x\ny\n", 1)]
    {
        let error = config(text, &[]).unwrap_err();
        assert!(error.starts_with(&format!("w.conf:{line}: ")) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn files_that_cannot_be_read() {
    let error = |path: &str| File::read(Path::new(path)).err().unwrap().to_string();
    assert!(error("/nowhere").starts_with("/nowhere: No such file"));
    assert!(error("/").starts_with("/: Is a directory"));
    assert!(error("/dev/zero").contains("expected at most 1048576 bytes"), "{}", error("/dev/zero"));
}

#[test]
fn by_default_admission_is_unlimited() {
    let admission = config("", &[]).unwrap().admission;
    assert_eq!((admission.total, admission.per_address, admission.handshakes), (0, 0, 0));
    assert!(admission.hosts.is_empty() && !admission.proxy.is_any());
}

#[test]
fn lists_and_trusted_proxies() {
    let text = r#"
        allow_host = "*.example"
        trust_proxy = ["10.1.2.3/8", "::1", "unix"]
        proxy_protocol = true
    "#;
    let admission = config(text, &[]).unwrap().admission;
    assert_eq!(admission.hosts.len(), 1);
    let trusts = |ip: &str| admission.proxy.trusts(Some(ip.parse().unwrap()));
    assert!(trusts("10.255.0.1") && trusts("::1") && trusts("::ffff:10.0.0.1"));
    assert!(admission.proxy.trusts(None) && !trusts("11.0.0.1") && !trusts("::2"));
}

#[test]
fn a_handler_can_have_its_own_origins() {
    let text = "allow_origin = 'https://a'\n[handler.'/x']\nallow_origin = ['https://b', 'null']\n\
                [handler.'/y']\n";
    let config = config(text, &[]).unwrap();
    let counts = ["/x", "/y", "/z"].map(|resource| config.handler(resource).origins.len());
    assert_eq!(counts, [2, 1, 1]);
    assert!(config.handler("/x").origins[0].allows(b"https://b"));
    fails(
        "[handler.'/x']\nallow_origin = 'b'\n",
        "w.conf:2: allow_origin = 'b': expected an origin such as https://example.com or \
         https://*.example.com:8443, null or *",
    );
}

#[test]
fn invalid_admission_settings() {
    for (line, expected) in [
        ("allow_host = 'http://a'", "expected a host such as example.com, *.example.com or [::1]:8443"),
        (
            "trust_proxy = '10.0.0.0/33'",
            "expected an address such as 10.0.0.1, a network such as 10.0.0.0/8, or unix",
        ),
        (
            "trust_proxy = '::ffff:10.0.0.1'",
            "expected an address such as 10.0.0.1, a network such as 10.0.0.0/8, or unix",
        ),
        ("max_handshakes_per_address = 65536", "expected an integer from 0 to 65535"),
    ] {
        fails(&format!("{line}\n"), &format!("w.conf:1: {line}: {expected}"));
    }
    fails("proxy_protocol = true\n", "w.conf:1: proxy_protocol: needs trust_proxy, which names the proxies");
}

#[test]
fn a_server_stays_in_the_foreground_by_default() {
    let config = config("", &[]).unwrap();
    assert!(!config.daemon.detach);
    assert_eq!((&config.daemon.pid_file, &config.daemon.chroot), (&None, &None));
    assert_eq!((config.pools[0].user, config.pools[0].groups.len()), (None, 0));
}

#[test]
fn paths_of_a_daemon_are_absolute() {
    // The path of the configuration file is absolute in these tests.
    let error = |text: &str, args: &[&str]| config(text, args).unwrap_err();
    assert_eq!(
        error("daemon = true\nlog_file = 'l'", &[]),
        "w.conf:2: log_file = 'l': expected an absolute path, since daemon is set"
    );
    assert_eq!(
        error("", &["daemon=true", "pid_file=./p", "log_target=syslog"]),
        "-o pid_file=./p: expected an absolute path, since daemon is set"
    );
    let absolute = config("", &["daemon=true", "pid_file=/p", "log_file=/l", "access_log=-"]).unwrap();
    assert!(absolute.daemon.detach);
    assert_eq!(absolute.daemon.pid_file, Some("/p".into()));
    assert!(config("", &["pid_file=p"]).is_ok(), "relative in the foreground");
}

#[test]
fn a_daemon_needs_a_log() {
    let expected = "needs log_file or log_target, since a daemon has no standard error";
    assert_eq!(config("", &["daemon=true"]).unwrap_err(), format!("-o daemon: {expected}"));
    let error = config("\ndaemon = true", &["log_file=/l", "log_target=stderr"]).unwrap_err();
    assert_eq!(error, format!("w.conf:2: daemon: {expected}"));
}

#[test]
fn pools_run_as_the_user_of_the_server_by_default() {
    let text = "user = 4_000_000_000\ngroup = 4_000_000_001\n\
                [handler.'/a']\nisolation = 'pool'\n[handler.'/b']\nisolation = 'pool'\n\
                [handler.'/c']\nisolation = 'pool'\n\
                [pool.b]\ngroup = 9\n[pool.c]\nuser = 5\ngroup = 6\n";
    if !geteuid().is_root() {
        let error = config(text, &[]).unwrap_err();
        assert!(error.starts_with("w.conf:1: user = 4_000_000_000: needs root"), "{error}");
        return;
    }
    let config = config(text, &[]).unwrap();
    let id = |uid: Option<Uid>| uid.map_or(0, Uid::as_raw);
    let ids = config.pools.iter().map(|pool| (&*pool.name, id(pool.user), pool.groups[0].as_raw()));
    assert_eq!(
        ids.collect::<Vec<_>>(),
        [
            ("default", 4_000_000_000, 4_000_000_001),
            ("a", 4_000_000_000, 4_000_000_001),
            ("b", 4_000_000_000, 9),
            ("c", 5, 6)
        ]
    );
}

#[test]
fn the_root_of_workers_has_what_they_need() {
    if !geteuid().is_root() {
        assert!(config("", &["chroot=/"]).unwrap_err().contains("-o chroot=/: needs root"));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let error = config("", &[&format!("chroot={}", root.display())]).unwrap_err();
    assert!(error.contains("expected a mounted proc: mount -t proc proc "), "{error}");
    // Not proc, but enough for the check.
    std::fs::create_dir_all(root.join("proc/self")).unwrap();
    std::fs::write(root.join("proc/self/maps"), "").unwrap();
    let handlers = root.join("h");
    std::fs::create_dir(&handlers).unwrap();
    let args = |handlers: &str| {
        let line = [format!("chroot={}", root.display()), format!("websock_handlers={handlers}")];
        resolve::load(given(&line.each_ref().map(String::as_str)), None, None).map(|(config, _)| config)
    };
    let error = args("/tmp").unwrap_err().to_string();
    assert!(error.starts_with("-o websock_handlers=/tmp: expected a directory below chroot "), "{error}");
    let config = args(handlers.join(".").to_str().unwrap()).unwrap();
    assert_eq!(config.inside(&config.handlers), std::path::Path::new("/h"));
    assert_eq!(config.inside("/elsewhere".as_ref()), std::path::Path::new("/elsewhere"));
}

#[test]
fn landlock_paths() {
    assert!(config("", &[]).unwrap().landlock.is_none());
    let text = "landlock = true\nlandlock_read = ['/etc', '/usr']\nlandlock_write = '/tmp'\n";
    let landlock = config(text, &[]).unwrap().landlock.unwrap();
    assert_eq!((landlock.read, landlock.write), (vec!["/etc".into(), "/usr".into()], vec!["/tmp".into()]));
}

#[test]
fn a_handler_has_the_settings_of_the_server_by_default() {
    let text = "max_message = '2K'\nidle_timeout = '10m'\ndeflate_level = 3\n\
                [handler.'/a']\nmax_message = 100\nping_interval = '5s'\nmax_message_rate = 7\ndeflate = false\n\
                max_connections = 3\nresources = ['/room/*', '/other']\n[handler.'/b']\n";
    let config = config(text, &[]).unwrap();
    let [a, b, none] = ["/a", "/b", "/none"].map(|resource| config.handler(resource));
    assert_eq!((a.limits.message, a.limits.frame, a.limits.idle.as_secs()), (100, 100, 600));
    assert_eq!((a.limits.ping_interval.as_secs(), a.message_rate, a.connections), (5, 7, Some(3)));
    assert_eq!((a.deflate.enabled, a.deflate.level), (false, 3));
    assert_eq!((b, b.limits.message, b.limits.frame), (none, 2048, 2048));
    assert_eq!(config.resources["/room/*"], "/a");
    fails(
        "[handler.'/a']\nresources = '/x'\n[handler.'/b']\nresources = '/x'\n",
        "w.conf:4: resources: /x is already a resource of /a",
    );
    fails(
        "[handler.'/a']\nresources = 'x'\n",
        "w.conf:2: resources = 'x': expected a resource such as /room, or /room/* for all below it",
    );
}

#[test]
fn listeners_have_their_own_settings() {
    use crate::config::{Console, ListenerSettings};
    let text = "queue = 5\ntrust_proxy = '10.0.0.0/8'\n\
                [[listener]]\naddress = 'unix:/run/s'\nmode = '0660'\ngroup = 7\nproxy_protocol = true\n\
                [[listener]]\naddress = '[::1]:80'\nqueue = 6\nconsole = false\n";
    let found = config(text, &[]).unwrap();
    let listen: Vec<String> = found.listen.iter().map(Listen::to_string).collect();
    assert_eq!(listen, ["unix:/run/s", "[::1]:80"]);
    let [unix, tcp] = [0, 1].map(|at| found.listener(Some(&found.listen[at])));
    assert_eq!((unix.binding.backlog, unix.binding.mode), (5, Some(0o660)));
    assert_eq!(unix.binding.group.map(|group| group.as_raw()), Some(7));
    assert!(unix.proxy_protocol && unix.console == Console::Local);
    let expected = ListenerSettings { console: Console::Never, ..ListenerSettings::default() };
    let backlog = tcp.binding.backlog;
    assert_eq!(
        (ListenerSettings { binding: std::default::Default::default(), ..tcp.clone() }, backlog),
        (expected, 6)
    );
    assert!(!found.listener(None).proxy_protocol);
    let both = config(text, &["server_host=::2"]).unwrap();
    assert_eq!(both.listen.len(), 3);
    for (text, expected) in [
        ("[[listener]]", "1: listener: expected an address"),
        ("[listener]", "1: listener: expected tables [[listener]], not a table"),
        (
            "[[listener]]\naddress = '::1'",
            "2: address = '::1': expected HOST:PORT, [IPV6]:PORT or unix:/PATH",
        ),
        ("[[listener]]\naddress = 'a:1'\nmode = '0660'", "3: mode: needs an address unix:/PATH"),
        (
            "[[listener]]\naddress = 'unix:/s'\nmode = '888'",
            "3: mode = '888': expected permissions such as 0660",
        ),
        (
            "[[listener]]\naddress = 'a:1'\n[[listener]]\naddress = 'a:1'",
            "4: address: a:1 already has a table",
        ),
        ("[[listener]]\naddress = 'a:1'\nport = 1", "3: port: no such key, expected one of server_host"),
    ] {
        let error = config(text, &[]).unwrap_err();
        assert!(error.starts_with(&format!("w.conf:{expected}")) || text.contains("port = 1"), "{error}");
    }
}

#[test]
fn invalid_landlock_paths() {
    fails("landlock_read = '/etc'\n", "w.conf:1: landlock_read: needs landlock");
    fails(
        "landlock = true\nlandlock_write = ['/tmp', '/nowhere']\n",
        "w.conf:2: landlock_write: /nowhere: expected a file or directory",
    );
}

/// The settings of a configuration file and a command line.
fn settings(text: &str, args: &[&str]) -> Settings {
    config(text, args).unwrap().log
}

#[test]
fn without_options_the_log_is_text_on_standard_error() {
    let expected = Settings {
        level: Level::Info,
        destination: Destination::Stderr,
        format: Format::Text,
        access: None,
        fields: Vec::new(),
        rotation: Rotation { size: 0, count: 5 },
    };
    assert_eq!(settings("", &[]), expected);
}

#[test]
fn log_target_overrides_log_file() {
    let destination = |args: &[&str]| settings("log_file = 'l'", args).destination;
    assert_eq!(destination(&[]), Destination::File(std::path::absolute("l").unwrap()));
    assert_eq!(destination(&["log_target=stderr"]), Destination::Stderr);
    assert_eq!(destination(&["log_target=syslog"]), Destination::Syslog("/dev/log".into()));
    let journald = Destination::Journald("/run/systemd/journal/socket".into());
    assert_eq!(destination(&["log_target=journald"]), journald);
    assert_eq!(destination(&["log_target=journald", "log_socket=/s"]), Destination::Journald("/s".into()));
}

#[test]
fn options_of_mod_pywebsocket() {
    let settings = settings("", &["log_max=1K", "log_count=7", "log_level=warning"]);
    assert_eq!(settings.rotation, Rotation { size: 1024, count: 7 });
    assert_eq!(settings.level, Level::Warn);
}

#[test]
fn the_access_log() {
    let text = "access_log = '-'\nlog_format = 'json'\nlog_max = '1M'\nlog_count = 1\n\
                [handler.'/a']\nlog_level = 'fine'\n[handler.'/b']\n";
    let found = settings(text, &[]);
    assert_eq!((found.access, found.format), (Some(AccessLog::Log), Format::Json));
    assert_eq!(found.rotation, Rotation { size: 1 << 20, count: 1 });

    let file = settings(text, &["access_log=/a"]).access;
    assert_eq!(file, Some(AccessLog::File("/a".into())));
}

const SCOPES: [Scope; 4] = [Scope::Server, Scope::Handler, Scope::Listener, Scope::Pool];

#[test]
fn names_are_unique_in_a_scope() {
    for scope in SCOPES {
        let mut names = BTreeSet::new();
        assert!(in_scope(scope).all(|setting| names.insert(setting.name)), "{scope:?}: {names:?}");
    }
}

#[test]
fn defaults_are_valid() {
    for setting in SCOPES.into_iter().flat_map(in_scope) {
        assert_eq!(setting.assign_default(&mut Draft::default()), Ok(()), "{}", setting.name);
    }
}

#[test]
fn texts_have_one_form() {
    for setting in SCOPES.into_iter().flat_map(in_scope) {
        let Setting { name, help, more, .. } = setting;
        assert!(!help.ends_with('.') && help.starts_with(|c: char| c.is_uppercase()), "{name}: {help}");
        assert!(more.is_empty() || more.ends_with('.') || more.ends_with("El"), "{name}: {more}");
        let fits = setting.flag == Flag::No || help.len() <= 50;
        assert!(fits, "{name}: its line in --help is too long");
    }
}

#[test]
fn only_the_server_has_options() {
    for setting in SCOPES.into_iter().flat_map(in_scope) {
        assert!(setting.flag == Flag::No || setting.is_in(Scope::Server), "{}", setting.name);
    }
}

#[test]
fn directories_of_programs() {
    let user = if geteuid().is_root() { "cgi_user = 'nobody'\n" } else { "" };
    let text = format!("document_root = '/'\ncgi_paths = ['/etc,/usr/lib/', 'usr']\n{user}");
    let cgi = config(&text, &[]).unwrap().cgi.unwrap();
    assert_eq!(cgi.directories, ["etc", "usr/lib", "usr"].map(std::path::PathBuf::from));
    assert_eq!((cgi.processes, cgi.timeout.as_secs(), cgi.body, cgi.output), (16, 30, 1 << 20, 64 << 20));
    assert_eq!(cgi.user.is_some(), geteuid().is_root());
    assert!(config("document_root = '/'\n", &[]).unwrap().cgi.is_none());
    let expected = "expected directories relative to the document root, such as /cgi-bin";
    for wrong in ["/", "../x", "a/../b", "a,"] {
        fails(&format!("cgi_paths = '{wrong}'\n"), &format!("w.conf:1: cgi_paths = '{wrong}': {expected}"));
    }
    fails("cgi_paths = 'a'\n", "w.conf:1: cgi_paths: needs document_root");
    // One that is not there, such as a path that contains the document root twice.
    let missing = "there is no directory /usr/usr: paths are relative to the document root";
    fails(
        "document_root = '/usr'\ncgi_paths = '/usr'\n",
        &format!("w.conf:2: cgi_paths = '/usr': {missing}"),
    );
    if geteuid().is_root() {
        let root = "needs cgi_user or user: programs do not run as root";
        fails("document_root = '/'\ncgi_paths = 'etc'\n", &format!("w.conf:2: cgi_paths: {root}"));
    }
}
