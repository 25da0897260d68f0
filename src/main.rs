//! Arguments become a configuration, the supervisor runs it, its result is the exit code. Nothing else.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use wshd::cli::{self, Command};
use wshd::config::Config;
use wshd::exit::Exit;
use wshd::fleet::title;
use wshd::{log as sink, supervisor};

fn main() -> ExitCode {
    let exe_dir = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let command = cli::parse(std::env::args_os(), exe_dir);
    let exit = match command {
        Ok(Command::Serve(config)) => serve(*config),
        Ok(Command::Check(files)) => check(&files),
        Err(cli::Error::Usage(error)) => {
            let _ = error.print(); // if that fails there is nobody to tell
            if error.use_stderr() { Exit::Usage } else { Exit::Ok }
        }
        Err(error @ cli::Error::Config(_)) => failed(Exit::Config, &error),
    };
    exit.into()
}

fn serve(config: Config) -> Exit {
    supervisor::spawn::close_inherited();
    if let Err(error) = sink::start(&config.log) {
        let path = config.log.file.unwrap_or_default();
        return failed(Exit::Config, &format_args!("--log-file {}: {error}", path.display()));
    }
    title::prepare();
    supervisor::run(config)
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
