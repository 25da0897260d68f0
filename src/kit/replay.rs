//! `wshd replay FILE`: runs a recording of `wshd ctl record` as a test, or converts a crash record (`crash_dir` in
//! wshd.conf(5)), which has the last message only, to a script and runs that.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;

use super::print;
use super::shell::quoted;
use crate::ctl::record::{Heading, MAX_FILE};
use crate::exit::Exit;
use crate::log::Escaped;
use crate::supervisor::crash_record::CrashRecord;

/// The first line of a script written here, which may be overwritten.
const MARK: &str = "# Made by wshd replay of ";

/// The command line.
#[derive(Debug, Args)]
pub struct Replay {
    /// A recording of wshd ctl record, or a crash record as in crash_dir
    record: PathBuf,
    /// The handler, as for wshd test [default: the file that the record names]
    file: Option<PathBuf>,
    /// Use the handler's settings in this server configuration
    #[arg(short = 'f', long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the script of a crash record to this file
    #[arg(long, value_name = "FILE", default_value = "replay.test")]
    script: PathBuf,
}

impl Replay {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode, String> {
        let shown = self.record.display();
        let text = read(&self.record).map_err(|error| format!("{shown}: {error}"))?;
        let (script, handler, resource) = match Heading::of(&text) {
            Some(Heading { handler, resource }) => (&self.record, Some(handler), Some(resource)),
            None => {
                let (handler, resource) = self.of_crash(&text).map_err(|why| format!("{shown}: {why}"))?;
                (&self.script, handler, resource)
            }
        };
        let file = self.file.clone().or(handler);
        let file = file.ok_or_else(|| format!("{shown}: the record names no handler: give its file"))?;
        let program = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
        let mut args: Vec<OsString> = Vec::new();
        for (option, value) in
            [("--resource", resource.map(OsString::from)), ("--config", self.config.clone().map(Into::into))]
        {
            args.extend(value.into_iter().flat_map(|value| [option.into(), value]));
        }
        args.extend([file.into(), script.into()]);
        let status = Command::new(&program).arg("test").args(&args).status();
        let status = status.map_err(|error| format!("wshd test: {error}"))?;
        let words = args.iter().map(|arg| quoted(&arg.to_string_lossy())).collect::<Vec<_>>().join(" ");
        let program = quoted(&program.to_string_lossy());
        print(&format!("wshd: under a debugger: gdb --args {program} test --no-fork {words}"));
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(code.map_or(Exit::Internal.into(), ExitCode::from))
    }

    /// Writes the script of a crash record. Returns the handler that crashed, and its resource.
    fn of_crash(&self, text: &str) -> Result<(Option<PathBuf>, Option<String>), String> {
        let record: CrashRecord = serde_json::from_str(text)
            .map_err(|error| format!("expected a recording or a crash record: {error}"))?;
        write(&self.script, &format!("{MARK}{}\n{}", self.record.display(), script(&record)?))
            .map_err(|why| format!("{}: {why}", self.script.display()))?;
        let resource = record.request.and_then(|request| request.resource);
        let path = resource.and_then(|resource| Some(resource.split('?').next()?.to_owned()));
        let path = path.filter(|path| path.len() > 1);
        Ok((record.handler.map(|handler| handler.file.into()), path))
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// The script: the request of the connection, and the message that was being handled.
fn script(record: &CrashRecord) -> Result<String, String> {
    let mut script = String::new();
    let place = record.handler.as_ref().map_or("no handler".to_owned(), |handler| {
        format!("{} of {}", handler.callback, Escaped(&handler.name))
    });
    // Writing to a String does not fail.
    let _ = writeln!(script, "# {}: crashed in {place}", record.time);
    let request = record.request.as_ref();
    let target = request.and_then(|request| request.resource.as_deref()).unwrap_or_default();
    let _ = writeln!(script, ">! open {target}");
    let headers = [
        ("Origin", request.and_then(|request| request.origin.as_deref())),
        ("Sec-WebSocket-Protocol", request.and_then(|request| request.subprotocol.as_deref())),
    ];
    for (name, value) in headers {
        let _ = value.map(|value| writeln!(script, "    {name}: {value}"));
    }
    if let Some(message) = &record.message {
        let bytes = message.bytes()?;
        if !message.complete {
            let _ = writeln!(
                script,
                "# The record has {} of {} bytes: see crash_bytes in wshd.conf(5).",
                bytes.len(),
                message.size
            );
        }
        let text = (message.kind == "text").then(|| String::from_utf8_lossy(&bytes));
        let _ = match text.map(|text| serde_json::to_string(&text)) {
            Some(text) => writeln!(script, ">! text {}", text.map_err(|error| error.to_string())?),
            None => writeln!(
                script,
                ">! binary {}",
                bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            ),
        };
    }
    script.push_str("= time passes 1s\n");
    Ok(script)
}

/// Overwrites a file only if this command wrote it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let is_ours = fs::read_to_string(path).is_ok_and(|before| before.starts_with(MARK));
    let mut options = File::options();
    options.write(true).truncate(true);
    let file = if is_ours { options.open(path) } else { File::create_new(path) };
    let exists = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => io::Error::other("it exists: choose another with --script"),
        _ => error,
    };
    file.map_err(exists)?.write_all(text.as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn script_of(json: &str) -> Result<String, String> {
        script(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_crash_record_becomes_a_script() {
        let record = r#"{"time": "T", "handler": {"name": "chat", "file": "/c_wsh.so", "callback": "on_message"},
            "request": {"resource": "/chat?a=1", "origin": "https://example.com", "subprotocol": null},
            "message": {"type": "text", "size": 3, "bytes": "YQpi", "complete": true}}"#;
        let expected = "# T: crashed in on_message of chat\n>! open /chat?a=1\n    Origin: https://example.com\n\
                        >! text \"a\\nb\"\n= time passes 1s\n";
        assert_eq!(script_of(record).unwrap(), expected);
        let binary = r#"{"time": "T", "handler": null, "request": null,
            "message": {"type": "binary", "size": 9, "bytes": "AP8=", "complete": false}}"#;
        let script = script_of(binary).unwrap();
        assert!(script.contains("has 2 of 9 bytes") && script.contains(">! binary 00ff\n"), "{script}");
    }
}
