//! `wshd check FILE...`: loads handlers and starts them as a worker would, each in a probe of its own and with the settings
//! that a configuration has for it, and tells what they are and what is wrong with them. Binds nothing and serves nothing.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::message::{Offer, Request};
use super::probe::Report;
use super::probes::Probes;
use super::scan::{self, SUFFIX, Scan};
use crate::config::Config;
use crate::exit::Exit;

/// Checks the files, and those in directories, and reports to `out`, in their order; what they themselves write to
/// standard error goes to `log`.
pub fn check(
    named: &[PathBuf],
    config: Option<&Config>,
    mut probes: Probes,
    out: &mut impl Write,
    log: &mut impl Write,
) -> io::Result<Exit> {
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
    for (number, file) in files.iter().enumerate() {
        let settings = config.and_then(|config| config.settings.get(&resource(file, config)).cloned());
        let (file, settings) = (file.clone().into(), settings.unwrap_or_default());
        probes.push(number, Request { file, settings, start: true, confinement: None });
    }
    probes.finish();
    let mut reports: BTreeMap<usize, Report> = BTreeMap::new();
    while let Some((number, report)) = probes.known() {
        reports.insert(number, report);
    }
    let mut exit = Exit::Ok;
    for (file, Report { offer, fault, log: said }) in files.iter().zip(reports.into_values()) {
        for line in said.lines() {
            writeln!(log, "{}: {line}", file.display())?;
        }
        match &fault {
            None => writeln!(out, "{}: ok", file.display())?,
            Some(fault) => {
                exit = Exit::Check;
                writeln!(out, "{}: {fault}", file.display())?;
            }
        }
        if let Some(offer) = offer {
            describe(file, &offer, out)?;
        }
    }
    out.flush()?;
    Ok(exit)
}

/// The resource that a file would serve: by its place below the handler directory, and elsewhere, such as before it is
/// put there, by its name.
fn resource(file: &Path, config: &Config) -> String {
    let real = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let root = config.handlers.canonicalize().unwrap_or_else(|_| config.handlers.clone());
    let below = real.strip_prefix(root).ok().or(real.file_name().map(Path::new)).unwrap_or(&real);
    let name = below.to_string_lossy();
    // Also of a new file beside the old one, such as chat_wsh.so.new.
    format!("/{}", name.rsplit_once(SUFFIX).map_or(&*name, |(name, _)| name))
}

fn describe(file: &Path, offer: &Offer, out: &mut impl Write) -> io::Result<()> {
    let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    let (major, minor) = offer.abi_version();
    writeln!(out, "    name       {}", offer.name.escape_debug())?;
    writeln!(out, "    version    {}", or_none(offer.version.escape_debug().to_string()))?;
    writeln!(out, "    abi        {major}.{minor}")?;
    writeln!(out, "    style      {}", offer.style)?;
    writeln!(out, "    flags      {}", or_none(offer.flag_names().join(" ")))?;
    writeln!(out, "    protocols  {}", or_none(offer.protocols.join(", ")))?;
    if !file.as_os_str().as_encoded_bytes().ends_with(SUFFIX.as_bytes()) {
        writeln!(out, "    note       its name does not end in {SUFFIX}: a server will not find it")?;
    }
    Ok(())
}
