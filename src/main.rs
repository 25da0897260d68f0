//! Parses the arguments, and runs the supervisor or a subcommand. The result is the exit code.

use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::ExitCode;

use wshd::cli::{self, Command};
use wshd::config::Config;
use wshd::exit::{Exit, Failure};
use wshd::fleet::process::title;
use wshd::fleet::process::wipe;
use wshd::handlers::program;
use wshd::kit::check::Check;
use wshd::service::daemonize::Daemon;
use wshd::service::{listen_fds, notify::Notify};
use wshd::supervisor::upgrade::{Invocation, Predecessor};
use wshd::supervisor::{self, Origin, dry_run, spawn};
use wshd::{ctl, log as sink};

#[global_allocator]
static ALLOCATOR: wipe::Wiping = wipe::Wiping;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == program::NAME[1]) {
        spawn::close_inherited(&[]);
        return program::run();
    }
    let exe_dir = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    // Copied now: the process title overwrites the arguments.
    let invocation = Invocation::of_this_process();
    let args = invocation.args.clone();
    let read = move || cli::parse(args.clone(), exe_dir.clone());
    let exit = match read() {
        Ok(Command::Serve(config)) => serve(*config, invocation, read),
        Ok(Command::Test(config)) => dry_run::dry_run(&config),
        Ok(Command::Check(check, config)) => check_files(&check, config.as_deref()),
        Ok(Command::Config(text)) => {
            let _ = io::stdout().write_all(text.as_bytes()); // the reader may have closed the pipe
            Exit::Ok
        }
        Ok(Command::Ctl(order)) => ctl::run(&order),
        Ok(Command::Kit(kit)) => return kit.run(),
        Ok(Command::Completions(shell)) => {
            let _ = io::stdout().write_all(&cli::completions(shell)); // the reader may have closed the pipe
            Exit::Ok
        }
        Err(cli::Error::Usage(error)) => {
            let _ = error.print(); // nothing to be done about a failure
            if error.use_stderr() { Exit::Usage } else { Exit::Ok }
        }
        Err(cli::Error::Settings(error)) => failed(error.exit(), &error),
    };
    exit.into()
}

fn serve(
    config: Config,
    invocation: Invocation,
    read: impl Fn() -> Result<Command, cli::Error> + 'static,
) -> Exit {
    if let Some(file) = config.file.as_ref().filter(|file| config.daemon.detach && file.is_relative()) {
        // It is read again in `/`.
        let why = format!("--config {}: expected an absolute path, since daemon is set", file.display());
        return failed(Exit::Config, &why);
    }
    let predecessor = Predecessor::from_environment();
    let notify = Notify::from_environment();
    let sockets = match listen_fds::take() {
        Ok(sockets) => sockets,
        Err(error) => return failed(Exit::Bind, &error),
    };
    let raw = sockets.iter().map(|passed| passed.fd.as_raw_fd());
    let kept = raw.chain(predecessor.as_ref().map(Predecessor::raw));
    spawn::close_inherited(&kept.collect::<Vec<_>>());
    let mut daemon = match Daemon::start(&config.daemon, predecessor.is_some()) {
        Ok(daemon) => daemon,
        Err(Failure(exit, why)) => return failed(exit, &why),
    };
    if let Err(error) = sink::start(&config.log) {
        let exit = failed(Exit::Config, &error);
        daemon.ended(exit);
        return exit;
    }
    config.ignored.iter().for_each(|warning| ::log::warn!("{warning}"));
    title::prepare();
    let reread = move || match read() {
        Ok(Command::Serve(config)) => Ok(*config),
        Ok(_) => Err("the command line has a subcommand".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let reread = std::rc::Rc::new(reread);
    supervisor::run(config, Origin { reread, invocation, predecessor, sockets, notify, daemon })
}

fn check_files(check: &Check, config: Option<&Config>) -> Exit {
    match check.run(config, &mut io::stdout().lock(), &mut io::stderr()) {
        Ok(exit) => exit,
        Err(error) => failed(Exit::Internal, &error),
    }
}

fn failed(exit: Exit, why: &dyn std::fmt::Display) -> Exit {
    eprintln!("wshd: {why}");
    exit
}
