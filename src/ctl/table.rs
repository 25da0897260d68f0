//! Columns of text. Numbers stand at the right of theirs, text at the left; control characters, which may have come
//! from a peer, are not passed on to a terminal.

use crate::log::Escaped;

/// A table with a line of titles.
pub struct Table {
    /// Titles; those that end in `>` are of columns of numbers.
    titles: Vec<&'static str>,
    rows: Vec<Row>,
}

struct Row {
    cells: Vec<String>,
    stands_out: bool,
}

impl Table {
    /// An empty one with these titles, which have spaces between.
    pub fn new(titles: &'static str) -> Self {
        Self { titles: titles.split(' ').collect(), rows: Vec::new() }
    }

    /// Adds a line.
    pub fn row<const N: usize>(&mut self, cells: [String; N], stands_out: bool) {
        let cells = cells.into_iter().map(|cell| Escaped(&cell).to_string()).collect();
        self.rows.push(Row { cells, stands_out });
    }

    /// The text, with lines that stand out in bold where that is wanted.
    pub fn text(&self, bold: bool) -> String {
        let titles: Vec<String> =
            self.titles.iter().map(|title| title.trim_end_matches('>').to_owned()).collect();
        let rows = self.rows.iter().map(|row| &row.cells);
        let widths: Vec<usize> = (0..titles.len())
            .map(|column| {
                let cells = rows.clone().chain([&titles]).filter_map(|cells| cells.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let line = |cells: &[String]| {
            let cells = cells.iter().zip(&widths).zip(&self.titles);
            let cells = cells.map(|((cell, &width), title)| match title.ends_with('>') {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let mut text = line(&titles) + "\n";
        for row in &self.rows {
            let line = line(&row.cells);
            text += &if bold && row.stands_out { format!("\x1b[1m{line}\x1b[0m\n") } else { line + "\n" };
        }
        text
    }
}

/// Bytes for people: `812`, `3.4K`, `120M`.
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["", "K", "M", "G"] {
        if value < 1000.0 {
            let digits = usize::from(!unit.is_empty() && value < 99.95);
            return format!("{value:.digits$}{unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1}T")
}

/// Seconds for people, the two largest units: `0.3s`, `59s`, `2m 3s`, `5h 0m`, `3d 4h`.
pub fn time(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..10 => format!("{seconds:.1}s"),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m {}s", whole / 60, whole % 60),
        3600..86400 => format!("{}h {}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d {}h", whole / 86400, whole / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new("NAME COUNT> WHAT");
        table.row(["default/0".into(), "7".into(), String::new()], false);
        table.row(["a".into(), "123456".into(), "x\x1b[2Jy\n".into()], true);
        assert_eq!(
            table.text(false),
            "NAME        COUNT  WHAT\n\
             default/0       7\n\
             a          123456  x\\u{1b}[2Jy\\n\n"
        );
        assert!(table.text(true).ends_with("\n\x1b[1ma          123456  x\\u{1b}[2Jy\\n\x1b[0m\n"));
    }

    #[test]
    fn numbers_for_people() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1.0K"), (1536, "1.5K"), (200 << 20, "200M"), (3 << 40, "3.0T")]
        {
            assert_eq!(bytes(number), text);
        }
        for (seconds, text) in [
            (0.0, "0.0s"),
            (0.26, "0.3s"),
            (59.9, "59s"),
            (123.0, "2m 3s"),
            (18000.0, "5h 0m"),
            (273_601.0, "3d 4h"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }
}
