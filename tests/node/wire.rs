//! What the daemon says on its connections, seen by a client that has no opinion of its own.

use std::io::Read;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use aril::api::cri::{ImageSpec, PullImageRequest, VersionRequest};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;

use crate::hostile_registry::{image, registry};
use crate::support::registry::Misdeed;
use crate::support::{PATIENCE, TestNode, wait_for};

type Client = http2::SendRequest<Full<Bytes>>;

/// One connection, driven by the executor it is made in.
async fn connect(node: &TestNode) -> Client {
    let stream = UnixStream::connect(node.socket()).await.unwrap();
    let (client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A call as gRPC frames it, and the headers and trailers of its answer as one.
async fn call(client: &mut Client, method: &str, message: &impl Message, timeout: Option<&str>) -> HeaderMap {
    let message = message.encode_to_vec();
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&message);
    let mut request = Request::post(format!("http://aril/runtime.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    client.ready().await.unwrap();
    let response = client.send_request(request.body(Full::from(body)).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut told = response.headers().clone();
    told.extend(response.into_body().collect().await.unwrap().trailers().cloned().unwrap_or_default());
    told
}

fn executor() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_deadline_that_passes_is_called_by_its_name() {
    let node = TestNode::start();
    let registry = registry(&node);
    let reference = image(&registry, "stalling", b"x");
    registry.misbehave("*", "/manifests/", usize::MAX, Misdeed::Silence);
    let pull = PullImageRequest {
        image: Some(ImageSpec { image: reference, ..ImageSpec::default() }),
        ..PullImageRequest::default()
    };
    executor().block_on(async {
        let mut client = connect(&node).await;
        for milliseconds in (1..=50).chain([1; 50]) {
            let begun = Instant::now();
            let told = call(&mut client, "ImageService/PullImage", &pull, Some(&format!("{milliseconds}m"))).await;
            let message = told["grpc-message"].to_str().unwrap();
            assert_eq!(told["grpc-status"], "4", "{milliseconds} ms: {message}");
            assert!(message.contains(&format!("{milliseconds}ms")), "{message}");
            assert!(begun.elapsed() >= Duration::from_millis(milliseconds));
        }
        let version = VersionRequest::default();
        let told = call(&mut client, "RuntimeService/Version", &version, Some("1S")).await;
        assert_eq!(told["grpc-status"], "0");
        for malformed in ["1", "1s", "123456789m", "-1S"] {
            let told = call(&mut client, "RuntimeService/Version", &version, Some(malformed)).await;
            assert_eq!(told["grpc-status"], "13", "{malformed}: {told:?}");
            assert!(told["grpc-message"].to_str().unwrap().starts_with("malformed%20grpc-timeout"), "{told:?}");
        }
        // Nothing of all that holds up who has time.
        let told = call(&mut client, "RuntimeService/Version", &version, None).await;
        assert_eq!(told["grpc-status"], "0");
    });
    node.finish();
}

#[test]
fn only_calls_under_way_are_waited_for() {
    let node = TestNode::start();
    let container = node.run(["sleep", "1000"]);
    // Clients that hold a connection: one that reads, one that has stopped reading, one that never said a word.
    node.pod_ids();
    let executor = executor();
    let stuck = executor.block_on(async {
        let mut client = connect(&node).await;
        call(&mut client, "RuntimeService/Version", &VersionRequest::default(), None).await;
        client
    });
    let mut silent = StdUnixStream::connect(node.socket()).unwrap();
    let begun = Instant::now();
    assert!(node.stop_daemon().success());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    drop(stuck);
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    silent.read_to_end(&mut Vec::new()).unwrap();

    node.restart();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| container.sh("echo > /begun; sleep 3; echo answered"));
        let sign = format!("/proc/{}/root/begun", container.init_pid());
        wait_for("the call to be under way", PATIENCE, || Path::new(&sign).exists().then_some(()));
        assert!(node.stop_daemon().success());
        assert_eq!(call.join().unwrap(), "answered");
    });
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(6), "{took:?}");
    node.finish();
}
