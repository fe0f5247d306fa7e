//! Who a process becomes: names looked up in the container's own passwd and group files, read with limits.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::error::{Doing, StepError};
use crate::plan;
use crate::sys::path::open_in_root;

/// The most of a passwd or group file that is read.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// A longer line is passed over.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// As many groups as the kernel takes (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// The user part or the group part of a specification.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Id(u32),
    Name(&'a str),
}

/// Finds out who `user` is inside the container whose root directory is `root`.
///
/// A number needs no entry; a name needs one. The group comes from the specification, else from the user's passwd
/// entry, else is 0. With `merge_image_groups` the groups that list the user by name are added.
///
/// # Errors
/// `EINVAL` for a malformed specification, `ENOENT` for a name that is not in the files, or why they could not be read.
pub(super) fn resolve(root: BorrowedFd<'_>, user: &plan::User) -> Result<plan::ResolvedUser, StepError> {
    let (user_part, group_part) = parse_spec(&user.spec)?;
    let user_part = user.uid.map_or(user_part, |uid| Some(Part::Id(uid))).unwrap_or(Part::Id(0));
    let entry = find_user(root, &user_part)?;
    let uid = match (&user_part, &entry) {
        (Part::Id(uid), _) => *uid,
        (Part::Name(_), Some(entry)) => entry.uid,
        (Part::Name(name), None) => {
            return Err(StepError::new(Errno::ENOENT, format!("find user {name:?} in the image's /etc/passwd")));
        }
    };
    let group_part = user.gid.map_or(group_part, |gid| Some(Part::Id(gid)));
    let gid = match group_part {
        Some(Part::Id(gid)) => gid,
        Some(Part::Name(name)) => find_group(root, name)?,
        None => entry.as_ref().map_or(0, |e| e.gid),
    };
    let mut groups = user.additional_gids.clone();
    if user.merge_image_groups
        && let Some(entry) = &entry
    {
        groups.extend(groups_of(root, &entry.name)?);
    }
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    groups.truncate(MAX_GROUPS);
    let home = entry.map_or_else(|| "/".to_owned(), |e| e.home);
    Ok(plan::ResolvedUser { uid, gid, groups, home })
}

fn parse_spec(spec: &str) -> Result<(Option<Part<'_>>, Option<Part<'_>>), StepError> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let bad = || StepError::new(Errno::EINVAL, format!("read user {spec:?}"));
    let user = if user.is_empty() { None } else { Some(parse_part(user).ok_or_else(bad)?) };
    let group = match group {
        None | Some("") => None,
        Some(text) => Some(parse_part(text).ok_or_else(bad)?),
    };
    Ok((user, group))
}

/// All digits is a number and must fit 32 bits (4294967295 is the kernel's "no change"); anything else is a name.
fn parse_part(text: &str) -> Option<Part<'_>> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|id| *id != u32::MAX).map(Part::Id);
    }
    let signed = text.strip_prefix(['-', '+']).is_some_and(|t| t.bytes().all(|b| b.is_ascii_digit()));
    let clean = !text.bytes().any(|b| b.is_ascii_control() || b == b':' || b == b',');
    (clean && !signed).then_some(Part::Name(text))
}

struct PasswdEntry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

