//! `wshd check FILE...`: loads handlers as a worker would, each in a process of its own, and tells what they are
//! and what is wrong with them. Binds nothing and serves nothing.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::scan::SUFFIX;
use crate::exit::Exit;
use crate::ffi::probe::{self, Offer};

/// Checks the files and reports to `out`.
pub fn check(files: &[PathBuf], out: &mut impl Write) -> io::Result<Exit> {
    let mut exit = Exit::Ok;
    for file in files {
        let (offer, fault) = probe::check(file);
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
