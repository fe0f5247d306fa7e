//! Waits for a signal that ends it, and reaps what its PID namespace leaves to it.

unsafe extern "C" {
    // SAFETY: plain numbers, and handlers that are constants of the C library.
    safe fn signal(number: i32, handler: usize) -> usize;
    // SAFETY: takes nothing; returns after a signal was handled.
    safe fn pause() -> i32;
}

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
const SIG_IGN: usize = 1;

extern "C" fn leave(_: i32) {
    std::process::exit(0);
}

fn main() {
    // The first process of a PID namespace only gets signals it handles.
    let handler: extern "C" fn(i32) = leave;
    signal(SIGTERM, handler as usize);
    signal(SIGINT, handler as usize);
    // With SIGCHLD ignored the kernel reaps children by itself.
    signal(SIGCHLD, SIG_IGN);
    loop {
        pause();
    }
}
