//! The listening socket and those who connect to it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tracing::warn;

use super::http::{Desk, receive};
use super::token::Book;
use super::{Backend, Request, StreamError, limits};
use crate::observe::metrics::STREAMING_SESSIONS;

/// How long nobody is let in after that failed, which means that descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// Where requests become URLs.
#[derive(Debug)]
pub struct Streaming {
    address: SocketAddr,
    listener: TcpListener,
    book: Arc<Book>,
}

/// A handle on a server to make URLs with.
#[derive(Debug, Clone)]
pub struct Admission {
    address: SocketAddr,
    book: Arc<Book>,
}

impl Streaming {
    /// Listens; with port 0 on one of the kernel's choice. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`StreamError::Listen`], [`StreamError::Random`].
    pub async fn bind(address: SocketAddr) -> Result<Self, StreamError> {
        let failed = |source| StreamError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { address, listener, book: Arc::new(Book::open()?) })
    }

    /// What makes URLs of this server.
    #[must_use]
    pub fn admission(&self) -> Admission {
        Admission { address: self.address, book: Arc::clone(&self.book) }
    }

    /// Serves clients; never over. Dropping the future ends all sessions.
    pub async fn serve<B: Backend>(self, backend: Arc<B>) {
        let sessions = Arc::new(Semaphore::new(limits::SESSIONS));
        let desk = Arc::new(Desk { backend, book: self.book, sessions });
        let strangers = Arc::new(Strangers::default());
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((connection, _)) => {
                    let (desk, strangers) = (Arc::clone(&desk), Arc::clone(&strangers));
                    connections.spawn(connect(desk, strangers, connection));
                }
                Err(e) => {
                    warn!(error = %e, "nobody could be let in for streams");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Admission {
    /// Writes a request down; returns the URL to come with, within a minute.
    ///
    /// # Errors
    /// [`StreamError::TooMany`], [`StreamError::Random`].
    pub fn url(&self, request: Request) -> Result<String, StreamError> {
        let kind = match &request {
            Request::Exec { .. } => "exec",
            Request::Attach { .. } => "attach",
            Request::PortForward { .. } => "portforward",
        };
        let token = self.book.enter(request, Instant::now())?;
        Ok(format!("http://{}/{kind}/{token}", self.address))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn connect<B: Backend>(desk: Arc<Desk<B>>, strangers: Arc<Strangers>, connection: TcpStream) {
    let session = {
        let (number, sent_away) = strangers.enter();
        let session = tokio::select! {
            // Who has shown a token at last is no stranger.
            biased;
            session = receive(&desk, connection) => session,
            _ = sent_away => None,
        };
        strangers.leave(number);
        session
    };
    if let Some(session) = session {
        let _open = STREAMING_SESSIONS.hold();
        session.await;
    }
}

/// Connections that have not shown a token. Anybody on the machine can make as many as they like: so the oldest goes
/// when there are too many, for who has a token shows it at once.
#[derive(Debug, Default)]
struct Strangers(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    last: u64,
    waiting: VecDeque<(u64, oneshot::Sender<()>)>,
}

impl Strangers {
    fn enter(&self) -> (u64, oneshot::Receiver<()>) {
        let (tell, told) = oneshot::channel();
        let mut list = self.list();
        list.last += 1;
        let number = list.last;
        list.waiting.push_back((number, tell));
        if list.waiting.len() > limits::STRANGERS
            && let Some((_, oldest)) = list.waiting.pop_front()
        {
            // One that has left meanwhile need not be told.
            oldest.send(()).ok();
        }
        (number, told)
    }

    fn leave(&self, number: u64) {
        self.list().waiting.retain(|(other, _)| *other != number);
    }

    fn list(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_goes() {
        let strangers = Strangers::default();
        let mut all: Vec<_> = (0..limits::STRANGERS).map(|_| strangers.enter()).collect();
        assert!(
            all.iter_mut().all(|(_, told)| told.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty))
        );
        strangers.leave(all[1].0);
        let _one_more = strangers.enter();
        assert!(all[0].1.try_recv().is_err());
        let _another = strangers.enter();
        assert!(all[0].1.try_recv().is_ok());
        assert_eq!(strangers.list().waiting.len(), limits::STRANGERS);
    }
}
