//! Long lists in several messages, so that no client's limit on one message is a limit on a list.

use std::pin::Pin;

use prost::Message;
use tokio_stream::Stream;
use tonic::Status;

/// Messages of an answer that has several.
pub(super) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Items in one message.
const MAX_ITEMS: usize = 500;
/// What the items of one message may take, encoded; a larger one goes alone. Clients take four MiB at least.
const MAX_BYTES: usize = 1 << 20;

/// A list as a stream of messages, each made when it is asked for.
pub(super) fn stream<I: Message + 'static, M: 'static>(
    items: impl Iterator<Item = I> + Send + 'static,
    wrap: impl Fn(Vec<I>) -> M + Send + 'static,
) -> Streamed<M> {
    Box::pin(tokio_stream::iter(batches(items, move |batch| Ok(wrap(batch)))))
}

fn batches<I: Message, M>(items: impl Iterator<Item = I>, wrap: impl Fn(Vec<I>) -> M) -> impl Iterator<Item = M> {
    let mut items = items.peekable();
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let mut batch = Vec::new();
        while batch.len() < MAX_ITEMS
            && let Some(item) = items.next_if(|item| {
                bytes += item.encoded_len();
                batch.is_empty() || bytes <= MAX_BYTES
            })
        {
            batch.push(item);
        }
        (!batch.is_empty()).then(|| wrap(batch))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(items: impl IntoIterator<Item = usize>) -> Vec<Vec<usize>> {
        let items = items.into_iter().map(|length| "x".repeat(length));
        batches(items, |batch| batch.iter().map(String::len).collect()).collect()
    }

    #[test]
    fn a_message_holds_so_many_items_and_so_many_bytes() {
        assert!(lengths([]).is_empty());
        assert_eq!(lengths(0..MAX_ITEMS + 1).iter().map(Vec::len).collect::<Vec<_>>(), [MAX_ITEMS, 1]);
        let half = MAX_BYTES / 2 - 16;
        assert_eq!(lengths([half, half, half]), [vec![half, half], vec![half]]);
        assert_eq!(lengths([1, 3 * MAX_BYTES, 1, 2]), [vec![1], vec![3 * MAX_BYTES], vec![1, 2]]);
    }

    #[test]
    fn nothing_is_lost_between_messages() {
        let all: Vec<usize> = (0..3000).map(|i| i * 7 % 5000).collect();
        assert_eq!(lengths(all.iter().copied()).concat(), all);
    }
}
