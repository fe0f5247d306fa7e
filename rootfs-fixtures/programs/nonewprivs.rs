//! Installed setuid root: says whom it runs as, so that `no_new_privs` can be seen to work.

unsafe extern "C" {
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    safe fn geteuid() -> u32;
}

fn main() {
    println!("Effective uid: {}", geteuid());
}
