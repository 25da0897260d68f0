//! Examines the ELF file of a handler without running it. Malformed files are errors.

use std::path::Path;

use object::elf::{
    DT_RPATH, DT_RUNPATH, FileHeader64, PF_X, PT_GNU_STACK, SHF_WRITE, SHT_DYNSYM, STB_GNU_UNIQUE, STV_HIDDEN,
};
use object::endian::Endianness;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym};

use super::Finding;
use super::functions::HARMS;
use crate::ffi::raw;

/// The largest file that is examined; bytes.
const MAX_FILE: u64 = 1 << 30;

/// Symbols that every handler has.
const OWN: [&str; 2] = [raw::ENTRY_SYMBOL, "ws_host_"];

/// Findings about the file. An unreadable file was reported when it was loaded.
pub fn findings(file: &Path, is_event: bool) -> Vec<Finding> {
    let is_small = file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_FILE);
    let Some(bytes) = is_small.then(|| std::fs::read(file).ok()).flatten() else { return Vec::new() };
    match examine(&bytes, is_event) {
        Ok(findings) => findings,
        Err(error) => vec![Finding::warning("file", format!("cannot be examined: {error}"))],
    }
}

fn examine(bytes: &[u8], is_event: bool) -> object::read::Result<Vec<Finding>> {
    let header = FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, bytes)?;
    let mut findings = Vec::new();

    let (mut imports, mut exports, mut unique) = (Vec::new(), Vec::new(), Vec::new());
    let symbols = sections.symbols(endian, bytes, SHT_DYNSYM)?;
    for (index, symbol) in symbols.enumerate() {
        let name = String::from_utf8_lossy(symbol.name(endian, symbols.strings())?).into_owned();
        if name.is_empty() {
            continue;
        }
        if symbol.is_undefined(endian) {
            imports.push(name);
            continue;
        }
        let section = symbols.symbol_section(endian, symbol, index)?;
        let is_writable = section
            .and_then(|section| sections.section(section).ok())
            .is_some_and(|section| section.sh_flags(endian).contains(SHF_WRITE));
        if symbol.st_bind() == STB_GNU_UNIQUE && is_writable {
            unique.push(name);
        } else if symbol.st_visibility() != STV_HIDDEN && !OWN.contains(&name.as_str()) && !is_of_std(&name) {
            exports.push(name);
        }
    }
    for harm in HARMS.iter().filter(|harm| is_event || !harm.is_of_event_loop) {
        let called = imports.iter().filter(|name| harm.is_of(name));
        let called: Vec<String> = called.map(|name| format!("{name}()")).collect();
        if !called.is_empty() {
            findings.push(Finding::warning(harm.rule, format!("calls {}, {}", called.join(", "), harm.what)));
        }
    }
    if !unique.is_empty() {
        let what = format!(
            "shares {} with every other handler that has it (STB_GNU_UNIQUE): compile with -fno-gnu-unique",
            list(&unique)
        );
        findings.push(Finding::warning("unique", what));
    }
    if !exports.is_empty() {
        let what = format!("exports {} besides its entry: compile with -fvisibility=hidden", list(&exports));
        findings.push(Finding::note("exports", what));
    }
    let dynamic = sections.dynamic_table(endian, bytes)?;
    for entry in dynamic.iter() {
        if entry.tag == DT_RPATH || entry.tag == DT_RUNPATH {
            let path = String::from_utf8_lossy(dynamic.string(entry)?);
            let what =
                format!("searches {path} for libraries (RPATH): install them, or link them statically");
            findings.push(Finding::warning("rpath", what));
        }
    }
    let is_stack =
        |segment: &&object::elf::ProgramHeader64<Endianness>| segment.p_type(endian) == PT_GNU_STACK;
    if let Some(stack) = header.program_headers(endian, bytes)?.iter().find(is_stack)
        && stack.p_flags(endian).contains(PF_X)
    {
        let what = "asks for executable stacks, in all of the worker: link with -z noexecstack";
        findings.push(Finding::warning("execstack", what));
    }
    Ok(findings)
}

/// Whether a mangled name belongs to the C++ library, which no option hides: functions, constants, virtual tables and
/// type information of the namespace std, and the placement forms of new and delete.
fn is_of_std(name: &str) -> bool {
    const PLACEMENT: [&str; 4] = ["_ZnwmPv", "_ZnamPv", "_ZdlPvS_", "_ZdaPvS_"];
    ["_ZNSt", "_ZNKSt", "_ZZNSt", "_ZSt", "_ZTVSt", "_ZTISt", "_ZTSSt"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || PLACEMENT.contains(&name)
}

/// The first names, and the number of others.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
