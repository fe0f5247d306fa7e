//! Extended attributes of open files and directories.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::cvt;

/// Sets the attribute `name` of an open file or directory (not `O_PATH`) to `value`.
///
/// # Errors
/// As fsetxattr(2): `ENOTSUP` where the file system or the file's type has no such attributes.
pub fn set(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: `fd` is open for the whole call, `name` is NUL-terminated, and `value` is readable for the length given;
    // the kernel keeps none of them.
    let ret = unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    cvt(ret.into()).map(drop)
}

/// The attribute `name` of an open file or directory (not `O_PATH`); none if it is not set.
///
/// # Errors
/// As fgetxattr(2); `ENODATA` and `ENOTSUP` are answered with none.
pub fn get(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    // The kernel's own bound on a value, so one call is enough.
    let mut value = vec![0_u8; 65536];
    // SAFETY: `fd` is open for the whole call, `name` is NUL-terminated, and `value` is writable for the length given.
    let ret = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match usize::try_from(ret) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(_) => match io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::ENOTSUP)) => Ok(None),
            e => Err(e),
        },
    }
}

/// Whether an open file or directory (not `O_PATH`) has the attribute `name`, whatever its value.
///
/// # Errors
/// As fgetxattr(2); `ENODATA` and `ENOTSUP` are answered with no.
pub fn is_set(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    // SAFETY: `fd` is open for the whole call and `name` is NUL-terminated; a length of 0 asks for the value's length,
    // and nothing is written through the null pointer.
    let ret = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), std::ptr::null_mut(), 0) };
    match cvt(ret as libc::c_long) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::ENOTSUP)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The names of all attributes of an open file or directory (not `O_PATH`).
///
/// # Errors
/// As flistxattr(2); `ENOTSUP` is answered with none.
pub fn list(fd: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    // The kernel's own bound on the list.
    let mut names = vec![0_u8; 65536];
    // SAFETY: `fd` is open for the whole call, and `names` is writable for the length given.
    let ret = unsafe { libc::flistxattr(fd.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    match usize::try_from(ret) {
        Ok(length) => {
            let parts = names[..length].split(|b| *b == 0).filter(|n| !n.is_empty());
            Ok(parts.filter_map(|n| CString::new(n).ok()).collect())
        }
        Err(_) => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENOTSUP) => Ok(Vec::new()),
            e => Err(e),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn attributes_come_back_as_set() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(get(file.as_fd(), c"user.note").unwrap(), None);
        set(file.as_fd(), c"user.note", b"\0\n").unwrap();
        assert_eq!(get(file.as_fd(), c"user.note").unwrap().unwrap(), b"\0\n");
        assert_eq!(list(file.as_fd()).unwrap(), [c"user.note".to_owned()]);
    }
}
