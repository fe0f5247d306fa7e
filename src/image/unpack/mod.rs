//! Unpacks one layer: a stream of bytes in, a directory of files out, nothing trusted on the way.
//!
//! Bounded memory, one pass: the blob is hashed, decompressed, hashed again and written as it comes. Only when all of
//! it was read are size, digest and diff ID compared; until then the directory belongs to nobody and is thrown away on
//! any error. Whiteouts become what overlay reads: a character device 0:0, the attribute `trusted.overlay.opaque`.
//!
//! A layer normally depends on itself alone. The exceptions are found here and told to the caller: a hard link whose
//! target is in a layer below, and a directory that is only implied by a path (it has the attributes, or is the
//! symbolic link, that layers below give it). Such a layer is unpacked again with the layers below at hand, unless those
//! have nothing in these places but what was made there: plain directories of root's.

mod ahead;
mod contents;
mod entries;
mod lower;
mod make;
mod pax;
mod stream;
mod tree;
mod walk;
mod whiteout;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::id::Digest;
use crate::image::Limits;
use crate::image::error::UnpackError;

pub(super) use contents::{Contents, compare as compare_files, write as write_files};
pub(super) use entries::{Entries, Kind, Source};
pub(super) use lower::Lower;
pub(super) use stream::{Compression, decompressed};
pub(super) use walk::{Occupied, remove};

use ahead::Ahead;
use entries::from_stream;
pub(super) use tree::Implied;
use tree::Tree;
use whiteout::{Target, classify, normalise, refuse};

const BUFFER_BYTES: usize = 256 << 10;
/// Blobs below are unpacked by the calling thread alone.
const SMALL_BYTES: u64 = 128 << 10;
/// Blobs from here on get a thread for each hash.
const LARGE_BYTES: u64 = 8 << 20;

/// What the bytes of a layer must turn out to be.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    /// Digest and size of the blob; archives of `docker save` do not say.
    pub blob: Option<(Digest, u64)>,
    pub diff_id: Digest,
}

/// How a layer stands to the ones below.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Directories that paths imply: their attributes are those below, unless there is nothing below.
    pub implied: Implied,
    /// The first hard link whose target was not there; it was left out.
    pub dangling_link: Option<String>,
    /// Hashes of what was written.
    pub contents: Contents,
}

/// Unpacks `blob` into the empty directory `into` (`host_path`, for messages), with up to three threads beside the
/// calling one.
///
/// `lower`: none to find out whether the layer depends on others, else the layers below.
///
/// # Errors
/// [`UnpackError`]; what was made so far is the caller's to remove.
pub(super) fn unpack(
    blob: impl Read + Send + 'static,
    expected: &Expected,
    into: OwnedFd,
    host_path: &Path,
    lower: Option<&Lower>,
    limits: &Limits,
) -> Result<Outcome, UnpackError> {
    // A thread costs some 50 µs; a layer of unknown size is worth it.
    let size = expected.blob.as_ref().map_or(u64::MAX, |(_, size)| *size);
    let (is_small, is_large) = (size < SMALL_BYTES, size >= LARGE_BYTES);
    let (mut blob, compressed) = Ahead::here(blob).tallied(u64::MAX);
    if is_large {
        blob = blob.onto_thread("hash-blob");
    }
    let plain = decompressed(blob).map_err(from_stream)?;
    let plain = if is_small { Ahead::here(plain) } else { Ahead::thread("inflate", plain) };
    let (mut plain, unpacked) = plain.tallied(limits.layer_bytes);
    if is_large {
        plain = plain.onto_thread("hash-layer");
    }
    let mut entries = Entries::new(plain, limits, limits.layer_entries);
    let mut tree = Tree::new(into, host_path, lower, limits);
    put_all(&mut entries, &mut tree, limits)?;
    // What follows the archive's end belongs to the digests.
    io::copy(entries.source(), &mut io::sink()).map_err(from_stream)?;
    if let Some((digest, size)) = &expected.blob {
        compare("size", &size.to_string(), &compressed.bytes().to_string())?;
        compare("digest", digest.as_str(), compressed.digest().as_str())?;
    }
    compare("diff ID", expected.diff_id.as_str(), unpacked.digest().as_str())?;
    let outcome = Outcome {
        implied: std::mem::take(&mut tree.implied),
        dangling_link: tree.dangling_link.take(),
        contents: std::mem::take(&mut tree.contents),
    };
    tree.finish()?;
    Ok(outcome)
}

fn put_all<R: Source>(entries: &mut Entries<'_, R>, tree: &mut Tree<'_>, limits: &Limits) -> Result<(), UnpackError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Some(entry) = entries.next()? {
        tree.charge(entry.xattrs.len() as u64)?;
        let path = normalise(&entry.path, limits).map_err(|reason| refuse(&entry.path, reason))?;
        match classify(&path).map_err(|reason| refuse(&entry.path, reason))? {
            Target::Root => tree.put_root(&entry)?,
            Target::Plain(path) => tree.put(path, &entry, entries, &mut buffer)?,
            Target::Whiteout(path) => tree.put_whiteout(&path)?,
            Target::Opaque(path) => {
                let dir = tree.directory(path)?;
                tree.mark_opaque(&dir)?;
            }
            Target::Ignored => {}
        }
    }
    Ok(())
}

fn compare(what: &'static str, expected: &str, actual: &str) -> Result<(), UnpackError> {
    if expected == actual {
        return Ok(());
    }
    Err(UnpackError::Mismatch { what, expected: expected.to_owned(), actual: actual.to_owned() })
}
