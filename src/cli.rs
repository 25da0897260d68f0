//! The command line: the options of mod_pywebsocket and others that are often typed, `-o` for all settings, and the
//! subcommands. `settings` defines the options. Their names have `-` or, as in mod_pywebsocket, `_`.

mod control;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, FromArgMatches, Subcommand, ValueHint, value_parser};

pub use clap_complete::Shell;

use crate::config::Config;
use crate::ctl;
use crate::kit::Kit;
use crate::kit::check::Check;
use crate::settings::legacy::{IGNORED, Ignored};
use crate::settings::{self, Flag, Kind, Location, Scope, Setting, Values, effective::Effective, resolve};

/// The command to run.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Serve(Box<Config>),
    /// Test this configuration.
    Test(Box<Config>),
    /// Check these handlers, with their settings in a configuration.
    Check(Check, Option<Box<Config>>),
    /// Print this configuration.
    Config(String),
    /// Send a request to a running server.
    Ctl(Box<ctl::Order>),
    /// A command for authors of handlers.
    Kit(Kit),
    /// Print the completion script of this shell.
    Completions(Shell),
}

/// Why there is no command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is wrong, or asks for help or the version.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The settings are wrong.
    #[error(transparent)]
    Settings(#[from] settings::Error),
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Check a configuration, or handlers
    ///
    /// Without FILE the configuration is tested, as for a start: the options are those of the server. Each handler is
    /// loaded and started in a process of its own, with its settings in the configuration
    Check {
        /// Handlers, or directories of handlers
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Report on handlers as one JSON array
        #[arg(long, requires = "files")]
        json: bool,
        /// Count warnings about handlers as faults
        #[arg(long, requires = "files")]
        strict: bool,
        /// Also serve handlers to peers that misbehave
        #[arg(long, requires = "files")]
        faults: bool,
        /// Do not confine handlers: they may write files and use the network
        #[arg(long, requires = "files")]
        trusted: bool,
    },
    /// Print the configuration that these options make
    Config,
    /// Inspect or control a running server
    Ctl(control::Ctl),
    #[command(flatten)]
    Kit(Kit),
    /// Print the completion script of a shell
    Completions {
        /// The shell
        #[arg(value_enum, value_name = "SHELL")]
        shell: Shell,
    },
}

/// Parses a command line, whose first element is the program's name. `exe_dir` is the directory of the program, for the
/// default of the handler directory.
pub fn parse(args: impl IntoIterator<Item = OsString>, exe_dir: Option<PathBuf>) -> Result<Command, Error> {
    let line = normalize(args);
    let matches = command().try_get_matches_from(line).map_err(key_of_the_file)?;
    let load = |matches: &ArgMatches| -> Result<(Config, Effective), Error> {
        let file = matches.get_one::<PathBuf>("config").map(PathBuf::as_path);
        let (mut config, effective) = resolve::load(given(matches)?, file, exe_dir.clone())?;
        let is_given = |ignored: &&Ignored| {
            matches.try_contains_id(ignored.name).is_ok()
                && matches.value_source(ignored.name) == Some(ValueSource::CommandLine)
        };
        let warning = |ignored: &Ignored| ignored.warning(&format!("--{}", ignored.option()));
        config.ignored.splice(0..0, IGNORED.iter().filter(is_given).map(warning));
        Ok((config, effective))
    };
    let Some((_, own)) = matches.subcommand() else {
        let (config, _) = load(&matches)?;
        return Ok(match matches.get_flag("test") {
            true => Command::Test(Box::new(config)),
            false => Command::Serve(Box::new(config)),
        });
    };
    match Sub::from_arg_matches(&matches)? {
        Sub::Check { files, .. } if files.is_empty() => Ok(Command::Test(Box::new(load(own)?.0))),
        Sub::Check { files, json, strict, faults, trusted } => {
            let config = own.contains_id("config").then(|| load(own)).transpose()?;
            let line = given(own)?;
            if let (None, Some((name, _))) = (&config, line.iter().next()) {
                return Err(line
                    .wrong(name, "expected --config as well, whose settings handlers get")
                    .into());
            }
            let check = Check { files, json, strict, faults, trusted };
            Ok(Command::Check(check, config.map(|(config, _)| Box::new(config))))
        }
        Sub::Config => Ok(Command::Config(load(own)?.1.to_toml(true))),
        Sub::Ctl(ctl) => Ok(Command::Ctl(Box::new(ctl.into_order()?))),
        Sub::Kit(kit) => Ok(Command::Kit(kit)),
        Sub::Completions { shell } => Ok(Command::Completions(shell)),
    }
}

/// The table of options, for the parser, `--help` and completions.
pub fn command() -> clap::Command {
    let test = Arg::new("test").short('T').action(ArgAction::SetTrue).help("Test the configuration and exit");
    let version = Arg::new("version").long("version").action(ArgAction::Version).help("Print version");
    let ignored = IGNORED.iter().map(|ignored| {
        let arg = Arg::new(ignored.name).long(ignored.option()).hide(true);
        arg.action(if ignored.takes_value { ArgAction::Set } else { ArgAction::SetTrue })
    });
    let command = options(clap::Command::new("wshd"))
        .about("Serves WebSocket handlers, which are shared objects")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .args_conflicts_with_subcommands(true)
        .arg(test)
        .arg(version)
        .args(ignored)
        .override_usage("wshd [OPTION]...\n       wshd COMMAND ...");
    // The help of a subcommand shows its own options and --config; the server's options are hidden.
    let with_options = |command: clap::Command| {
        let own: Vec<_> = command.get_arguments().map(|arg| arg.get_id().clone()).collect();
        options(command).mut_args(|arg| {
            let is_shown = own.contains(arg.get_id()) || arg.get_id() == "config";
            arg.hide(!is_shown)
        })
    };
    let command = Sub::augment_subcommands(command)
        .mut_subcommand("check", with_options)
        .mut_subcommand("config", with_options);
    let help = help(&command);
    command.override_help(help)
}

