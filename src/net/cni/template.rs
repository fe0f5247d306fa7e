//! A configuration made of a template once kubelet tells the range of the node's pods, as containerd's `conf_template`.
//!
//! Understood of Go's templates: `{{.PodCIDR}}` (the first range), `{{range .PodCIDRRanges}}…{{.}}…{{end}}`, the same
//! for `.Routes` (the default route of each family), with variables (`{{range $i, $v := .Routes}}`, `{{$v}}`,
//! `{{if $i}}…{{else}}…{{end}}`), comments, and `{{-`/`-}}`. Anything else is refused by name.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::super::NetError;
use super::list::NetworkList;
use super::result::cidr;
use super::trust::Trust;
use crate::disk::{self, Durability};

/// The file that is made.
const FILE: &str = "10-aril.conflist";
/// Longest template, in bytes.
const LONGEST: u64 = 1 << 20;
/// Blocks within blocks.
const DEEPEST: usize = 16;

/// kubelet's one or two ranges, checked.
pub(super) fn ranges(text: &str) -> Result<Vec<String>, NetError> {
    let invalid = |reason: String| NetError::Invalid { field: "pod_cidr".to_owned(), reason };
    let mut ranges = Vec::new();
    for range in text.split(',').map(str::trim) {
        let (ip, length) = cidr(range).ok_or_else(|| {
            invalid(format!("{:?} is no range of addresses, such as 10.88.0.0/16", super::error::one_line(range, 60)))
        })?;
        ranges.push((ip, format!("{ip}/{length}")));
    }
    match &ranges[..] {
        [_] => {}
        [(a, _), (b, _)] if a.is_ipv4() != b.is_ipv4() => {}
        _ => return Err(invalid("one range, or one of each family, is wanted".to_owned())),
    }
    Ok(ranges.into_iter().map(|(_, range)| range).collect())
}

/// Writes the configuration, unless there is one of somebody else.
pub(super) fn install(template: &Path, dir: &Path, ranges: &[String], trust: &Trust) -> Result<(), NetError> {
    let path = dir.join(FILE);
    match super::config::load(dir, trust) {
        // An installer's own counts more than a template.
        Ok(loaded) if loaded.path != path => return Ok(()),
        Ok(_) | Err(super::ConfigError::Absent { .. }) => {}
        // A broken one of ours is written anew; another's would only be hidden.
        Err(_) if path.exists() => {}
        Err(e) => return Err(e.into()),
    }
    let failed = |step, path: &Path| {
        let path = path.to_owned();
        move |source| NetError::Io { step, path, source }
    };
    let meta = fs::metadata(template).map_err(failed("read", template))?;
    let broken = |reason: String| NetError::Invalid { field: format!("template {}", template.display()), reason };
    if !meta.is_file() || meta.len() > LONGEST || trust.is_everybodys(template, &meta) {
        return Err(broken("is no file of at most 1 MiB that only root can write".to_owned()));
    }
    let text = fs::read_to_string(template).map_err(failed("read", template))?;
    let rendered = render(&text, ranges).map_err(broken)?;
    NetworkList::parse(&rendered).map_err(|e| broken(format!("becomes no configuration: {e}")))?;
    if fs::read_to_string(&path).is_ok_and(|old| old == rendered) {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(failed("make directory", dir))?;
    disk::write_atomic(&path, rendered.as_bytes(), Durability::Power).map_err(failed("write", &path))
}

/// A template with the ranges put in.
pub(super) fn render(text: &str, ranges: &[String]) -> Result<String, String> {
    let data = Data { ranges, routes: routes(ranges) };
    let mut reader = Reader { rest: text };
    let (nodes, end) = reader.nodes(0)?;
    if let Some(end) = end {
        return Err(format!("{{{{{end}}}}} has no beginning"));
    }
    let mut out = String::new();
    print(&nodes, &data, &mut Vec::new(), &mut out)?;
    Ok(out)
}

fn routes(ranges: &[String]) -> Vec<String> {
    let has = |v4: bool| {
        let is_of = |range: &String| range.split('/').next().and_then(|ip| ip.parse::<IpAddr>().ok());
        ranges.iter().filter_map(is_of).any(|ip| ip.is_ipv4() == v4)
    };
    let both = [(true, "0.0.0.0/0"), (false, "::/0")];
    both.into_iter().filter(|(v4, _)| has(*v4)).map(|(_, route)| route.to_owned()).collect()
}

struct Data<'a> {
    ranges: &'a [String],
    routes: Vec<String>,
}

