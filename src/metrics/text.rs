//! The text formats OpenMetrics 1.0 and Prometheus 0.0.4, which differ in the names of families and in the end of the
//! text.

use std::fmt::{Display, Write};

use crate::fleet::memory::counters::handler::{BOUNDS, Times};

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus 0.0.4.
    Prometheus,
}

impl Format {
    /// The format for an Accept header: OpenMetrics if its quality is not below that of plain text.
    pub fn wanted(accept: &str) -> Self {
        let quality = |media: &str, version: &str| {
            let ranges = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let parameters =
                    parts.next().filter(|name| name.eq_ignore_ascii_case(media)).map(|_| parts)?;
                let mut quality = 1.0;
                for (name, value) in parameters.filter_map(|parameter| parameter.split_once('=')) {
                    match name.trim().to_ascii_lowercase().as_str() {
                        "q" => quality = value.trim().parse::<f32>().ok()?,
                        "version" if value.trim() != version => return None,
                        _ => {}
                    }
                }
                Some(quality)
            });
            ranges.fold(0.0, f32::max)
        };
        let open_metrics = quality("application/openmetrics-text", "1.0.0");
        match open_metrics > 0.0 && open_metrics >= quality("text/plain", "0.0.4") {
            true => Format::OpenMetrics,
            false => Format::Prometheus,
        }
    }

    /// The Content-Type.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number that only grows.
    Counter,
    /// A number that may also fall.
    Gauge,
    /// Times, counted in buckets.
    Histogram,
    /// Labels only.
    Info,
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name in OpenMetrics: with the unit at its end, without the suffix of the samples.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its unit; empty: none.
    pub unit: &'static str,
    /// One sentence.
    pub help: &'static str,
}

/// Labels: names and values.
pub type Labels<'a> = [(&'a str, &'a str)];

/// Builds the text.
pub struct Text {
    format: Format,
    out: String,
    /// Name of the present family, and suffix of its samples.
    name: &'static str,
    suffix: &'static str,
}

/// Bounds of the buckets in seconds, in the canonical form of OpenMetrics.
const SECONDS: [&str; BOUNDS.len() + 1] = ["1e-05", "0.0001", "0.001", "0.01", "0.1", "1.0", "10.0", "+Inf"];

// Writing to a String does not fail.
impl Text {
    /// An empty text.
    pub fn new(format: Format) -> Self {
        Self { format, out: String::new(), name: "", suffix: "" }
    }

    /// Begins a family, all of whose samples follow.
    pub fn family(&mut self, family: &Family) {
        let Family { name, kind, unit, help } = *family;
        (self.name, self.suffix) = match kind {
            Kind::Counter => (name, "_total"),
            Kind::Info => (name, "_info"),
            Kind::Gauge | Kind::Histogram => (name, ""),
        };
        // Prometheus names a family like its samples, and has no info type; OpenMetrics omits the suffix.
        let (suffix, kind) = match (self.format, kind) {
            (Format::OpenMetrics, Kind::Counter) => ("", "counter"),
            (Format::OpenMetrics, Kind::Info) => ("", "info"),
            (Format::Prometheus, Kind::Counter) => (self.suffix, "counter"),
            (Format::Prometheus, Kind::Info) => (self.suffix, "gauge"),
            (_, Kind::Gauge) => ("", "gauge"),
            (_, Kind::Histogram) => ("", "histogram"),
        };
        let _ = writeln!(self.out, "# HELP {name}{suffix} {help}");
        let _ = writeln!(self.out, "# TYPE {name}{suffix} {kind}");
        if self.format == Format::OpenMetrics && !unit.is_empty() {
            let _ = writeln!(self.out, "# UNIT {name} {unit}");
        }
    }

    /// Adds a sample of the family.
    pub fn sample(&mut self, labels: &Labels<'_>, value: impl Display) {
        self.line(self.suffix, labels, None, value);
    }

    /// Adds a histogram of the family.
    pub fn times(&mut self, labels: &Labels<'_>, times: &Times) {
        let (counts, sum) = times.read();
        for (bound, count) in SECONDS.into_iter().zip(counts) {
            self.line("_bucket", labels, Some(("le", bound)), count);
        }
        self.line("_count", labels, None, counts.last().copied().unwrap_or(0));
        self.line("_sum", labels, None, seconds(sum));
    }

    /// Ends the text and returns it.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }

