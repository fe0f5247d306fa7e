//! Memory given back to the kernel.

/// Gives back what the allocator keeps of freed memory. Takes some microseconds, more for a large heap.
pub fn trim() {
    // SAFETY: takes a plain number, keeps its own locks, and touches only memory nobody has allocated.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}
