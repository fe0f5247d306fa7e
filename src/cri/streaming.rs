//! Exec, Attach and PortForward: requests become URLs, and who comes with one is joined to the node.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::task::AbortHandle;
use tonic::Status;
use tracing::info;

use super::error::{invalid, status as error};
use crate::api::cri::{AttachRequest, ExecRequest, PortForwardRequest};
use crate::node::{Attachment, Node, Resizer, Session, SessionConfig, Streams, chain};
use crate::stream::{Admission, Backend, Pipes, Request, Resize, Stdio, StreamError, Streaming, limits};

/// The streaming server. It listens from the first request on that needs it: with people at a shell alone, never.
#[derive(Debug)]
pub(super) struct Server {
    node: Arc<Node>,
    address: SocketAddr,
    running: OnceCell<(Admission, AbortHandle)>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((_, task)) = self.running.get() {
            task.abort();
        }
    }
}

impl Server {
    pub fn new(node: Arc<Node>, address: SocketAddr) -> Self {
        Self { node, address, running: OnceCell::new() }
    }

    /// Where it listens, if it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.running.get().map(|(admission, _)| admission.address())
    }

    pub async fn exec(&self, request: ExecRequest) -> Result<String, Status> {
        let ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
        let stdio = checked(Stdio { stdin, stdout, stderr, tty })?;
        if container_id.is_empty() {
            return Err(invalid("container_id", "empty"));
        }
        if cmd.is_empty() {
            return Err(invalid("cmd", "empty"));
        }
        let container = self.node.container_up(&container_id, "exec in it").map_err(|e| error(&e))?;
        self.url(Request::Exec { container: container.id.to_string(), command: cmd, stdio }).await
    }

    pub async fn attach(&self, request: AttachRequest) -> Result<String, Status> {
        let AttachRequest { container_id, stdin, tty, stdout, stderr } = request;
        let stdio = checked(Stdio { stdin, stdout, stderr, tty })?;
        if container_id.is_empty() {
            return Err(invalid("container_id", "empty"));
        }
        let container = self.node.container_up(&container_id, "attach to it").map_err(|e| error(&e))?;
        self.url(Request::Attach { container: container.id.to_string(), stdio }).await
    }

    pub async fn port_forward(&self, request: PortForwardRequest) -> Result<String, Status> {
        let PortForwardRequest { pod_sandbox_id, port } = request;
        if pod_sandbox_id.is_empty() {
            return Err(invalid("pod_sandbox_id", "empty"));
        }
        let ports = port.into_iter().map(|port| u16::try_from(port).ok().filter(|port| *port != 0));
        let ports = ports.collect::<Option<_>>().ok_or_else(|| invalid("port", "not from 1 to 65535"))?;
        let ports: Vec<u16> = ports;
        if ports.len() > limits::STREAMS / 2 {
            return Err(invalid("port", &format!("more than {}", limits::STREAMS / 2)));
        }
        let sandbox = self.node.sandbox_up(&pod_sandbox_id).map_err(|e| error(&e))?;
        self.url(Request::PortForward { sandbox: sandbox.id.to_string(), ports }).await
    }

    async fn url(&self, request: Request) -> Result<String, Status> {
        let start = || async {
            let server = Streaming::bind(self.address).await?;
            let admission = server.admission();
            info!(address = %admission.address(), "listening for streams");
            let task = tokio::spawn(server.serve(Arc::new(Work(Arc::clone(&self.node)))));
            Ok((admission, task.abort_handle()))
        };
        let (admission, _) = self.running.get_or_try_init(start).await.map_err(|e| refused(&e))?;
        admission.url(request).map_err(|e| refused(&e))
    }
}

fn refused(e: &StreamError) -> Status {
    let text = chain(e);
    match e {
        StreamError::TooMany => Status::resource_exhausted(text),
        StreamError::Listen { .. } | StreamError::Random(_) => Status::unavailable(text),
    }
}

fn checked(stdio: Stdio) -> Result<Stdio, Status> {
    match stdio {
        Stdio { tty: true, stderr: true, .. } => {
            Err(invalid("stderr", "with a tty there is one output; ask for stdout alone"))
        }
        Stdio { stdin: false, stdout: false, stderr: false, .. } => {
            Err(invalid("stdout", "ask for at least one of stdin, stdout and stderr"))
        }
        stdio => Ok(stdio),
    }
}

/// What the node does for clients of the streaming server.
#[derive(Debug)]
struct Work(Arc<Node>);

/// What runs for one of them.
enum Running {
    Exec(Box<Session>),
    Attached(Attachment, bool),
}

impl Backend for Work {
    type Session = Running;

    async fn begin(&self, request: Request) -> Result<Running, String> {
        match request {
            Request::Exec { container, command, stdio } => {
                let config = SessionConfig { command, tty: stdio.tty, stdin: stdio.stdin, ..Default::default() };
                let session = self.0.exec(&container, config).await.map_err(|e| chain(&*e))?;
                Ok(Running::Exec(Box::new(session)))
            }
            Request::Attach { container, stdio: Stdio { stdin, stdout, stderr, .. } } => {
                let record = self.0.container(&container).map_err(|e| chain(&*e))?;
                // As elsewhere: input that may come again keeps nobody attached.
                let ends_with_input = !record.config.stdin_once || record.config.tty;
                let attached = self.0.attach(&container, Streams { stdin, stdout, stderr }).await;
                Ok(Running::Attached(attached.map_err(|e| chain(&*e))?, ends_with_input))
            }
            Request::PortForward { .. } => Err("no process belongs to a port".to_owned()),
        }
    }

    async fn connect(&self, sandbox: &str, port: u16) -> Result<TcpStream, String> {
        self.0.connect(sandbox, port).await.map_err(|e| chain(&*e))
    }
}

impl crate::stream::Session for Running {
    fn pipes(&mut self) -> Pipes {
        match self {
            Self::Exec(session) => Pipes {
                stdin: session.stdin.take(),
                stdout: session.stdout.take(),
                stderr: session.stderr.take(),
                terminal: session.terminal.take(),
                resize: Some(resize(session.resizer())),
                lasts_as_its_streams: false,
                ends_with_input: false,
            },
            Self::Attached(attachment, ends_with_input) => Pipes {
                stdin: attachment.stdin.take(),
                stdout: attachment.stdout.take(),
                stderr: attachment.stderr.take(),
                terminal: None,
                resize: Some(resize(attachment.resizer())),
                lasts_as_its_streams: true,
                ends_with_input: *ends_with_input,
            },
        }
    }

    async fn wait(&mut self) -> Result<i32, String> {
        match self {
            Self::Exec(session) => session.wait().await.map_err(|e| chain(&*e)),
            Self::Attached(..) => std::future::pending().await,
        }
    }
}

fn resize(resizer: Resizer) -> Resize {
    Arc::new(move |rows, cols| {
        let resizer = resizer.clone();
        Box::pin(async move { resizer.resize(rows, cols).await })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_cannot_be_are_refused_by_name() {
        let message = |stdio| checked(stdio).unwrap_err().message().to_owned();
        assert!(message(Stdio { tty: true, stdout: true, stderr: true, stdin: false }).starts_with("stderr: "));
        assert!(message(Stdio { tty: true, ..Default::default() }).starts_with("stdout: "));
        assert!(checked(Stdio { stdin: true, ..Default::default() }).is_ok());
    }
}
