//! The descriptor-based mount API (Linux 5.2+): fsopen(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2).
//!
//! A mount made here is detached: no mount namespace sees it until it is moved, and closing the descriptor drops it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use super::{cvt, cvt_fd};

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_SET_FD: libc::c_uint = 5;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// `MOUNT_ATTR_*` of mount_setattr(2), as bits.
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// No set-user-ID.
    pub const NOSUID: u64 = 0x2;
    /// No device nodes.
    pub const NODEV: u64 = 0x4;
    /// Nothing is executed.
    pub const NOEXEC: u64 = 0x8;
    /// Access times are not kept.
    pub const NOATIME: u64 = 0x10;
    /// Access times always kept.
    pub const STRICTATIME: u64 = 0x20;
    /// The bits of all access time modes; to be cleared when one is set.
    pub const ATIME: u64 = 0x70;
    /// Directory access times are not kept.
    pub const NODIRATIME: u64 = 0x80;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// A filesystem being configured.
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl FsContext {
    /// Begins a filesystem of this type ("tmpfs", "overlay").
    ///
    /// # Errors
    /// `ENODEV` if the kernel does not know the type, else as fsopen(2).
    pub fn open(fstype: &CStr) -> io::Result<Self> {
        // SAFETY: `fstype` is NUL-terminated and outlives the call.
        let ret = unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC) };
        cvt_fd(ret).map(Self)
    }

    /// Sets `key=value`; at most 255 bytes of value.
    ///
    /// # Errors
    /// `EINVAL` for an option the filesystem does not take, else as fsconfig(2).
    pub fn set_string(&self, key: &CStr, value: &CStr) -> io::Result<()> {
        self.config(FSCONFIG_SET_STRING, Some(key), value.as_ptr().cast(), 0)
    }

    /// Sets a bare option.
    ///
    /// # Errors
    /// As [`FsContext::set_string`].
    pub fn set_flag(&self, key: &CStr) -> io::Result<()> {
        self.config(FSCONFIG_SET_FLAG, Some(key), ptr::null(), 0)
    }

    /// Sets an option whose value is a file (overlay layers, Linux 6.13+).
    ///
    /// # Errors
    /// `EINVAL` where the kernel wants a string, else as fsconfig(2).
    pub fn set_fd(&self, key: &CStr, value: BorrowedFd<'_>) -> io::Result<()> {
        self.config(FSCONFIG_SET_FD, Some(key), ptr::null(), value.as_raw_fd())
    }

    /// Creates the filesystem and a detached mount of it with these [`attr`] bits.
    ///
    /// # Errors
    /// What the filesystem says about its options; [`FsContext::complaint`] may say it in words.
    pub fn mount(&self, attrs: u64) -> io::Result<OwnedFd> {
        self.config(FSCONFIG_CMD_CREATE, None, ptr::null(), 0)?;
        // SAFETY: `self.0` is open for the whole call; the other arguments are plain numbers.
        let ret = unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attrs) };
        cvt_fd(ret)
    }

    /// The kernel's last message about this context ("overlay: …"), if it left one.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let mut buffer = [0u8; 512];
        let len = nix::unistd::read(&self.0, &mut buffer).ok()?;
        let text = String::from_utf8_lossy(&buffer[..len]);
        Some(text.trim_start_matches(['e', 'w', 'i', ' ']).trim().to_owned())
    }

    fn config(&self, cmd: libc::c_uint, key: Option<&CStr>, value: *const libc::c_void, aux: i32) -> io::Result<()> {
        let key = key.map_or(ptr::null(), CStr::as_ptr);
        // SAFETY: `key` is null or NUL-terminated; `value` is null or the pointer of a C string of the caller;
        // both outlive the call, and the kernel copies them.
        let ret = unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), cmd, key, value, aux) };
        cvt(ret).map(drop)
    }
}

/// A detached copy of the mount at `path` below `dir` (or of `dir` itself if `path` is empty), with what is
/// mounted below it if `recursive`. The copy joins the original's peer group.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` for a mount of another namespace, else as open_tree(2).
pub fn clone_mount(dir: BorrowedFd<'_>, path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned();
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH.cast_unsigned();
    }
    if recursive {
        flags |= libc::AT_RECURSIVE.cast_unsigned();
    }
    // SAFETY: `dir` is open for the whole call and `path` is NUL-terminated; the kernel keeps neither.
    let ret = unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) };
    cvt_fd(ret)
}

/// Attaches the detached mount `mount` on top of the file or directory `target`.
///
/// # Errors
/// `ENOTDIR`/`EINVAL` when one is a directory and the other is not, else as move_mount(2).
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let (from, to) = (mount.as_raw_fd(), target.as_raw_fd());
    // SAFETY: both descriptors are open for the whole call and both paths are the static empty string.
    let ret = unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), flags) };
    cvt(ret).map(drop)
}

/// What [`set_attr`] changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// [`attr`] bits to set.
    pub set: u64,
    /// [`attr`] bits to clear first.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0 to leave it.
    pub propagation: u64,
    /// Also on every mount below.
    pub recursive: bool,
}

/// Changes the attributes of the mount that `mount` is the root of.
///
/// # Errors
/// `ENOSYS` before Linux 5.12, `EINVAL` for combinations the kernel refuses, else as mount_setattr(2).
pub fn set_attr(mount: BorrowedFd<'_>, change: SetAttr) -> io::Result<()> {
    if change.set == 0 && change.clear == 0 && change.propagation == 0 {
        return Ok(());
    }
    let args = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: 0,
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if change.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `mount` is open for the whole call; `args` is a mount_attr of the size told and outlives the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const args,
            size_of::<libc::mount_attr>(),
        )
    };
    cvt(ret).map(drop)
}
