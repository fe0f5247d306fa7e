//! Streams, logs and lists: how fast bytes go through, and what calls cost while there is much.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use aril::stream::spdy::{Decoder, Deflater, Frame};
use bytes::BytesMut;
use tokio::time::sleep;

use crate::arena::Stage;
use crate::client::{READY, Up};
use crate::processes::Process;
use crate::report::Report;
use crate::runtimes::{Daemon, Host};
use crate::samples::percentile;
use crate::{Result, Runtime};

/// Sessions timed to their first byte.
const SESSIONS: usize = 100;
/// Through an exec session, and through a port.
const STREAM_MIB: usize = 2048;
/// Through a log.
const LOG_MIB: usize = 512;
const EXECS: usize = 1000;
/// Containers for lists: so many pods with so many each.
const CROWD: (usize, usize) = (50, 10);
const LISTS: usize = 50;
/// For the port's pod, which is on the host's network.
const PORT: &str = "18642";

/// A number, and what it counts.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    pub name: &'static str,
    pub unit: &'static str,
    pub value: f64,
}

/// Measures one daemon, started for this alone.
pub async fn measure(runtime: Runtime, stage: &Stage, host: &Host, report: &mut Report) -> Result<()> {
    let mut daemon = Daemon::start(runtime, stage, host, "streams").await?;
    let mut add = |name, unit, value| report.figure(runtime, Figure { name, unit, value });
    let up = daemon.client.up_with(&["/bin/sh", "-c", "echo ready; exec sleep 100000"]).await?;
    let first = first_byte(&mut daemon, &up).await?;
    add("exec by SPDY to the first byte, p50", "ms", millis(first));
    add("exec by SPDY, one way", "MB/s", exec_throughput(&mut daemon, &up).await?);
    let (own, whole) = execs(&mut daemon, &up).await?;
    add("CPU of 1,000 ExecSync: daemon and shims", "s", own);
    add("CPU of 1,000 ExecSync: with what they ran", "s", whole);
    daemon.client.kill(&up).await?;

    // Who says that it is ready listens already.
    let serve = format!(
        "nc -ll -p {PORT} -e cat /dev/zero & until netstat -ltn | grep -q :{PORT}; do sleep 0.01; done; echo ready; wait"
    );
    let up = daemon.client.up_with(&["/bin/sh", "-c", &serve]).await?;
    add("port-forward by SPDY, from the pod", "MB/s", forward_throughput(&mut daemon, &up).await?);
    daemon.client.kill(&up).await?;

    let (speed, cpu) = log_throughput(&mut daemon).await?;
    add("log of one container", "MB/s", speed);
    add("CPU of a log: daemon and shims", "s/GB", cpu);
    if runtime.is_aril() {
        let (lists, stats) = lists(&mut daemon).await?;
        add("ListContainers and ListPodSandbox of 500, p50", "ms", millis(lists));
        add("ListContainerStats of 500, p50", "ms", millis(stats));
    }
    eprintln!("streams of {} measured", runtime.name());
    Ok(())
}

/// The median time from before the call to the first byte of output.
async fn first_byte(daemon: &mut Daemon, up: &Up) -> Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..SESSIONS {
        let start = Instant::now();
        let url = daemon.client.exec_url(up, &["/bin/echo", "x"]).await?;
        let mut client =
            Spdy::open(&url, "v4.channel.k8s.io", &[&[("streamtype", "error")], &[("streamtype", "stdout")]])?;
        client.read(1)?;
        took.push(start.elapsed());
    }
    took.sort_unstable();
    percentile(&took, 50).copied().ok_or_else(|| "no session was timed".into())
}

async fn exec_throughput(daemon: &mut Daemon, up: &Up) -> Result<f64> {
    let count = format!("count={STREAM_MIB}");
    let command = ["/bin/dd", "if=/dev/zero", "bs=1M", &count];
    let url = daemon.client.exec_url(up, &command).await?;
    let client = Spdy::open(&url, "v4.channel.k8s.io", &[&[("streamtype", "error")], &[("streamtype", "stdout")]])?;
    client.throughput()
}

async fn forward_throughput(daemon: &mut Daemon, up: &Up) -> Result<f64> {
    let url = daemon.client.forward_url(up).await?;
    let (error, data) = (
        [("streamtype", "error"), ("port", PORT), ("requestid", "1")],
        [("streamtype", "data"), ("port", PORT), ("requestid", "1")],
    );
    Spdy::open(&url, "portforward.k8s.io", &[&error, &data])?.throughput()
}

/// CPU seconds of what runs containers: without and with what it waited for.
async fn execs(daemon: &mut Daemon, up: &Up) -> Result<(f64, f64)> {
    let before = Cpu::of(daemon);
    for _ in 0..EXECS {
        daemon.client.exec_sync(up, &["/bin/true"]).await?;
    }
    let after = Cpu::of(daemon);
    Ok((after.own - before.own, after.whole - before.whole))
}

