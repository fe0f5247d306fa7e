//! Mounts: fstab words become attribute bits, propagation and filesystem parameters.

use oci_spec::runtime::Mount;

use super::{CompileError, Extra, absolute, text};
use crate::plan::{self, Propagation, mount::Kind};

// include/uapi/linux/mount.h
const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
/// The bits that together say how access times are kept; relatime is none of them.
const ATIME_MASK: u64 = 0x70;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// What a word changes: bits to set, bits to clear. With an `r` in front it holds for the mounts
/// below too.
const ATTRIBUTES: [(&str, u64, u64); 18] = [
    ("ro", RDONLY, 0),
    ("rw", 0, RDONLY),
    ("nosuid", NOSUID, 0),
    ("suid", 0, NOSUID),
    ("nodev", NODEV, 0),
    ("dev", 0, NODEV),
    ("noexec", NOEXEC, 0),
    ("exec", 0, NOEXEC),
    ("noatime", NOATIME, ATIME_MASK),
    ("atime", 0, ATIME_MASK),
    ("strictatime", STRICTATIME, ATIME_MASK),
    ("nostrictatime", 0, ATIME_MASK),
    ("relatime", 0, ATIME_MASK),
    ("norelatime", 0, ATIME_MASK),
    ("nodiratime", NODIRATIME, 0),
    ("diratime", 0, NODIRATIME),
    ("nosymfollow", NOSYMFOLLOW, 0),
    ("symfollow", 0, NOSYMFOLLOW),
];

/// What the words of one mount say.
#[derive(Default)]
struct Options {
    bind: Option<Bind>,
    set: u64,
    clear: u64,
    /// Words for the mount alone and words for the whole tree: both at once fit no plan.
    single: bool,
    recursive: bool,
    propagation: Option<Propagation>,
    parameters: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Bind {
    One,
    Tree,
}

pub(super) fn compile(mounts: &[Mount], extra: &Extra) -> Result<Vec<plan::Mount>, CompileError> {
    let mut list: Vec<plan::Mount> = Vec::with_capacity(mounts.len());
    for (i, mount) in mounts.iter().enumerate() {
        let target = text(&format!("mounts[{i}].destination"), mount.destination())?;
        absolute(&format!("mounts[{i}].destination"), &target)?;
        // The DEV mount brings its own devpts, whose ptmx the device nodes need.
        let is_pts = target == "/dev/pts" && mount.typ().as_deref() == Some("devpts");
        if is_pts && list.iter().any(|m| m.kind() == Kind::Dev) {
            continue;
        }
        let plan = compile_mount(i, mount, target, extra)?;
        list.push(plan);
    }
    Ok(list)
}

/// Whether the container's `/dev` is somebody else's directory.
pub(super) fn binds_dev(mounts: &[plan::Mount]) -> bool {
    mounts.iter().rfind(|m| m.target == "/dev").is_some_and(|m| m.kind() == Kind::Bind)
}

fn compile_mount(i: usize, mount: &Mount, target: String, extra: &Extra) -> Result<plan::Mount, CompileError> {
    let field = format!("mounts[{i}]");
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(CompileError::unsupported(format!("{field}.uidMappings")));
    }
    let mut options = Options::default();
    for word in mount.options().iter().flatten() {
        read_word(&mut options, word, &format!("{field}.options"))?;
    }
    if options.single && options.recursive {
        let reason = "options for the mount alone and options for the tree below it (rro …) cannot be mixed";
        return Err(CompileError::invalid(format!("{field}.options"), reason));
    }
    let image = extra.images.get(&i).cloned();
    let kind = if image.is_some() { Kind::Image } else { kind(mount, &target, &options, extra) };
    let source = mount.source().as_deref().map(|s| text(&format!("{field}.source"), s)).transpose()?;
    let source = source.unwrap_or_default();
    match kind {
        Kind::Bind => check_bind(&field, &source, &options)?,
        Kind::Filesystem if mount.typ().as_deref().unwrap_or_default().is_empty() => {
            return Err(CompileError::missing(format!("{field}.type")));
        }
        _ => {}
    }
    let is_volume = extra.volumes.contains(&i);
    let propagation = options.propagation.unwrap_or(Propagation::Private);
    Ok(plan::Mount {
        kind: kind as i32,
        target,
        source,
        fstype: if kind == Kind::Filesystem { mount.typ().clone().unwrap_or_default() } else { String::new() },
        attr_set: options.set,
        attr_clear: options.clear,
        options: options.parameters,
        propagation: propagation as i32,
        recursive: options.bind == Some(Bind::Tree),
        attr_recursive: options.recursive,
        create_source: is_volume && kind == Kind::Bind,
        need_peer: is_volume && matches!(propagation, Propagation::Slave | Propagation::Shared),
        image,
    })
}

fn kind(mount: &Mount, target: &str, options: &Options, extra: &Extra) -> Kind {
    if options.bind.is_some() {
        return Kind::Bind;
    }
    match (mount.typ().as_deref().unwrap_or_default(), target) {
        ("bind", _) => Kind::Bind,
        ("cgroup" | "cgroup2", _) => Kind::Cgroup,
        ("tmpfs", "/dev") => Kind::Dev,
        ("tmpfs", "/dev/shm") if extra.sandbox_shm => Kind::SandboxShm,
        _ => Kind::Filesystem,
    }
}

fn check_bind(field: &str, source: &str, options: &Options) -> Result<(), CompileError> {
    if !source.starts_with('/') {
        return Err(CompileError::invalid(format!("{field}.source"), format!("{source:?} is not absolute")));
    }
    if source.contains('\0') {
        return Err(CompileError::invalid(format!("{field}.source"), "contains a NUL"));
    }
    match options.parameters.first() {
        Some(word) => {
            Err(CompileError::invalid(format!("{field}.options"), format!("{word:?} means nothing for a bind mount")))
        }
        None => Ok(()),
    }
}

fn read_word(options: &mut Options, word: &str, field: &str) -> Result<(), CompileError> {
    if let Some(&(_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| *name == word) {
        options.single = true;
        return change(options, set, clear);
    }
    let below = word.strip_prefix('r').and_then(|rest| ATTRIBUTES.iter().find(|(name, ..)| *name == rest));
    if let Some(&(_, set, clear)) = below {
        options.recursive = true;
        return change(options, set, clear);
    }
    match word {
        "bind" => options.bind = Some(Bind::One),
        "rbind" => options.bind = Some(Bind::Tree),
        "private" | "rprivate" => options.propagation = Some(Propagation::Private),
        "slave" | "rslave" => options.propagation = Some(Propagation::Slave),
        "shared" | "rshared" => options.propagation = Some(Propagation::Shared),
        "unbindable" | "runbindable" => options.propagation = Some(Propagation::Unbindable),
        "defaults" | "" => {}
        "tmpcopyup" | "idmap" | "ridmap" | "remount" => {
            return Err(CompileError::unsupported(format!("{field} {word:?}")));
        }
        // Anything else is the filesystem's to understand.
        _ if word.contains('\0') => return Err(CompileError::invalid(field, "contains a NUL")),
        _ => options.parameters.push(word.to_owned()),
    }
    Ok(())
}

/// A later word overrules an earlier one.
#[allow(clippy::unnecessary_wraps, reason = "ends `read_word` in one expression")]
fn change(options: &mut Options, set: u64, clear: u64) -> Result<(), CompileError> {
    options.set = (options.set & !clear) | set;
    options.clear = (options.clear & !set) | clear;
    Ok(())
}