/// Adds the options of the configuration.
fn options(command: clap::Command) -> clap::Command {
    let config = Arg::new("config").short('f').long("config").alias("config-file").value_name("FILE");
    let config =
        config.value_parser(value_parser!(PathBuf)).help("Read settings from this file, see wshd.conf(5)");
    let setting = Arg::new("o").short('o').value_name("NAME=VALUE").action(ArgAction::Append);
    let setting = setting.help("Set any key of wshd.conf(5)");
    let options = settings::in_scope(Scope::Server).filter(|setting| setting.flag != Flag::No).map(option);
    command.arg(config).arg(setting).args(options)
}

/// The help: one line for each option, two if its name is long.
fn help(command: &clap::Command) -> String {
    const COLUMN: usize = 30;
    let mut text = "Serves WebSocket handlers, which are shared objects\n\n\
                    Usage: wshd [OPTION]...\n       wshd COMMAND ...    (see wshd COMMAND --help)\n\nCommands:\n"
        .to_owned();
    for sub in command.get_subcommands() {
        text += &format!("  {:12}{}\n", sub.get_name(), sub.get_about().unwrap_or_default());
    }
    text += "\nOptions:\n";
    let help = Arg::new("help").short('h').long("help").action(ArgAction::Help).help("Print help");
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()).chain([&help]) {
        let short = arg.get_short().map_or("    ".to_owned(), |letter| format!("-{letter}, "));
        let long = arg.get_long().map(|long| format!("--{long}"));
        let has_value = arg.get_action().takes_values() && !arg.is_require_equals_set();
        let value = has_value.then(|| arg.get_value_names()?.first()).flatten();
        let value = value.map_or(String::new(), |value| format!(" {value}"));
        let left = match long {
            Some(long) => format!("  {short}{long}{value}"),
            None => format!("  {}{value}", short.trim_end_matches([',', ' '])),
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        text += &match left.len() {
            0..COLUMN => format!("{left:COLUMN$}{help}\n"),
            _ => format!("{left}\n{:COLUMN$}{help}\n", ""),
        };
    }
    text + "\nOptions may be written with _ for -; --daemon=false turns an option off.  See wshd(8)."
}

/// The completion script of this shell.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "wshd", &mut script);
    script
}

/// Makes the option of a setting.
fn option(setting: &'static Setting) -> Arg {
    let arg =
        Arg::new(setting.name).long(setting.option()).value_name(setting.kind.value()).help(setting.help);
    let arg = match setting.flag {
        Flag::Short(letter) => arg.short(letter),
        Flag::Long | Flag::No => arg,
    };
    let arg = match setting.default {
        settings::Default::Is(default) if !matches!(setting.kind, Kind::Flag(_)) => {
            arg.help(format!("{} [{default}]", setting.help))
        }
        _ => arg,
    };
    match setting.kind {
        Kind::Flag(_) => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").hide_possible_values(true)
        }
        Kind::Path("DIR", _) => arg.value_hint(ValueHint::DirPath),
        Kind::Path(..) => arg.value_hint(ValueHint::FilePath),
        Kind::List(..) => arg.action(ArgAction::Append),
        _ => arg.allow_hyphen_values(matches!(setting.kind, Kind::Count(..))),
    }
}

/// The settings on the command line.
fn given(matches: &ArgMatches) -> Result<Values, Error> {
    let mut values = Values::default();
    for setting in settings::in_scope(Scope::Server).filter(|setting| setting.flag != Flag::No) {
        for text in matches.get_many::<String>(setting.name).into_iter().flatten() {
            values.add_on_line(setting, text, Location::Line(format!("--{}", setting.option())))?;
        }
    }
    for text in matches.get_many::<String>("o").into_iter().flatten() {
        values.add_option(text)?;
    }
    Ok(values)
}

/// An unknown option may be a setting without an option: the error says how to give it.
fn key_of_the_file(error: clap::Error) -> Error {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(arg)) if error.kind() == ErrorKind::UnknownArgument => {
            arg.trim_start_matches('-')
        }
        _ => return error.into(),
    };
    let name = unknown.split('=').next().unwrap_or_default().replace('-', "_");
    match settings::find(Scope::Server, &name) {
        Some(setting) => {
            let (option, value) = (setting.option(), setting.kind.value());
            settings::Error::Line(format!(
                "--{option}: give it as -o {name}={value}, or in the configuration file"
            ))
            .into()
        }
        None => error.into(),
    }
}

/// Replaces `_` by `-` in names of options, but not in values: `--a_b=c_d` becomes `--a-b=c_d`.
fn normalize(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut is_option = true;
    let normal = |arg: OsString| {
        is_option &= arg != "--";
        if !is_option || !arg.as_bytes().starts_with(b"--") {
            return arg;
        }
        let mut bytes = arg.into_vec();
        let name = bytes.iter().position(|b| *b == b'=').unwrap_or(bytes.len());
        bytes.iter_mut().take(name).filter(|b| **b == b'_').for_each(|b| *b = b'-');
        OsString::from_vec(bytes)
    };
    args.into_iter().map(normal).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
