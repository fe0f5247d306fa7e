//! Extended headers of the pax format: `LENGTH KEY=VALUE\n`, where values may hold any byte.

use std::collections::BTreeMap;

use super::UnpackError;
use super::entries::damaged;

/// Extended attributes of one entry. File systems hold far less: ext4 a block of them, Linux 64 KiB of names.
const MOST_XATTRS: usize = 1024;

/// What one extended header says about the entry after it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub mtime: Option<(i64, i64)>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sparse: SparsePax,
}

/// The three ways GNU tar describes holes in pax headers: 0.0, 0.1 and 1.0.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct SparsePax {
    pub major: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    /// Offsets and lengths in turn (0.0 and 0.1).
    pub numbers: Vec<u64>,
}

impl Pax {
    /// Adds the records of one header; a later record of the same key wins.
    pub fn add(&mut self, mut records: &[u8]) -> Result<(), UnpackError> {
        while !records.is_empty() {
            let (key, value, rest) =
                split_record(records).ok_or_else(|| damaged("an extended header has a malformed record"))?;
            self.record(key, value)?;
            records = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        match key {
            // An empty value takes back what a header before it said.
            b"path" => self.path = Some(value.to_vec()).filter(|v| !v.is_empty()),
            b"linkpath" => self.link = Some(value.to_vec()).filter(|v| !v.is_empty()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => self.sparse.major = Some(number(value)?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = Some(number(value)?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.numbers.push(number(value)?),
            b"GNU.sparse.map" => {
                self.sparse.numbers = value.split(|b| *b == b',').map(number).collect::<Result<_, _>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                    if self.xattrs.len() > MOST_XATTRS {
                        let limit = MOST_XATTRS as u64;
                        return Err(UnpackError::Limit { what: "extended attributes on one entry", limit });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Splits the first record off: key, value, what follows.
fn split_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // A length has at most seven digits: headers are bounded far below that.
    let space = records.iter().take(8).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let record = records.get(space + 1..length)?;
    let (last, record) = record.split_last()?;
    let equals = record.iter().position(|b| *b == b'=')?;
    (*last == b'\n' && equals > 0).then(|| (&record[..equals], &record[equals + 1..], &records[length..]))
}

pub(super) fn number(text: &[u8]) -> Result<u64, UnpackError> {
    // `parse` would take a leading plus.
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text)
        .ok()
        .filter(|_| digits)
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| damaged("an extended header has a malformed number"))
}

/// `SECONDS[.FRACTION]`, maybe negative.
fn time(text: &[u8]) -> Result<(i64, i64), UnpackError> {
    let bad = || damaged("an extended header has a malformed time");
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let whole: i64 = seconds.parse().map_err(|_| bad())?;
    let nine: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = nine.parse().map_err(|_| bad())?;
    // -1.25 is a quarter of a second before -1; a timespec counts upwards from the second below.
    if seconds.starts_with('-') && nanoseconds > 0 {
        return Ok((whole.checked_sub(1).ok_or_else(bad)?, 1_000_000_000 - nanoseconds));
    }
    Ok((whole, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pax(records: &[u8]) -> Result<Pax, UnpackError> {
        let mut pax = Pax::default();
        pax.add(records).map(|()| pax)
    }

    #[test]
    fn records_are_read_whatever_bytes_they_hold() {
        let parsed = pax(b"10 path=a\n28 SCHILY.xattr.user.x=\n\0=\xff\n21 mtime=-1.25000000\n").unwrap();
        assert_eq!(parsed.path.as_deref(), Some(b"a".as_slice()));
        assert_eq!(parsed.xattrs, BTreeMap::from([(b"user.x".to_vec(), b"\n\0=\xff".to_vec())]));
        assert_eq!(parsed.mtime, Some((-2, 750_000_000)));
    }

    #[test]
    fn attributes_are_counted_by_name_and_bounded() {
        let records = |count: usize| -> Vec<u8> {
            (0..count).flat_map(|n| format!("27 SCHILY.xattr.user.{n:04}=\n").into_bytes()).collect()
        };
        let (most, mut twice) = (records(MOST_XATTRS), records(MOST_XATTRS));
        twice.extend_from_slice(&most);
        assert_eq!(pax(&twice).unwrap().xattrs.len(), MOST_XATTRS);
        let error = pax(&records(MOST_XATTRS + 1)).unwrap_err().to_string();
        assert!(error.contains("1024 extended attributes"), "{error}");
    }

    #[test]
    fn malformed_records_are_refused() {
        let cases: [&[u8]; 12] = [
            b"x",
            b"5 a=b",
            b"6 a=b",
            b"0 a=b\n",
            b"3 a=b\n",
            b"9999999999 a=b\n",
            b"-6 a=b\n",
            b"5 ab\n",
            b"5 =b\n",
            b"11 size=-1\n",
            b"11 size=+1\n",
            b"13 mtime=1.x\n",
        ];
        for bad in cases {
            assert!(pax(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
