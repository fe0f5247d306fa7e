//! Tokens: what tells that a client is the one a request was made for.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Request, StreamError, limits};

/// 128 random bits in hexadecimal digits.
const TOKEN_BYTES: usize = 16;

/// Requests that wait for their clients.
pub(super) struct Book {
    random: File,
    pending: Mutex<HashMap<String, (Instant, Request)>>,
}

/// Without the tokens.
impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Book").field("pending", &self.pending().len()).finish()
    }
}

impl Book {
    /// # Errors
    /// [`StreamError::Random`].
    pub fn open() -> Result<Self, StreamError> {
        let random = File::open("/dev/urandom").map_err(StreamError::Random)?;
        Ok(Self { random, pending: Mutex::default() })
    }

    /// Writes a request down; returns its token.
    ///
    /// # Errors
    /// [`StreamError::TooMany`], [`StreamError::Random`].
    pub fn enter(&self, request: Request, now: Instant) -> Result<String, StreamError> {
        let mut bytes = [0; TOKEN_BYTES];
        (&self.random).read_exact(&mut bytes).map_err(StreamError::Random)?;
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut pending = self.pending();
        // What they were for may be long; it is not kept for want of others.
        pending.retain(|_, (until, _)| *until > now);
        if pending.len() >= limits::TOKENS {
            return Err(StreamError::TooMany);
        }
        pending.insert(token.clone(), (now + limits::TOKEN_LIFE, request));
        Ok(token)
    }

    /// Takes the request of a token out, if it is one that `fits`; none if the token is unknown, used or too old.
    pub fn take(&self, token: &str, now: Instant, fits: impl Fn(&Request) -> bool) -> Option<Request> {
        let mut pending = self.pending();
        pending.get(token).filter(|(until, request)| *until > now && fits(request))?;
        pending.remove(token).map(|(_, request)| request)
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<String, (Instant, Request)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request::PortForward { sandbox: "x".to_owned(), ports: Vec::new() }
    }

    #[test]
    fn a_token_is_good_once_and_for_a_minute() {
        let (book, now) = (Book::open().unwrap(), Instant::now());
        let token = book.enter(request(), now).unwrap();
        assert_eq!(token.len(), 32);
        assert_eq!(book.take("0", now, |_| true), None);
        assert_eq!(book.take(&token, now, |_| false), None);
        assert_eq!(book.take(&token, now, |_| true), Some(request()));
        assert_eq!(book.take(&token, now, |_| true), None);
        let token = book.enter(request(), now).unwrap();
        assert_eq!(book.take(&token, now + limits::TOKEN_LIFE, |_| true), None);
        assert!(!format!("{book:?}").contains(&token));
    }

    #[test]
    fn only_so_many_wait() {
        let (book, now) = (Book::open().unwrap(), Instant::now());
        let mut tokens = std::collections::BTreeSet::new();
        for _ in 0..limits::TOKENS {
            tokens.insert(book.enter(request(), now).unwrap());
        }
        assert_eq!(tokens.len(), limits::TOKENS);
        assert!(matches!(book.enter(request(), now), Err(StreamError::TooMany)));
        // A minute later all are forgotten.
        book.enter(request(), now + limits::TOKEN_LIFE).unwrap();
        assert_eq!(book.pending().len(), 1);
    }
}
