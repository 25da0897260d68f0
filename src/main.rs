//! Arguments become a configuration, the supervisor runs it, its result is the exit code. Nothing else.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use wshd::cli::{self, Command};
use wshd::config::Config;
use wshd::exit::Exit;
use wshd::fleet::title;
use wshd::supervisor::upgrade::{Invocation, Predecessor};
use wshd::supervisor::{self, Origin};
use wshd::{ctl, log as sink};

fn main() -> ExitCode {
    let exe_dir = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    // The title will be written over the original.
    let invocation = Invocation::of_this_process();
    let args = invocation.args.clone();
    let read = move || cli::parse(args.clone(), exe_dir.clone());
    let exit = match read() {
        Ok(Command::Serve(config)) => serve(*config, invocation, read),
        Ok(Command::Check(files)) => check(&files),
        Ok(Command::Ctl(order)) => ctl::run(&order),
        Err(cli::Error::Usage(error)) => {
            let _ = error.print(); // if that fails there is nobody to tell
            if error.use_stderr() { Exit::Usage } else { Exit::Ok }
        }
        Err(error @ cli::Error::Config(_)) => failed(Exit::Config, &error),
    };
    exit.into()
}

fn serve(
    config: Config,
    invocation: Invocation,
    read: impl Fn() -> Result<Command, cli::Error> + 'static,
) -> Exit {
    let predecessor = Predecessor::from_environment();
    supervisor::spawn::close_inherited(predecessor.as_ref().map(Predecessor::raw));
    if let Err(error) = sink::start(&config.log) {
        return failed(Exit::Config, &error);
    }
    title::prepare();
    let reread = move || match read() {
        Ok(Command::Serve(config)) => Ok(*config),
        Ok(Command::Check(_) | Command::Ctl(_)) => Err("the command line does not serve".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    supervisor::run(config, Origin { reread: Box::new(reread), invocation, predecessor })
}

fn check(files: &[PathBuf]) -> Exit {
    match supervisor::check::check(files, &mut io::stdout().lock()) {
        Ok(exit) => exit,
        Err(error) => failed(Exit::Internal, &error),
    }
}

fn failed(exit: Exit, why: &dyn std::fmt::Display) -> Exit {
    eprintln!("wshd: {why}");
    exit
}
