//! The report of a measurement: text, JSON, SVG.

use std::fmt::Write;
use std::time::Duration;

use serde_json::json;

use super::Bench;
use super::load::{Measured, Plan};

const QUANTILES: [f64; 6] = [0.5, 0.75, 0.9, 0.99, 0.999, 0.9999];

/// A measurement and its parameters.
pub struct Report<'a> {
    bench: &'a Bench,
    measured: &'a Measured,
}

impl<'a> Report<'a> {
    /// Reports this measurement.
    pub fn new(bench: &'a Bench, measured: &'a Measured) -> Self {
        Report { bench, measured }
    }

    /// Answers per second.
    fn rate(&self) -> f64 {
        self.measured.answers as f64 / self.measured.elapsed.as_secs_f64().max(1e-9)
    }

    fn title(&self) -> String {
        let Bench { target, connections, plan: Plan { size, depth, rate, .. }, .. } = self.bench;
        let pace = rate.map_or("as fast as answers come".to_owned(), |rate| format!("{rate} messages/s"));
        format!("{}: connections {connections}, size {size} bytes, depth {depth}, {pace}", target.url)
    }

    /// The report as text.
    pub fn text(&self) -> String {
        let Measured { latencies, answers, unanswered, closed, elapsed, .. } = self.measured;
        let mut text = self.title() + "\n";
        // Writing to a String does not fail.
        let _ = writeln!(text, "  answers      {answers} in {elapsed:.3?}, {:.0}/s", self.rate());
        let _ = writeln!(text, "  unanswered   {unanswered}");
        let _ = writeln!(text, "  connections  {closed} ended early");
        let from =
            if self.bench.plan.rate.is_some() { "from the time that it was due" } else { "from sending it" };
        let _ = writeln!(text, "  latency of a message, {from}:");
        for quantile in QUANTILES {
            let value = latencies.value_at_quantile(quantile);
            let _ = writeln!(text, "    {:>7}%  {}", (quantile * 1e4).round() / 1e2, time(value));
        }
        let _ = writeln!(text, "    longest   {}", time(latencies.max()));
        let _ = writeln!(text, "    mean      {}", time(latencies.mean() as u64));
        text
    }

    /// The report as a JSON object on one line. Latencies are in nanoseconds.
    pub fn json(&self) -> String {
        let Measured { latencies, answers, unanswered, closed, elapsed, .. } = self.measured;
        let quantiles =
            QUANTILES.map(|quantile| (quantile.to_string(), latencies.value_at_quantile(quantile)));
        let quantiles =
            serde_json::Map::from_iter(quantiles.map(|(quantile, value)| (quantile, json!(value))));
        let object = json!({
            "url": self.bench.target.url.to_string(),
            "connections": self.bench.connections,
            "size": self.bench.plan.size,
            "depth": self.bench.plan.depth,
            "rate": self.bench.plan.rate,
            "seconds": elapsed.as_secs_f64(),
            "answers": answers,
            "answers_per_second": self.rate(),
            "unanswered": unanswered,
            "ended_early": closed,
            "latency_ns": {
                "min": latencies.min(), "mean": latencies.mean(), "max": latencies.max(), "quantiles": quantiles,
            },
        });
        format!("{object}\n")
    }

    /// A histogram in which each bar covers twice the time of the one to its left.
    pub fn svg(&self) -> String {
        const WIDTH: u32 = 640;
        const HEIGHT: u32 = 240;
        const LEFT: u32 = 20;
        const TOP: u32 = 50;
        let bars = self.bars();
        let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
        let width = f64::from(WIDTH) / bars.len().max(1) as f64;
        let base = TOP + HEIGHT;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" \
             font-size=\"11\">\n<text x=\"{LEFT}\" y=\"20\">{}</text>\n<text x=\"{LEFT}\" y=\"36\">{}</text>\n",
            WIDTH + 2 * LEFT,
            base + 30,
            escape(&self.title()),
            escape(&format!(
                "{} answers; messages by latency, each bar up to the time below it",
                self.measured.answers
            )),
        );
        for (number, (upper, count)) in bars.iter().enumerate() {
            let x = f64::from(LEFT) + width * number as f64;
            let height = f64::from(HEIGHT) * *count as f64 / most as f64;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"#36c\"><title>{count} \
                 up to {}</title></rect>\n<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                f64::from(base) - height,
                width * 0.9,
                time(*upper),
                x + width * 0.45,
                base + 15,
                time(*upper),
            );
        }
        svg + "</svg>\n"
    }

    /// Upper bounds and counts, from the first to the last bar that is not empty.
    fn bars(&self) -> Vec<(u64, u64)> {
        let all = self.measured.latencies.iter_log(1000, 2.0);
        let all: Vec<_> =
            all.map(|bar| (bar.value_iterated_to() + 1, bar.count_since_last_iteration())).collect();
        let first = all.iter().position(|(_, count)| *count > 0).unwrap_or(0);
        let last = all.iter().rposition(|(_, count)| *count > 0).map_or(0, |last| last + 1);
        all.get(first..last).unwrap_or_default().to_vec()
    }
}

/// Nanoseconds with three digits and a unit.
fn time(nanos: u64) -> String {
    let value = nanos as f64;
    let (value, unit) = match Duration::from_nanos(nanos) {
        time if time < Duration::from_micros(1000) => (value / 1e3, "us"),
        time if time < Duration::from_secs(1) => (value / 1e6, "ms"),
        _ => (value / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        let shown = [900, 12_345, 999_999, 5_000_000, 1_500_000_000].map(time);
        assert_eq!(shown, ["0.90 us", "12.3 us", "1000 us", "5.00 ms", "1.50 s"]);
    }
}
