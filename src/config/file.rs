//! From the file's text to what it says, key by key.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::keys::{KEYS, Key};
use super::{ConfigError, Raw, metrics, network};

pub(super) fn read(file: &Path) -> Result<Raw, ConfigError> {
    let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
    parse(file, &text)
}

pub(super) fn parse(file: &Path, text: &str) -> Result<Raw, ConfigError> {
    let table = DeTable::parse(text).map_err(|e| ConfigError::Syntax {
        file: file.to_owned(),
        line: line_of(text, e.span().map_or(0, |span| span.start)),
        message: one_line(e.message()),
    })?;
    let mut raw = Raw::default();
    for (name, value) in table.get_ref() {
        let (line, name) = (line_of(text, name.span().start), name.get_ref());
        match value.get_ref().as_table().filter(|_| is_table(name)) {
            None => take(&mut raw, (file, line), name, value.get_ref())?,
            Some(table) => {
                for (key, value) in table {
                    let line = line_of(text, key.span().start);
                    take(&mut raw, (file, line), &format!("{name}.{}", key.get_ref()), value.get_ref())?;
                }
            }
        }
    }
    Ok(raw)
}

/// Takes one key by its full name.
fn take(raw: &mut Raw, (file, line): (&Path, usize), name: &str, value: &DeValue<'_>) -> Result<(), ConfigError> {
    let file = file.to_owned();
    let Some(key) = keys().find(|key| key.name == name) else {
        return Err(ConfigError::UnknownKey { file, line, key: name.to_owned(), nearest: nearest(name) });
    };
    let refused = || ConfigError::Value { file, line, key: key.name, wants: key.wants };
    (key.take)(raw, value).ok_or_else(refused)
}

pub(super) fn keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().chain(network::KEYS).chain(metrics::KEYS)
}

/// Whether there are keys in a table of this name.
fn is_table(name: &str) -> bool {
    keys().any(|key| key.name.split_once('.').is_some_and(|(table, _)| table == name))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|&&b| b == b'\n').count() + 1
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(", ")
}

fn nearest(unknown: &str) -> &'static str {
    let plain = unknown.to_ascii_lowercase().replace(['-', '.'], "_").into_bytes();
    const LONGEST: usize = 64;
    let in_table = unknown.contains('.');
    // A shared beginning weighs most: who writes `workers` means `worker_threads`.
    let unlikeness = |name: &&str| {
        let name = name.replace('.', "_");
        let shared = plain.iter().zip(name.as_bytes()).take_while(|(a, b)| a == b).count();
        (distance(&plain, name.as_bytes()) + LONGEST).saturating_sub(shared)
    };
    // Who writes a table's name means a key of it.
    let of_table =
        |name: &&str| !in_table || !unknown.split_once('.').is_some_and(|(t, _)| is_table(t)) || name.contains('.');
    keys().map(|key| key.name).filter(of_table).min_by_key(unlikeness).unwrap_or("root")
}

/// How many letters must be put in, taken out or changed to make `b` of `a`.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
