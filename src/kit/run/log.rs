//! The server's log on a terminal.

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};

/// Standard error, in colour if it is a terminal and `NO_COLOR` is not set.
pub struct Terminal {
    is_coloured: bool,
}

impl Terminal {
    /// Checks what standard error is.
    pub fn new() -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { is_coloured: io::stderr().is_terminal() && !no_colour }
    }

    /// Prints a line.
    pub fn print(&self, line: &str) {
        let style = if self.is_coloured { style_of(line) } else { Style::new() };
        let _ = writeln!(io::stderr(), "{style}{line}{style:#}"); // an error cannot be reported
    }
}

/// The style for the level, which is the second word of a log line. Lines printed by a handler have none.
fn style_of(line: &str) -> Style {
    match line.split_whitespace().nth(1).map(|word| word.trim_end_matches(':')) {
        Some("critical" | "error") => AnsiColor::Red.on_default(),
        Some("warn") => AnsiColor::Yellow.on_default(),
        Some("debug" | "fine") => Style::new().dimmed(),
        _ => Style::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_gives_the_colour() {
        assert_eq!(style_of("2026-01-02T03:04:05.678Z error worker x"), AnsiColor::Red.on_default());
        assert_eq!(style_of("2026-01-02T03:04:05.678Z info  worker x"), Style::new());
        assert_eq!(style_of("printf of the handler"), Style::new());
        assert_eq!(style_of(""), Style::new());
    }
}
