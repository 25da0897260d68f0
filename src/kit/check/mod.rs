//! `wshd check FILE...`: describes handlers and reports errors in them. Loads and starts each as a worker would, in a
//! process of its own and with its settings in a configuration, and examines its file ([`elf`]). The processes are
//! confined, unless the handlers are trusted.

mod elf;
mod faults;
mod functions;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use crate::config::Config;
use crate::confine::Confinement;
use crate::exit::Exit;
use crate::ffi::plugin::Style;
use crate::ffi::raw;
use crate::handlers::message::{Offer, Request};
use crate::handlers::probe::{Report, own, probe};
use crate::handlers::scan::{self, SUFFIX, Scan, is_path_byte};
use crate::kit::host::process;
use crate::log::Escaped;

/// The options of the command.
#[derive(Debug)]
pub struct Check {
    /// Handlers, and directories of handlers.
    pub files: Vec<PathBuf>,
    /// Report as one JSON array.
    pub json: bool,
    /// Count warnings as faults.
    pub strict: bool,
    /// Also serve them to peers that misbehave.
    pub faults: bool,
    /// Do not confine them.
    pub trusted: bool,
}

/// Something about a handler that its author should know.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The severity.
    level: Level,
    /// The name of the rule, for programs.
    rule: &'static str,
    /// What was found, and what to do.
    message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, strum::Display)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
enum Level {
    Note,
    Warning,
    /// It ends workers.
    Fault,
}

impl Finding {
    fn note(rule: &'static str, message: impl Into<String>) -> Self {
        Finding { level: Level::Note, rule, message: message.into() }
    }

    fn fault(rule: &'static str, message: impl Into<String>) -> Self {
        Finding { level: Level::Fault, rule, message: message.into() }
    }

    fn warning(rule: &'static str, message: impl Into<String>) -> Self {
        Finding { level: Level::Warning, rule, message: message.into() }
    }
}

/// A handler that was checked.
struct Checked {
    file: PathBuf,
    report: Report,
    findings: Vec<Finding>,
}

impl Check {
    /// Checks the files and directories and reports to `out`, in order. What handlers write to standard error goes to
    /// `log`.
    pub fn run(
        &self,
        config: Option<&Config>,
        out: &mut impl Write,
        log: &mut impl Write,
    ) -> io::Result<Exit> {
        process::adopt_orphans()?;
        let files = expand(&self.files, log)?;
        let confinement = (!self.trusted).then(Confinement::of_untrusted);
        let mut all = load(&files, config, confinement.as_ref());
        if self.faults {
            inject_faults(&mut all, config, confinement.as_ref())?;
        }
        for Checked { file, report, .. } in all.iter().filter(|_| !self.json) {
            for line in report.log.lines() {
                writeln!(log, "{}: {line}", file.display())?;
            }
        }
        match self.json {
            true => writeln!(out, "{}", serde_json::Value::Array(all.iter().map(object).collect()))?,
            false => all.iter().try_for_each(|checked| describe(checked, out))?,
        }
        out.flush()?;
        let least = if self.strict { Level::Warning } else { Level::Fault };
        let is_wrong = |checked: &Checked| {
            checked.report.fault.is_some() || checked.findings.iter().any(|finding| finding.level >= least)
        };
        Ok(if all.iter().any(is_wrong) { Exit::Check } else { Exit::Ok })
    }
}

/// Replaces directories by the handlers in them.
fn expand(named: &[PathBuf], log: &mut impl Write) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in named {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let scan = Scan { root: path, scan_dir: None, allow_outside: true, trusted_owner: None };
        let (found, skipped) = scan::scan(scan).map_err(io::Error::other)?;
        for skipped in skipped {
            writeln!(log, "{skipped}; skipped")?;
        }
        if found.is_empty() {
            writeln!(log, "{}: no file there ends in {SUFFIX}", path.display())?;
        }
        files.extend(found.into_iter().map(|found| found.file));
    }
    Ok(files)
}

/// Loads and starts each handler, and examines its file.
fn load(files: &[PathBuf], config: Option<&Config>, confinement: Option<&Confinement>) -> Vec<Checked> {
    let request = |file: &PathBuf| {
        let settings = config.and_then(|config| config.settings.get(&resource(file, Some(config))).cloned());
        let (settings, file) = (settings.unwrap_or_default(), file.clone().into());
        Request { file, settings, start: true, confinement: confinement.cloned() }
    };
    let reports = probe(&own(), files.iter().map(request).collect(), &|| true).unwrap_or_default();
    process::kill_children();
    let checked = |(file, report): (&PathBuf, Report)| {
        let mut findings = report.offer.as_ref().map(|offer| table_findings(file, offer)).unwrap_or_default();
        let is_event = report.offer.as_ref().is_none_or(|offer| offer.style == Style::Event);
        findings.extend(elf::findings(file, is_event));
        Checked { file: file.clone(), report, findings }
    };
    files.iter().zip(reports).map(checked).collect()
}

