//! What Prometheus would get, read as strictly as it does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{PATIENCE, TestNode, wait_for};

/// Where the tests have their numbers served.
pub const TCP: &str = "127.0.0.1:9537";

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// A page that was read whole.
#[derive(Debug, Default)]
pub struct Page {
    /// Kind by the name in `# TYPE`.
    pub kinds: BTreeMap<String, String>,
    /// Value by name and sorted labels.
    samples: BTreeMap<(String, Labels), f64>,
}

type Labels = Vec<(String, String)>;

/// A connection to the endpoint at [`TCP`] in a node's network.
pub fn dial(node: &TestNode) -> TcpStream {
    wait_for("the endpoint", PATIENCE, || node.in_network(|| TcpStream::connect(TCP)).ok())
}

/// Asks for something and reads until the end.
pub fn ask(mut stream: impl Read + Write, request: &str) -> Answer {
    // A server that has said all it has to say may close before it has read everything.
    stream.write_all(request.as_bytes()).ok();
    read(stream)
}

/// Reads an answer until the end of the connection.
pub fn read(mut stream: impl Read) -> Answer {
    let mut bytes = Vec::new();
    // What is left unread by the server makes it a reset behind the answer.
    stream.read_to_end(&mut bytes).ok();
    let text = String::from_utf8(bytes).expect("an answer in UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer in {text:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let is_empty = body.is_empty();
    let body = if is_chunked && !is_empty { whole(body) } else { body.to_owned() };
    Answer { status, head: head.to_owned(), body }
}

/// A body that came in chunks, which must be complete.
fn whole(mut rest: &str) -> String {
    let mut body = String::new();
    loop {
        let (size, tail) = rest.split_once("\r\n").expect("the size of a chunk");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            assert_eq!(tail, "\r\n");
            return body;
        }
        body.push_str(&tail[..size]);
        rest = tail[size..].strip_prefix("\r\n").expect("the end of a chunk");
    }
}

/// One request as Prometheus makes it.
pub fn get(accept: &str) -> String {
    format!("GET /metrics HTTP/1.1\r\nHost: node\r\nAccept: {accept}\r\n\r\n")
}

/// Scrapes the endpoint at [`TCP`].
pub fn scrape(node: &TestNode) -> Page {
    page(ask(limited(dial(node)), &get("text/plain")))
}

/// The same by a socket's file.
pub fn scrape_socket(node: &TestNode, name: &str) -> Page {
    let stream = wait_for("the endpoint", PATIENCE, || UnixStream::connect(node.path(name)).ok());
    page(ask(stream, &get("text/plain")))
}

/// A connection that is not read forever.
pub fn limited(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set a limit");
    stream
}

fn page(answer: Answer) -> Page {
    assert_eq!(answer.status, 200, "{answer:?}");
    Page::parse(&answer.body, false)
}

impl Page {
    /// Reads a page of either format; panics if it is not as the format wants it.
    pub fn parse(text: &str, is_open: bool) -> Self {
        let mut page = Self::default();
        let (mut family, mut ended, mut helped) = (String::new(), BTreeSet::new(), BTreeSet::new());
        assert!(text.ends_with('\n'), "the last line has no end");
        let lines: Vec<&str> = text.lines().collect();
        let lines = match is_open {
            true => lines.strip_suffix(&["# EOF"]).expect("the end of the page"),
            false => &lines[..],
        };
        for line in lines {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let name = rest.split(' ').next().unwrap();
                assert!(helped.insert(name.to_owned()), "{name} is described twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("name and kind");
                assert!(helped.contains(name), "{name} has no help");
                ended.insert(std::mem::replace(&mut family, name.to_owned()));
                assert!(page.kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} comes twice");
            } else {
                let (name, labels, value) = sample(line);
                let kind = page.kinds.get(&family).unwrap_or_else(|| panic!("{line} before any kind"));
                let suffix = name.strip_prefix(&*family).unwrap_or_else(|| panic!("{line} is not of {family}"));
                let fits = match (&**kind, suffix) {
                    ("counter", "_total") => is_open,
                    ("counter", "") => !is_open,
                    ("gauge" | "unknown", "") => true,
                    ("histogram", "_bucket" | "_sum" | "_count") => true,
                    _ => false,
                };
                assert!(fits, "{line} does not fit {family}, a {kind}");
                let before = page.samples.insert((name, labels), value);
                assert!(before.is_none(), "{line} comes twice");
            }
        }
        page.check_histograms();
        page
    }

    fn check_histograms(&self) {
        for (name, _) in self.kinds.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
            for ((_, labels), value) in self.samples.iter().filter(|((n, _), _)| *n == format!("{name}_bucket")) {
                let bound = labels.iter().find(|(label, _)| label == "le").expect("a bound");
                let others = labels.iter().filter(|(label, _)| label != "le").cloned().collect();
                let bound = if bound.1 == "+Inf" { f64::INFINITY } else { bound.1.parse().unwrap() };
                buckets.entry(others).or_default().push((bound, *value));
            }
            for (labels, mut all) in buckets {
                all.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert!(all.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name}{labels:?}: {all:?}");
                let (last, count) = (all.last().unwrap(), self.samples[&(format!("{name}_count"), labels.clone())]);
                assert_eq!((last.0, last.1), (f64::INFINITY, count), "{name}{labels:?}");
                assert!(self.samples.contains_key(&(format!("{name}_sum"), labels)));
            }
        }
    }

    /// The value of one series.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut labels: Labels = labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        labels.sort_unstable();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }

    /// As [`get`](Self::get), 0 for what was never seen.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.get(name, labels).unwrap_or(0.0)
    }

    /// Every series of a name: labels and value.
    pub fn all(&self, name: &str) -> Vec<(&Labels, f64)> {
        self.samples.iter().filter(|((n, _), _)| n == name).map(|((_, labels), value)| (labels, *value)).collect()
    }

    /// Label names by the name of each metric.
    pub fn labels(&self, name: &str) -> BTreeSet<&str> {
        let of = |n: &str| [name, &format!("{name}_bucket")].contains(&n);
        let labels = self.samples.keys().filter(|(n, _)| of(n)).flat_map(|(_, labels)| labels);
        labels.map(|(label, _)| &**label).filter(|label| *label != "le").collect()
    }
}

/// Name, sorted labels and value.
fn sample(line: &str) -> (String, Labels, f64) {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let end = line.find(|c| !is_name(c)).unwrap_or_else(|| panic!("no value in {line}"));
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, value) = rest.split_once("=\"").expect("a label");
            assert!(!label.is_empty() && label.chars().all(is_name), "{line}");
            let (value, behind) = quoted(value);
            labels.push((label.to_owned(), value));
            match behind.split_at(1) {
                (",", more) => rest = more,
                ("}", more) => {
                    rest = more;
                    break;
                }
                _ => panic!("{line}"),
            }
        }
    }
    labels.sort_unstable();
    assert!(labels.windows(2).all(|pair| pair[0].0 != pair[1].0), "a label comes twice in {line}");
    let value = rest.strip_prefix(' ').and_then(|value| value.parse().ok());
    (name.to_owned(), labels, value.unwrap_or_else(|| panic!("no value in {line}")))
}

/// Up to the closing quote, and what is behind it.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => match chars.next().expect("something behind a backslash").1 {
                'n' => value.push('\n'),
                c @ ('\\' | '"') => value.push(c),
                c => panic!("\\{c} in {text}"),
            },
            c => value.push(c),
        }
    }
    panic!("no closing quote in {text}");
}
