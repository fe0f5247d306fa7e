//! What an entry's name asks for: a file of its own, or hiding one of a layer below.
//!
//! Follows the OCI image specification, "Whiteouts".

use super::UnpackError;
use crate::image::Limits;

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names the aufs file system kept for itself.
const RESERVED: &[u8] = b".wh..wh.";

/// A layer entry's path, made harmless.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// The layer's root directory.
    Root,
    /// Something in the layer.
    Plain(&'a [u8]),
    /// Hides this path of the layers below.
    Whiteout(Vec<u8>),
    /// Hides all the layers below have in this directory; empty: the root.
    Opaque(&'a [u8]),
    /// Housekeeping of aufs.
    Ignored,
}

/// Brings a path into the form `a/b/c`: no empty part, no `.`, never absolute; the root is empty.
///
/// # Errors
/// A reason to refuse it: `..`, a NUL, or over the limits.
pub(super) fn normalise(raw: &[u8], limits: &Limits) -> Result<Vec<u8>, &'static str> {
    if raw.len() > limits.path_bytes {
        return Err("its path is too long");
    }
    let mut path = Vec::with_capacity(raw.len());
    let mut depth = 0;
    for part in raw.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".") {
        if part == b".." {
            return Err("its path has a part \"..\"");
        }
        if part.contains(&0) {
            return Err("its path has a NUL byte");
        }
        if part.len() > 255 {
            return Err("a part of its path is longer than 255 bytes");
        }
        depth += 1;
        if depth > limits.path_depth {
            return Err("its path is too deep");
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    Ok(path)
}

/// The directory and the name of a normalised path that is not the root.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Tells what a normalised path asks for.
///
/// # Errors
/// A reason to refuse it: hiding nothing, itself or its parent, or something below a whiteout.
pub(super) fn classify(path: &[u8]) -> Result<Target<'_>, &'static str> {
    if path.is_empty() {
        return Ok(Target::Root);
    }
    let (dir, name) = split(path);
    if dir.split(|b| *b == b'/').any(|part| part.starts_with(RESERVED)) {
        return Ok(Target::Ignored);
    }
    if dir.split(|b| *b == b'/').any(|part| part.starts_with(PREFIX)) {
        return Err("its path goes through a whiteout");
    }
    match name.strip_prefix(PREFIX) {
        None => Ok(Target::Plain(path)),
        Some(_) if name == OPAQUE => Ok(Target::Opaque(dir)),
        Some(_) if name.starts_with(RESERVED) => Ok(Target::Ignored),
        Some(b"" | b"." | b"..") => Err("it is a whiteout of nothing"),
        Some(hidden) if dir.is_empty() => Ok(Target::Whiteout(hidden.to_vec())),
        Some(hidden) => Ok(Target::Whiteout([dir, b"/", hidden].concat())),
    }
}

/// Which extended attributes an image may bring: none that the kernel, overlay or a security module trusts.
pub(super) fn allowed_xattr(name: &[u8]) -> bool {
    (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
        || [b"security.capability".as_slice(), b"system.posix_acl_access", b"system.posix_acl_default"].contains(&name)
}

/// A path for messages.
pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

/// Refuses an entry.
pub(super) fn refuse(path: &[u8], reason: &'static str) -> UnpackError {
    UnpackError::Entry { entry: shown(path), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_plain() {
        let limits = Limits::default();
        for (raw, plain) in [("", ""), ("/", ""), (".", ""), ("./", ""), ("/etc//./x/", "etc/x"), ("a", "a")] {
            assert_eq!(normalise(raw.as_bytes(), &limits).unwrap(), plain.as_bytes(), "{raw}");
        }
        let deep = "a/".repeat(300);
        let wide = "a".repeat(256);
        for bad in ["..", "a/..", "../a", "/..", "a/../b", "a\0b", &deep, &wide, &"a/".repeat(3000)] {
            assert!(normalise(bad.as_bytes(), &limits).is_err(), "{bad}");
        }
    }

    #[test]
    fn whiteouts_are_told_from_files() {
        let of = |path: &str| classify(path.as_bytes()).map(|t| format!("{t:?}"));
        assert_eq!(classify(b"").unwrap(), Target::Root);
        assert_eq!(classify(b"a/b").unwrap(), Target::Plain(b"a/b"));
        assert_eq!(classify(b"a/.wh.b").unwrap(), Target::Whiteout(b"a/b".to_vec()));
        assert_eq!(classify(b".wh.b").unwrap(), Target::Whiteout(b"b".to_vec()));
        assert_eq!(classify(b".wh..wh..opq").unwrap(), Target::Opaque(b""));
        assert_eq!(classify(b"a/.wh..wh..opq").unwrap(), Target::Opaque(b"a"));
        assert_eq!(classify(b".wh..wh.plnk/1").unwrap(), Target::Ignored);
        assert_eq!(classify(b"a/.wh..wh.aufs").unwrap(), Target::Ignored);
        assert_eq!(classify(b"a/b.wh.c").unwrap(), Target::Plain(b"a/b.wh.c"));
        for bad in [".wh.", "a/.wh.", ".wh..", ".wh...", "a/.wh.../x", ".wh.a/b"] {
            assert!(classify(bad.as_bytes()).is_err(), "{bad}: {:?}", of(bad));
        }
    }

    #[test]
    fn attributes_the_kernel_trusts_stay_out() {
        assert!(allowed_xattr(b"user.note") && allowed_xattr(b"security.capability"));
        for bad in
            ["trusted.overlay.opaque", "trusted.x", "user.overlay.opaque", "security.selinux", "security.ima", ""]
        {
            assert!(!allowed_xattr(bad.as_bytes()), "{bad}");
        }
    }
}