/// Runs the fault tests on the handlers that load.
fn inject_faults(
    all: &mut [Checked],
    config: Option<&Config>,
    confinement: Option<&Confinement>,
) -> io::Result<()> {
    let dir = tempfile::Builder::new().prefix("wshd-check.").tempdir()?;
    for (number, checked) in all.iter_mut().filter(|checked| checked.report.fault.is_none()).enumerate() {
        let resource = resource(&checked.file, config);
        let dir = dir.path().join(number.to_string());
        let found =
            faults::findings(&dir, &checked.file, resource.trim_start_matches('/'), config, confinement);
        match found {
            Ok(found) => checked.findings.extend(found),
            Err(why) => checked.findings.push(Finding::fault("serve", why)),
        }
    }
    Ok(())
}

/// The resource that a file would serve: its path below the handler directory, or, if it is elsewhere, its name.
fn resource(file: &Path, config: Option<&Config>) -> String {
    let real = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let root = config.and_then(|config| config.handlers.canonicalize().ok());
    let below = root.and_then(|root| real.strip_prefix(root).ok());
    let below = below.or(real.file_name().map(Path::new)).unwrap_or(&real);
    let name = below.to_string_lossy();
    // A new version may be called chat_wsh.so.new.
    format!("/{}", name.rsplit_once(SUFFIX).map_or(&*name, |(name, _)| name))
}

/// Findings about the file's name and the table.
fn table_findings(file: &Path, offer: &Offer) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = file.file_name().unwrap_or_default().as_encoded_bytes();
    if !name.ends_with(SUFFIX.as_bytes()) {
        let what = format!("its name does not end in {SUFFIX}: a server will not find it");
        findings.push(Finding::note("name", what));
    } else if !name.iter().copied().all(is_path_byte) {
        findings.push(Finding::note("name", "no request can name it: a server will not serve it"));
    }
    let ((_, minor), ours) = (offer.abi_version(), raw::WS_ABI & 0xffff);
    if minor > ours {
        let what = format!(
            "made for ABI 1.{minor}, this server has 1.{ours}: functions that it lacks return WS_E_UNSUPPORTED, \
             callbacks that it lacks are not called"
        );
        findings.push(Finding::note("abi", what));
    }
    let expected = size_of::<raw::ws_handler>();
    if minor == ours && offer.size != expected {
        let what = format!(
            "its table has {} bytes, expected {expected} for ABI 1.{minor}: was it made without WS_HANDLER?",
            offer.size
        );
        findings.push(Finding::warning("table", what));
    }
    let is_blocking = offer.style == Style::Blocking;
    let is_strange =
        |callback: &&String| is_blocking && matches!(callback.as_str(), "on_writable" | "on_drain");
    for callback in offer.callbacks.iter().filter(is_strange) {
        let what = format!("{callback} is never called in the {} style: see ws_receive()", offer.style);
        findings.push(Finding::warning("style", what));
    }
    if !is_blocking && offer.flags & raw::WS_RESUMABLE != 0 {
        let what = "WS_RESUMABLE has no effect in the event style: its connections can always move";
        findings.push(Finding::note("style", what));
    }
    findings
}

fn describe(Checked { file, report, findings, .. }: &Checked, out: &mut impl Write) -> io::Result<()> {
    match &report.fault {
        None => writeln!(out, "{}: ok", file.display())?,
        Some(fault) => writeln!(out, "{}: {fault}", file.display())?,
    }
    if let Some(offer) = &report.offer {
        let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
        let (major, minor) = offer.abi_version();
        writeln!(out, "    name       {}", Escaped(&offer.name))?;
        writeln!(out, "    version    {}", or_none(Escaped(&offer.version).to_string()))?;
        writeln!(out, "    abi        {major}.{minor}")?;
        writeln!(out, "    style      {}", offer.style)?;
        writeln!(out, "    flags      {}", or_none(offer.flag_names().join(" ")))?;
        writeln!(out, "    protocols  {}", or_none(offer.protocols.join(", ")))?;
    }
    for Finding { level, message, .. } in findings {
        writeln!(out, "    {level:<10} {}", Escaped(message))?;
    }
    Ok(())
}

/// The JSON object of a handler.
fn object(Checked { file, report, findings, .. }: &Checked) -> serde_json::Value {
    json!({
        "file": file.to_string_lossy(),
        "fault": report.fault,
        "handler": report.offer,
        "findings": findings,
        "log": report.log,
    })
}