#[derive(Debug)]
enum Node {
    Text(String),
    /// `.PodCIDR`, `.`, `$name`.
    Value(String),
    Range {
        index: Option<String>,
        element: Option<String>,
        list: String,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    If {
        condition: String,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    /// Nodes up to the end of the block they are in: "end", "else", or the text's own.
    fn nodes(&mut self, depth: usize) -> Result<(Vec<Node>, Option<&'static str>), String> {
        if depth > DEEPEST {
            return Err(format!("more than {DEEPEST} blocks within each other"));
        }
        let mut nodes = Vec::new();
        loop {
            let Some((before, action)) = self.action()? else {
                nodes.push(Node::Text(std::mem::take(&mut self.rest).to_owned()));
                return Ok((nodes, None));
            };
            nodes.push(Node::Text(before.to_owned()));
            let words: Vec<&str> = action.split_whitespace().collect();
            match words[..] {
                ["end"] => return Ok((nodes, Some("end"))),
                ["else"] => return Ok((nodes, Some("else"))),
                ["range", ..] => {
                    let (index, element, list) = loop_head(action)?;
                    let (body, otherwise) = self.block(depth)?;
                    nodes.push(Node::Range { index, element, list, body, otherwise });
                }
                ["if", condition] => {
                    let condition = condition.to_owned();
                    let (body, otherwise) = self.block(depth)?;
                    nodes.push(Node::If { condition, body, otherwise });
                }
                _ if action.starts_with("/*") && action.ends_with("*/") => {}
                [value] if value.starts_with(['.', '$']) => nodes.push(Node::Value(value.to_owned())),
                _ => return Err(format!("{{{{{}}}}} is not understood", super::error::one_line(action, 60))),
            }
        }
    }

    fn block(&mut self, depth: usize) -> Result<(Vec<Node>, Vec<Node>), String> {
        let unended = || "a block has no {{end}}".to_owned();
        let (body, end) = self.nodes(depth + 1)?;
        match end.ok_or_else(unended)? {
            "else" => match self.nodes(depth + 1)? {
                (otherwise, Some("end")) => Ok((body, otherwise)),
                _ => Err(unended()),
            },
            _ => Ok((body, Vec::new())),
        }
    }

    /// The text before the next action, and the action.
    fn action(&mut self) -> Result<Option<(&'a str, &'a str)>, String> {
        let Some(start) = self.rest.find("{{") else { return Ok(None) };
        let (mut before, inside) = (&self.rest[..start], &self.rest[start + 2..]);
        let end = inside.find("}}").ok_or("{{ has no }}")?;
        let (mut action, mut after) = (&inside[..end], &inside[end + 2..]);
        // A trim mark is set off by a space, or it would be a sign.
        if let Some(rest) = action.strip_prefix('-').filter(|rest| rest.starts_with(char::is_whitespace)) {
            (action, before) = (rest, before.trim_end());
        }
        if let Some(rest) = action.strip_suffix('-').filter(|rest| rest.ends_with(char::is_whitespace)) {
            (action, after) = (rest, after.trim_start());
        }
        self.rest = after;
        Ok(Some((before, action.trim())))
    }
}

/// `range .List`, `range $element := .List`, `range $index, $element := .List`.
fn loop_head(action: &str) -> Result<(Option<String>, Option<String>, String), String> {
    let head = action.trim_start_matches("range").trim();
    let (names, list) = head.split_once(":=").map_or(("", head), |(names, list)| (names.trim(), list.trim()));
    if !matches!(list, ".PodCIDRRanges" | ".Routes") {
        return Err(format!("range over {:?} is not understood", super::error::one_line(list, 60)));
    }
    let mut names: Vec<String> = names.split(',').map(str::trim).filter(|n| !n.is_empty()).map(str::to_owned).collect();
    let is_name = |name: &String| {
        name.strip_prefix('$')
            .is_some_and(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
    };
    if names.len() > 2 || !names.iter().all(is_name) {
        return Err(format!("{{{{{}}}}} is not understood", super::error::one_line(action, 60)));
    }
    let element = names.pop();
    Ok((names.pop(), element, list.to_owned()))
}

/// Names in scope with their values, the innermost last; "." is the element of the innermost loop.
type Scope = Vec<(String, String)>;

fn print(nodes: &[Node], data: &Data<'_>, scope: &mut Scope, out: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Value(name) => out.push_str(&value(name, data, scope)?),
            Node::If { condition, body, otherwise } => {
                // Go's truth: not zero, not empty.
                let value = value(condition, data, scope)?;
                let branch = if value.is_empty() || value == "0" { otherwise } else { body };
                print(branch, data, scope, out)?;
            }
            Node::Range { index, element, list, body, otherwise } => {
                let elements = if list == ".Routes" { &data.routes[..] } else { data.ranges };
                if elements.is_empty() {
                    print(otherwise, data, scope, out)?;
                }
                for (number, text) in elements.iter().enumerate() {
                    let depth = scope.len();
                    scope.push((".".to_owned(), text.clone()));
                    scope.extend(index.as_ref().map(|name| (name.clone(), number.to_string())));
                    scope.extend(element.as_ref().map(|name| (name.clone(), text.clone())));
                    print(body, data, scope, out)?;
                    scope.truncate(depth);
                }
            }
        }
    }
    Ok(())
}

fn value(name: &str, data: &Data<'_>, scope: &Scope) -> Result<String, String> {
    if let Some((_, value)) = scope.iter().rev().find(|(known, _)| known == name) {
        return Ok(value.clone());
    }
    // Within a loop the dot is the element, which has no fields.
    let is_outside = !scope.iter().any(|(name, _)| name == ".");
    match name {
        ".PodCIDR" if is_outside => Ok(data.ranges.first().cloned().unwrap_or_default()),
        "$.PodCIDR" => Ok(data.ranges.first().cloned().unwrap_or_default()),
        ".PodCIDRRanges" | ".Routes" => Err(format!("{{{{{name}}}}} is a list: use {{{{range {name}}}}}")),
        _ => Err(format!("{{{{{}}}}} is not understood", super::error::one_line(name, 60))),
    }
}