/// MB/s of output, and CPU seconds for a GB of it.
async fn log_throughput(daemon: &mut Daemon) -> Result<(f64, f64)> {
    let line = "0123456789".repeat(10);
    let script = format!(
        "yes {line} | head -c 16777216 >/output; echo {READY}; read go <>/wait; i=0; \
         while [ $i -lt {} ]; do cat /output; i=$((i+1)); done; echo over",
        LOG_MIB / 16
    );
    let up = daemon.client.up_with(&["/bin/sh", "-c", &format!("mkfifo /wait; {script}")]).await?;
    let before = Cpu::of(daemon);
    let start = Instant::now();
    daemon.client.exec_sync(&up, &["/bin/sh", "-c", "echo >/wait"]).await?;
    let log = daemon.client.log(&up);
    // Its last line begins with the end of a line cut short.
    while !ends_with(&log, b"over\n")? {
        if start.elapsed() > Duration::from_secs(120) {
            return Err(format!("{} has no end", log.display()).into());
        }
        sleep(Duration::from_millis(2)).await;
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = Cpu::of(daemon).own - before.own;
    daemon.client.kill(&up).await?;
    fs::remove_file(&log)?;
    let megabytes = mebi(LOG_MIB) / 1e6;
    Ok((megabytes / seconds, cpu / megabytes * 1e3))
}

fn ends_with(path: &Path, text: &[u8]) -> Result<bool> {
    use std::io::{Seek, SeekFrom};
    let mut file = fs::File::open(path)?;
    let length = text.len() as u64;
    if file.metadata()?.len() < length {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-i64::try_from(length)?))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(end.ends_with(text))
}

/// The medians of both lists together, and of all containers' stats.
async fn lists(daemon: &mut Daemon) -> Result<(Duration, Duration)> {
    let mut all = Vec::new();
    for _ in 0..CROWD.0 {
        let up = daemon.client.up_with(&["/bin/sh", "-c", "echo ready; exec sleep 100000"]).await?;
        for _ in 1..CROWD.1 {
            daemon.client.add(&up, &["/bin/sleep", "100000"]).await?;
        }
        all.push(up);
    }
    let (mut lists, mut stats) = (Vec::new(), Vec::new());
    for _ in 0..LISTS {
        let start = Instant::now();
        let (containers, pods) = daemon.client.lists().await?;
        lists.push(start.elapsed());
        let expected = (CROWD.0 * CROWD.1, CROWD.0);
        if (containers, pods) != expected {
            return Err(format!("{containers} containers in {pods} pods are listed, {expected:?} are there").into());
        }
        let start = Instant::now();
        let count = daemon.client.stats().await?;
        stats.push(start.elapsed());
        if count != expected.0 {
            return Err(format!("stats of {count} containers are listed, {} are there", expected.0).into());
        }
    }
    for up in &all {
        daemon.client.kill(up).await?;
    }
    lists.sort_unstable();
    stats.sort_unstable();
    let median = |took: &[Duration]| percentile(took, 50).copied().ok_or("nothing was timed");
    Ok((median(&lists)?, median(&stats)?))
}

/// CPU seconds of a daemon and what it keeps running for its pods.
#[derive(Debug, Clone, Copy, Default)]
struct Cpu {
    own: f64,
    /// With children that have ended.
    whole: f64,
}

impl Cpu {
    fn of(daemon: &Daemon) -> Cpu {
        let mut all = Cpu::default();
        for process in daemon.arena.family().iter().filter(|process| !Process::is_workload(process)) {
            let (own, children) = process.cpu().unwrap_or_default();
            all.own += own;
            all.whole += own + children;
        }
        all
    }
}

/// A client that speaks SPDY/3.1 and reads the last stream it makes.
struct Spdy {
    connection: TcpStream,
    decoder: Decoder,
    input: BytesMut,
    stream: u32,
}

impl Spdy {
    fn open(url: &str, protocol: &str, streams: &[&[(&str, &str)]]) -> Result<Spdy> {
        let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url} is no URL of a server"))?;
        let (host, path) = rest.split_once('/').ok_or_else(|| format!("{url} has no path"))?;
        let mut connection = TcpStream::connect(host)?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(Duration::from_secs(30)))?;
        let head = format!(
            "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\n\r\n"
        );
        connection.write_all(head.as_bytes())?;
        let mut answer = Vec::new();
        let end = loop {
            let mut chunk = [0; 4096];
            match connection.read(&mut chunk)? {
                0 => return Err("the server hung up".into()),
                n => answer.extend_from_slice(&chunk[..n]),
            }
            if let Some(at) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
        };
        if !answer.starts_with(b"HTTP/1.1 101 ") {
            return Err(String::from_utf8_lossy(&answer).into_owned().into());
        }
        let (mut deflater, mut out, mut stream) = (Deflater::default(), Vec::new(), 0);
        for (id, headers) in (1..).step_by(2).zip(streams) {
            deflater.syn_stream(id, headers, false, &mut out);
            stream = id;
        }
        connection.write_all(&out)?;
        Ok(Spdy { connection, decoder: Decoder::default(), input: BytesMut::from(&answer[end..]), stream })
    }

    /// Reads so many bytes of the stream, or more.
    fn read(&mut self, mut wanted: usize) -> Result<()> {
        let mut chunk = vec![0; 1 << 20];
        loop {
            while let Some(frame) = self.decoder.decode(&mut self.input)? {
                if let Frame::Data { id, bytes, .. } = frame
                    && id == self.stream
                {
                    wanted = wanted.saturating_sub(bytes.len());
                }
            }
            if wanted == 0 {
                return Ok(());
            }
            match self.connection.read(&mut chunk)? {
                0 => return Err(format!("the server hung up {wanted} bytes before the end").into()),
                n => self.input.extend_from_slice(&chunk[..n]),
            }
        }
    }

    /// MB/s, from the first byte on.
    fn throughput(mut self) -> Result<f64> {
        self.read(1)?;
        let start = Instant::now();
        // What came with the first byte is little beside it.
        let bytes = (STREAM_MIB - 1) << 20;
        self.read(bytes)?;
        Ok(mebi(STREAM_MIB - 1) / 1e6 / start.elapsed().as_secs_f64())
    }
}

/// Bytes of so many MiB.
fn mebi(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from) * f64::from(1 << 20)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
