//! `wshd check FILE...`: loads handlers and starts them as a worker would, each in a probe of its own, and tells what they
//! are and what is wrong with them. Binds nothing and serves nothing.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::message::{Offer, Request};
use super::probe::Report;
use super::probes::Probes;
use super::scan::SUFFIX;
use crate::exit::Exit;

/// Checks the files and reports to `out`, in their order; what they themselves write to standard error goes to `log`.
pub fn check(
    files: &[PathBuf],
    mut probes: Probes,
    out: &mut impl Write,
    log: &mut impl Write,
) -> io::Result<Exit> {
    for (number, file) in files.iter().enumerate() {
        let file = file.clone().into();
        probes.push(number, Request { file, settings: Vec::new(), start: true, confinement: None });
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
