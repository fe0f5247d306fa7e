//! Threads for one call each: they may block, enter namespaces and panic without harm to anybody else.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::oneshot;

use super::NetError;

/// Enough for a driver; touched pages only cost memory.
const STACK_BYTES: usize = 512 << 10;

/// Does something on a thread made for it. Dropping the future does not end the thread.
///
/// # Errors
/// [`NetError::Kernel`] if there can be no thread, [`NetError::Panicked`].
pub(super) async fn apart<T: Send + 'static>(
    what: &'static str,
    act: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NetError> {
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        // Whoever waited may be gone.
        sender.send(guarded(what, act)).ok();
    };
    std::thread::Builder::new()
        .name(format!("net {what}"))
        .stack_size(STACK_BYTES)
        .spawn(run)
        .map_err(|source| NetError::Kernel { step: "start a thread to", object: what.to_owned(), source })?;
    let gone = || NetError::Panicked { driver: what.to_owned(), message: "its thread is gone".to_owned() };
    receiver.await.unwrap_or_else(|_| Err(gone()))
}

/// Turns a panic into an error.
///
/// # Errors
/// [`NetError::Panicked`].
pub(super) fn guarded<T>(driver: &str, act: impl FnOnce() -> T) -> Result<T, NetError> {
    // What a driver shares is behind its own locks, which it takes as whole whoever held them.
    catch_unwind(AssertUnwindSafe(act)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        NetError::Panicked { driver: driver.to_owned(), message: text.unwrap_or_else(|| "no message".to_owned()) }
    })
}