    fn line(&mut self, suffix: &str, labels: &Labels<'_>, last: Option<(&str, &str)>, value: impl Display) {
        let _ = write!(self.out, "{}{suffix}", self.name);
        let mut before = '{';
        for (name, value) in labels.iter().chain(&last) {
            let _ = write!(self.out, "{before}{name}=\"");
            escape(value, &mut self.out);
            self.out.push('"');
            before = ',';
        }
        let end = if before == '{' { "" } else { "}" };
        let _ = writeln!(self.out, "{end} {value}");
    }
}

/// Nanoseconds, formatted as seconds.
pub fn seconds(nanoseconds: u64) -> String {
    format!("{}.{:09}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000)
}

fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTER: Family = Family { name: "a_bytes", kind: Kind::Counter, unit: "bytes", help: "Bytes." };
    const INFO: Family = Family { name: "b", kind: Kind::Info, unit: "", help: "B." };
    const TIMES: Family = Family { name: "c_seconds", kind: Kind::Histogram, unit: "seconds", help: "C." };

    fn text(format: Format) -> String {
        let mut text = Text::new(format);
        text.family(&COUNTER);
        text.sample(&[], 1);
        text.sample(&[("x", "a\\\"\n\u{e9}"), ("y", "")], u64::MAX);
        text.family(&INFO);
        text.sample(&[("v", "1")], 1);
        text.family(&TIMES);
        let times = Times::default();
        [5_000_000, 1_000_000_005].into_iter().for_each(|time| times.add(time));
        text.times(&[("h", "/")], &times);
        text.finish()
    }

    /// The samples are those of the OpenMetrics specification 1.0 (counters `_total`, info `_info`).
    const SAMPLES: [&str; 3] = [
        "a_bytes_total 1\na_bytes_total{x=\"a\\\\\\\"\\n\u{e9}\",y=\"\"} 18446744073709551615\n",
        "b_info{v=\"1\"} 1\n",
        "c_seconds_bucket{h=\"/\",le=\"1e-05\"} 0\nc_seconds_bucket{h=\"/\",le=\"0.0001\"} 0\n\
         c_seconds_bucket{h=\"/\",le=\"0.001\"} 0\nc_seconds_bucket{h=\"/\",le=\"0.01\"} 1\n\
         c_seconds_bucket{h=\"/\",le=\"0.1\"} 1\nc_seconds_bucket{h=\"/\",le=\"1.0\"} 1\n\
         c_seconds_bucket{h=\"/\",le=\"10.0\"} 2\nc_seconds_bucket{h=\"/\",le=\"+Inf\"} 2\n\
         c_seconds_count{h=\"/\"} 2\nc_seconds_sum{h=\"/\"} 1.005000005\n",
    ];

    #[test]
    fn open_metrics() {
        let [first, second, third] = SAMPLES;
        let expected = format!(
            "# HELP a_bytes Bytes.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n{first}\
             # HELP b B.\n# TYPE b info\n{second}\
             # HELP c_seconds C.\n# TYPE c_seconds histogram\n# UNIT c_seconds seconds\n{third}# EOF\n"
        );
        assert_eq!(text(Format::OpenMetrics), expected);
    }

    #[test]
    fn prometheus() {
        let [first, second, third] = SAMPLES;
        let expected = format!(
            "# HELP a_bytes_total Bytes.\n# TYPE a_bytes_total counter\n{first}\
             # HELP b_info B.\n# TYPE b_info gauge\n{second}\
             # HELP c_seconds C.\n# TYPE c_seconds histogram\n{third}"
        );
        assert_eq!(text(Format::Prometheus), expected);
    }

    #[test]
    fn the_texts_of_the_bounds_match_their_values() {
        for (bound, text) in BOUNDS.into_iter().zip(SECONDS) {
            assert_eq!(text.parse::<f64>().map(|seconds| (seconds * 1e9).round() as u64), Ok(bound));
        }
    }

    #[test]
    fn accept_headers_of_scrapers() {
        // Sent by Prometheus 2.42.
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for accept in [
            prometheus,
            "Application/OpenMetrics-text",
            "text/plain;q=0.5, application/openmetrics-text;q=.6",
        ] {
            assert_eq!(Format::wanted(accept), Format::OpenMetrics, "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.3,text/plain;version=0.0.4;q=0.5",
            "application/openmetrics-text;q=x",
        ] {
            assert_eq!(Format::wanted(accept), Format::Prometheus, "{accept}");
        }
    }
}
