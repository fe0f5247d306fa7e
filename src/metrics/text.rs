//! Numbers as Prometheus reads them: its text format, and OpenMetrics for those who ask for that.
//!
//! Follows Prometheus' text-based exposition format 0.0.4 and OpenMetrics 1.0.

use std::fmt::Write;

use crate::observe::instrument::{BOUNDS, Distribution};

/// Which of the two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// The one a client accepts: OpenMetrics if it names it, as Prometheus does.
    pub fn accepted(accept: &str) -> Self {
        let is_wanted = |offer: &str| {
            let mut parts = offer.split(';').map(str::trim);
            let is_it = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
            let mut version = "1.0.0";
            let mut is_refused = false;
            for part in parts {
                match part.split_once('=') {
                    Some(("version", value)) => version = value,
                    Some(("q", value)) => is_refused = value.parse().is_ok_and(|q: f32| q <= 0.0),
                    _ => {}
                }
            }
            is_it && !is_refused && version == "1.0.0"
        };
        if accept.split(',').any(is_wanted) { Self::OpenMetrics } else { Self::Prometheus }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What stands behind all metrics.
    pub fn end(self) -> &'static str {
        match self {
            Self::Prometheus => "",
            Self::OpenMetrics => "# EOF\n",
        }
    }
}

/// What sort of number it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric as it is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

impl Metric {
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Counter, help }
    }

    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Gauge, help }
    }

    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Histogram, help }
    }
}

/// Names and values.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// A part of a page, as text.
#[derive(Debug)]
pub(super) struct Page {
    pub text: String,
    format: Format,
}

impl Page {
    pub fn new(format: Format) -> Self {
        Self { text: String::new(), format }
    }

    /// Says what the samples to come are.
    pub fn describe(&mut self, metric: &Metric) {
        let is_total = metric.name.ends_with("_total");
        let (name, kind) = match (self.format, metric.kind) {
            // There a family is called by what its samples have in common…
            (Format::OpenMetrics, Kind::Counter) if is_total => (metric.name.trim_end_matches("_total"), "counter"),
            // … and a counter of another name is none.
            (Format::OpenMetrics, Kind::Counter) => (metric.name, "unknown"),
            (_, Kind::Counter) => (metric.name, "counter"),
            (_, Kind::Gauge) => (metric.name, "gauge"),
            (_, Kind::Histogram) => (metric.name, "histogram"),
        };
        self.line(format_args!("# HELP {name} {}", metric.help));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// One value; a whole number is told without a point.
    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        self.text.push_str(name);
        self.labels(labels, None);
        self.line(format_args!(" {value}"));
    }

    /// A metric with one value.
    pub fn single(&mut self, metric: &Metric, value: f64) {
        self.describe(metric);
        self.sample(metric.name, &[], value);
    }

    /// One histogram, in seconds.
    pub fn histogram(&mut self, name: &str, labels: Labels<'_>, read: &Distribution) {
        for (bound, within) in BOUNDS.iter().zip(read.within) {
            // Nine digits behind the point at most, and no more than there are.
            let bound = seconds(*bound);
            self.bucket(name, labels, &format!("{bound:?}"), within);
        }
        self.bucket(name, labels, "+Inf", read.count);
        for (suffix, value) in [("_sum", read.sum.as_secs_f64()), ("_count", float(read.count))] {
            self.text.push_str(name);
            self.sample(suffix, labels, value);
        }
    }

    fn bucket(&mut self, name: &str, labels: Labels<'_>, bound: &str, within: u64) {
        self.text.push_str(name);
        self.text.push_str("_bucket");
        self.labels(labels, Some(bound));
        self.line(format_args!(" {within}"));
    }

    fn labels(&mut self, labels: Labels<'_>, bound: Option<&str>) {
        let mut opening = '{';
        for (name, value) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            self.text.push(opening);
            opening = ',';
            self.text.push_str(name);
            self.text.push_str("=\"");
            escape(&mut self.text, value);
            self.text.push('"');
        }
        if opening == ',' {
            self.text.push('}');
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Cannot fail: a string takes everything.
        self.text.write_fmt(line).ok();
        self.text.push('\n');
    }
}

/// A label's value. It may be anything that a stranger has written into a request.
fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

/// Nanoseconds as seconds.
#[allow(clippy::cast_precision_loss)] // a float is what there is; 53 bits of nanoseconds are 104 days, to the nanosecond
pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// The nearest number of the only kind there is in these formats.
#[allow(clippy::cast_precision_loss)] // see above
pub(super) fn float(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observe::instrument::Histogram;

    #[test]
    fn values_are_told_as_prometheus_reads_them() {
        let mut page = Page::new(Format::Prometheus);
        page.single(&Metric::gauge("a", "Help."), 3.0);
        page.sample("b", &[("x", "1"), ("y", "")], 0.25);
        page.sample("c", &[("x", "a\"b\\c\nd\te{},=é")], 12_345_678_901_234.0);
        assert_eq!(
            page.text,
            "# HELP a Help.\n# TYPE a gauge\na 3\nb{x=\"1\",y=\"\"} 0.25\n\
             c{x=\"a\\\"b\\\\c\\nd\te{},=é\"} 12345678901234\n"
        );
    }

    #[test]
    fn counters_are_called_as_each_format_wants() {
        let counters = [Metric::counter("a_total", "A."), Metric::counter("b_failcnt", "B.")];
        let told = |format| {
            let mut page = Page::new(format);
            counters.iter().for_each(|counter| page.single(counter, 1.0));
            let lines = page.text.lines().filter(|line| !line.starts_with("# HELP")).map(str::to_owned);
            lines.collect::<Vec<_>>()
        };
        let samples = |types: [&str; 2]| [types[0], "a_total 1", types[1], "b_failcnt 1"].map(str::to_owned);
        let (old, new) = (told(Format::Prometheus), told(Format::OpenMetrics));
        assert_eq!(old, samples(["# TYPE a_total counter", "# TYPE b_failcnt counter"]));
        assert_eq!(new, samples(["# TYPE a counter", "# TYPE b_failcnt unknown"]));
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_in_all() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(3));
        histogram.observe(Duration::from_secs(1000));
        let mut page = Page::new(Format::OpenMetrics);
        page.histogram("h", &[("rpc", "x")], &histogram.read());
        let lines: Vec<&str> = page.text.lines().collect();
        assert_eq!(lines.len(), BOUNDS.len() + 3);
        assert_eq!(lines[0], "h_bucket{rpc=\"x\",le=\"0.0001\"} 0");
        assert!(lines.contains(&"h_bucket{rpc=\"x\",le=\"0.0025\"} 0"));
        assert!(lines.contains(&"h_bucket{rpc=\"x\",le=\"0.005\"} 1"));
        assert!(lines.contains(&"h_bucket{rpc=\"x\",le=\"1.0\"} 1"));
        let end = ["h_bucket{rpc=\"x\",le=\"+Inf\"} 2", "h_sum{rpc=\"x\"} 1000.003", "h_count{rpc=\"x\"} 2"];
        assert_eq!(lines[BOUNDS.len()..], end);
    }

    #[test]
    fn the_format_is_the_one_accepted() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, format) in [
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("text/plain, application/openmetrics-text; version=1.0.0", Format::OpenMetrics),
            ("application/openmetrics-text;version=0.0.1", Format::Prometheus),
            ("application/openmetrics-text;q=0", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("", Format::Prometheus),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }
}
