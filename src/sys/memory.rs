//! Memory given back to the kernel.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::linux::fs::MetadataExt;

/// Gives back what the allocator keeps of freed memory. Takes some microseconds, more for a large heap.
pub fn trim() {
    // SAFETY: takes a plain number, keeps its own locks, and touches only memory nobody has allocated.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Gives back what a large job needed: the allocator's free memory, and the pages of code that only it ran.
///
/// Costs a few page faults, from the page cache, for what goes on running.
///
/// # Errors
/// As open(2) and read(2) on `/proc/self/maps`, and madvise(2); nothing is lost then.
pub fn give_back() -> io::Result<()> {
    trim();
    let program = std::fs::metadata("/proc/self/exe")?.st_ino();
    for line in BufReader::new(File::open("/proc/self/maps")?).lines() {
        if let Some((start, length)) = code(&line?, program) {
            // SAFETY: the mapping is private, of a file, executable and not writable (all checked), so its pages are
            // those of the file; the kernel lets nobody write to the file of a running program. Whoever touches them
            // next reads the same bytes. Nothing unmaps the program meanwhile.
            let done = unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
            if done != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Start and length of the mapping a line of `/proc/self/maps` (proc(5)) is about, if it is code of the file with this
/// inode.
fn code(line: &str, inode: u64) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let of: u64 = fields.nth(2)?.parse().ok()?;
    (permissions == "r-xp" && of == inode && inode != 0).then(|| (start, end.saturating_sub(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_is_meant() {
        let line = "55d0c8a00000-55d0c8e00000 r-xp 00200000 fe:00 1234                       /usr/bin/aril";
        assert_eq!(code(line, 1234), Some((0x55d0_c8a0_0000, 0x40_0000)));
        assert_eq!(code(line, 1235), None);
        assert_eq!(code(&line.replace("r-xp", "rw-p"), 1234), None);
        assert_eq!(code("7ffc1000-7ffc2000 r-xp 00000000 00:00 0    [vdso]", 0), None);
        assert_eq!(code("", 1), None);
    }

    #[test]
    fn what_runs_goes_on() {
        give_back().unwrap();
        assert_eq!(code("", 1), None);
    }
}