fn find_user(root: BorrowedFd<'_>, wanted: &Part<'_>) -> Result<Option<PasswdEntry>, StepError> {
    let Some(file) = open(root, "/etc/passwd")? else { return Ok(None) };
    find_line(file, "/etc/passwd", |line| {
        let fields: Vec<&str> = line.split(':').collect();
        let &[name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        let found = match wanted {
            Part::Id(id) => *id == uid,
            Part::Name(n) => *n == name,
        };
        // The home becomes HOME: a control character in it could forge lines elsewhere.
        let home = if home.is_empty() || home.chars().any(char::is_control) { "/" } else { home };
        found.then(|| PasswdEntry { name: name.to_owned(), uid, gid, home: home.to_owned() })
    })
}

fn find_group(root: BorrowedFd<'_>, name: &str) -> Result<u32, StepError> {
    let found = match open(root, "/etc/group")? {
        Some(file) => find_line(file, "/etc/group", |line| {
            let (group, gid, _) = group_fields(line)?;
            (group == name).then_some(gid)
        })?,
        None => None,
    };
    found.ok_or_else(|| StepError::new(Errno::ENOENT, format!("find group {name:?} in the image's /etc/group")))
}

fn groups_of(root: BorrowedFd<'_>, user: &str) -> Result<Vec<u32>, StepError> {
    let mut gids = Vec::new();
    let Some(file) = open(root, "/etc/group")? else { return Ok(gids) };
    find_line(file, "/etc/group", |line| -> Option<()> {
        let (_, gid, members) = group_fields(line)?;
        if gids.len() < MAX_GROUPS && members.split(',').any(|m| m == user) {
            gids.push(gid);
        }
        None
    })?;
    Ok(gids)
}

/// Name, gid and members of a line of group(5).
fn group_fields(line: &str) -> Option<(&str, u32, &str)> {
    let fields: Vec<&str> = line.split(':').collect();
    let &[name, _, gid, members, ..] = fields.as_slice() else { return None };
    Some((name, gid.parse().ok()?, members))
}

/// A regular file of the container; `None` if there is none. Never waits (a FIFO could be planted there).
fn open(root: BorrowedFd<'_>, path: &str) -> Result<Option<File>, StepError> {
    let what = || format!("open the image's {path}");
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = match open_in_root(root, Path::new(path), flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
        Err(e) => return Err(e).doing(what),
    };
    if !file.metadata().doing(what)?.is_file() {
        return Err(StepError::new(Errno::EINVAL, format!("{}, which is no regular file", what())));
    }
    Ok(Some(file))
}

/// The first line for which `wanted` gives something, among the bounded and well-formed ones.
fn find_line<T>(file: File, path: &str, mut wanted: impl FnMut(&str) -> Option<T>) -> Result<Option<T>, StepError> {
    let mut reader = BufReader::new(file.take(MAX_FILE_BYTES));
    let mut line = Vec::new();
    loop {
        line.clear();
        let len = (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).doing(|| format!("read {path}"))?;
        if len == 0 {
            return Ok(None);
        }
        if line.last() != Some(&b'\n') && len as u64 == MAX_LINE_BYTES {
            // The rest of an endless line is no line of its own.
            skip_line(&mut reader).doing(|| format!("read {path}"))?;
            continue;
        }
        let Ok(text) = std::str::from_utf8(&line) else { continue };
        if let Some(found) = wanted(text.trim_end_matches(['\n', '\r'])) {
            return Ok(Some(found));
        }
    }
}

fn skip_line(reader: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        let Some(end) = buffer.iter().position(|b| *b == b'\n') else {
            let len = buffer.len();
            if len == 0 {
                return Ok(());
            }
            reader.consume(len);
            continue;
        };
        reader.consume(end + 1);
        return Ok(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::{AsFd, OwnedFd};

    fn image(passwd: &str, group: &str) -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        fs::write(dir.path().join("etc/group"), group).unwrap();
        let fd = OwnedFd::from(File::open(dir.path()).unwrap());
        (dir, fd)
    }

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:44:w:/var/www:/bin/sh\nbad:x:notanumber:1::/:\n";
    const GROUP: &str = "root:x:0:\nweb:x:44:\nlogs:x:50:web,root\nother:x:51:root\n";

    fn who(spec: &str) -> Result<plan::ResolvedUser, StepError> {
        let (_dir, root) = image(PASSWD, GROUP);
        resolve(root.as_fd(), &plan::User { spec: spec.to_owned(), merge_image_groups: true, ..Default::default() })
    }

    #[test]
    fn names_and_numbers() {
        let ids = |spec| who(spec).map(|u| (u.uid, u.gid, u.groups, u.home)).unwrap();
        assert_eq!(ids(""), (0, 0, vec![0, 50, 51], "/root".to_owned()));
        assert_eq!(ids("web"), (33, 44, vec![44, 50], "/var/www".to_owned()));
        assert_eq!(ids("33"), (33, 44, vec![44, 50], "/var/www".to_owned()));
        assert_eq!(ids("web:logs"), (33, 50, vec![50], "/var/www".to_owned()));
        assert_eq!(ids("1234"), (1234, 0, vec![0], "/".to_owned()));
        assert_eq!(ids("1234:5"), (1234, 5, vec![5], "/".to_owned()));
    }

    #[test]
    fn what_is_nobody_is_refused_not_root() {
        for bad in [
            "nobody-here",
            "4294967296",
            "4294967295",
            "99999999999999999999",
            "-1",
            "+1",
            "web:none",
            "0:4294967296",
            "a\nb",
        ] {
            assert!(who(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn explicit_ids_win_over_the_specification() {
        let (_dir, root) = image(PASSWD, GROUP);
        let user = plan::User {
            spec: "web".into(),
            uid: Some(7),
            gid: Some(8),
            additional_gids: vec![9, 8],
            ..Default::default()
        };
        let user = resolve(root.as_fd(), &user).unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (7, 8, vec![8, 9]));
    }

    #[test]
    fn an_endless_line_and_a_control_character_do_no_harm() {
        let passwd = format!("{}\nweb:x:33:44:w:/home\u{7}x:/bin/sh\n", "x".repeat(200_000));
        let (_dir, root) = image(&passwd, GROUP);
        let user = resolve(root.as_fd(), &plan::User { spec: "web".into(), ..Default::default() }).unwrap();
        assert_eq!((user.uid, user.home.as_str()), (33, "/"));
    }

    #[test]
    fn a_fifo_in_place_of_passwd_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("etc/passwd"), Mode::from_bits_truncate(0o644)).unwrap();
        let root = OwnedFd::from(File::open(dir.path()).unwrap());
        assert!(resolve(root.as_fd(), &plan::User::default()).is_err());
    }

    #[test]
    fn an_image_without_files_knows_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(File::open(dir.path()).unwrap());
        let user =
            resolve(root.as_fd(), &plan::User { spec: "5:6".into(), merge_image_groups: true, ..Default::default() });
        assert_eq!(user.map(|u| (u.uid, u.gid)).unwrap(), (5, 6));
    }
}
