//! The long operations under way in one pod's task.
//!
//! They are polled inside that task: no thread hop lies between an operation and the state it is
//! about, and they end with the task. They must not block.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

type Op<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Operations that each end in a `T`.
pub(super) struct Ops<T>(Vec<Op<T>>);

impl<T> Default for Ops<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> std::fmt::Debug for Ops<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} operations", self.0.len())
    }
}

impl<T> Ops<T> {
    /// Adds one; it runs from the next [`Ops::next`] on.
    pub fn push(&mut self, op: impl Future<Output = T> + Send + 'static) {
        self.0.push(Box::pin(op));
    }

    /// What the first one to end ended in; never, while there are none.
    ///
    /// Safe to drop: the operations stay where they are. A pod has few, so all are polled.
    pub fn next(&mut self) -> impl Future<Output = T> {
        poll_fn(|context| {
            let ended = self.0.iter_mut().enumerate().find_map(|(i, op)| match op.as_mut().poll(context) {
                Poll::Ready(value) => Some((i, value)),
                Poll::Pending => None,
            });
            match ended {
                Some((i, value)) => {
                    drop(self.0.swap_remove(i));
                    Poll::Ready(value)
                }
                None => Poll::Pending,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn operations_end_in_their_own_time() {
        let mut ops = Ops::default();
        for ms in [30, 1, 15] {
            ops.push(async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                ms
            });
        }
        assert_eq!([ops.next().await, ops.next().await, ops.next().await], [1, 15, 30]);
        assert!(tokio::time::timeout(Duration::from_millis(5), ops.next()).await.is_err());
    }
}
