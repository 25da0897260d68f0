//! What a probe is asked and what it answers: JSON, a line for each answer. Knows no process and no descriptor.
//!
//! An answer is read like a stranger's: the code of the plugin ran in the process that it comes from. Every line must
//! begin with the nonce of the question, a number that was in no descriptor and no argument while the plugin was
//! loaded. So what a plugin writes into descriptors that are not its own is never taken for an answer, and is named as
//! what it is. A plugin that looks for the nonce in the memory of its process can lie, about itself only: as it could
//! in its table.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use crate::confine::Confinement;
use crate::ffi::plugin::Style;
use crate::ffi::raw;

/// The longest line of an answer, in bytes.
pub const LONGEST_LINE: usize = 64 * 1024;

/// What a probe is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The plugin, as the probe sees it once it is confined.
    pub file: OsString,
    /// The settings of this handler, and of no other.
    pub settings: Vec<(String, String)>,
    /// Whether it is to be started as in a worker, too.
    pub start: bool,
    /// What the probe gives up before it loads the plugin.
    pub confinement: Option<Confinement>,
}

/// What a handler says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// For people and logs.
    pub name: String,
    /// May be empty.
    pub version: String,
    /// How it is called.
    pub style: Style,
    /// `ws_handler.flags`.
    pub flags: u32,
    /// `ws_handler.abi`.
    pub abi: u32,
    /// In order of preference.
    pub protocols: Vec<String>,
    /// Bytes of its table.
    pub size: usize,
    /// The names of the callbacks that are set.
    pub callbacks: Vec<String>,
}

impl Offer {
    /// The names of the flags; those that this version does not know as one number.
    pub fn flag_names(&self) -> Vec<String> {
        let known = [
            (raw::WS_KEEP_REQUEST, "WS_KEEP_REQUEST"),
            (raw::WS_STREAM, "WS_STREAM"),
            (raw::WS_NO_EXTENSIONS, "WS_NO_EXTENSIONS"),
            (raw::WS_RESUMABLE, "WS_RESUMABLE"),
        ];
        let unknown = known.iter().fold(self.flags, |flags, (flag, _)| flags & !flag);
        let set = known.iter().filter(|(flag, _)| self.flags & flag != 0);
        let mut names: Vec<String> = set.map(|(_, name)| (*name).to_owned()).collect();
        if unknown != 0 {
            names.push(format!("{unknown:#x} (unknown)"));
        }
        names
    }

    /// Major and minor version of the header that the handler was compiled with.
    pub fn abi_version(&self) -> (u32, u32) {
        (self.abi >> 16, self.abi & 0xffff)
    }
}

/// One line from a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It was loaded.
    Offer(Offer),
    /// It cannot serve, for this reason. The last line.
    Fault(String),
    /// `on_worker_start` returned this. The last line.
    Started(i32),
}

impl Answer {
    /// The line, with its end.
    pub fn to_line(&self, nonce: &str) -> Vec<u8> {
        // Strings and numbers always have a JSON form.
        let json = serde_json::to_string(self).unwrap_or_default();
        let line = format!("{nonce}{json}\n");
        match line.len() {
            ..=LONGEST_LINE => line.into_bytes(),
            length => {
                let why = format!("describes itself in {length} bytes, expected at most {LONGEST_LINE}");
                Answer::Fault(why).to_line(nonce)
            }
        }
    }
}

/// Bytes on their way to becoming answers.
#[derive(Debug)]
pub struct Answers {
    nonce: String,
    /// The line that is not complete; at most [`LONGEST_LINE`] bytes and what was read last.
    bytes: Vec<u8>,
}

impl Answers {
    /// Of a question with this nonce.
    pub fn new(nonce: String) -> Self {
        Self { nonce, bytes: Vec::new() }
    }

    /// Adds what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete answer, if there is one. An error: the beginning of what stands there, which is none.
    pub fn take(&mut self) -> Result<Option<Answer>, String> {
        let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') else {
            return if self.bytes.len() > LONGEST_LINE { Err(self.refuse()) } else { Ok(None) };
        };
        let line = self.bytes.get(..end).and_then(|line| line.strip_prefix(self.nonce.as_bytes()));
        match line.and_then(|json| serde_json::from_slice(json).ok()) {
            Some(answer) => {
                self.bytes.drain(..=end);
                Ok(Some(answer))
            }
            None => Err(self.refuse()),
        }
    }

    fn refuse(&mut self) -> String {
        const SHOWN: usize = 32;
        let bytes = std::mem::take(&mut self.bytes);
        let more = if bytes.len() > SHOWN { "..." } else { "" };
        format!("\"{}\"{more}", bytes.get(..SHOWN).unwrap_or(&bytes).escape_ascii())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NONCE: &str = "0123456789abcdef";

    fn offer() -> Offer {
        Offer {
            name: "ch\u{e4}t".into(),
            version: "1\n2".into(),
            style: Style::Blocking,
            flags: 3,
            abi: 0x1_0000,
            protocols: vec!["a".into(), "b".into()],
            size: 128,
            callbacks: vec!["transfer_data".into()],
        }
    }

    #[test]
    fn answers_are_read_however_they_are_cut() {
        let sent = [Answer::Offer(offer()), Answer::Started(-9)];
        let lines: Vec<u8> = sent.iter().flat_map(|answer| answer.to_line(NONCE)).collect();
        for size in 1..lines.len() {
            let mut answers = Answers::new(NONCE.to_owned());
            let mut found = Vec::new();
            for piece in lines.chunks(size) {
                answers.feed(piece);
                while let Some(answer) = answers.take().unwrap() {
                    found.push(answer);
                }
            }
            assert_eq!(found, sent);
            assert!(answers.bytes.is_empty());
        }
    }

    #[test]
    fn what_does_not_begin_with_the_nonce_is_no_answer() {
        let honest = Answer::Offer(offer()).to_line(NONCE);
        let forged = Answer::Offer(offer()).to_line("fedcba9876543210");
        for junk in [&b"\n"[..], b"{}\n", b"end\n", b"\xff\n", &honest[1..], &forged, b"0123456789abcdef\n"] {
            let mut answers = Answers::new(NONCE.to_owned());
            answers.feed(&[junk, &honest].concat());
            assert!(answers.take().unwrap_err().starts_with('"'));
        }
        let mut answers = Answers::new(NONCE.to_owned());
        answers.feed(b"no line");
        assert_eq!(answers.take(), Ok(None));
    }

    #[test]
    fn a_line_has_a_bound() {
        let mut answers = Answers::new(NONCE.to_owned());
        answers.feed(&vec![b'x'; LONGEST_LINE]);
        assert_eq!(answers.take(), Ok(None));
        answers.feed(b"x");
        assert!(answers.take().unwrap_err().starts_with("\"xxx"));
        let long = Offer { name: "x".repeat(LONGEST_LINE), ..offer() };
        let mut answers = Answers::new(NONCE.to_owned());
        answers.feed(&Answer::Offer(long).to_line(NONCE));
        let Ok(Some(Answer::Fault(why))) = answers.take() else { panic!("no fault") };
        assert!(why.contains("expected at most 65536"), "{why}");
    }
}
