//! The CNI plugins: their configuration, and what they take when nobody else does anything.
//!
//! A process in an arena of its own that, for every line read, makes a network namespace and runs the plugins for it one
//! after the other, ADD and then DEL, as libcni does: the configuration on the input, the result before as `prevResult`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::Result;
use crate::arena::{Arena, Stage};
use crate::samples::{Pod, op};

/// The first argument that makes this program run the plugins.
pub const ROLE: &str = "cni-plugins";

/// Where Debian has them.
pub const DIRECTORY: &str = "/usr/lib/cni";

/// What the table says.
///
/// # Errors
/// Says what is missing and how to get it.
pub fn version() -> Result<String> {
    for needed in ["bridge", "host-local", "portmap"] {
        if !Path::new(DIRECTORY).join(needed).exists() {
            return Err(format!(
                "{DIRECTORY}/{needed} is not there: apt-get install containernetworking-plugins iptables"
            )
            .into());
        }
    }
    Ok("CNI plugins bridge, host-local, portmap".to_owned())
}

/// A network of its own for an arena.
pub fn configuration(dir: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": dir.join("leases"),
                    "ranges": [[{ "subnet": "10.66.0.0/16" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

/// The running process.
#[derive(Debug)]
pub struct Plugins {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _process: Child,
    _arena: Arena,
}

impl Plugins {
    pub fn start(stage: &Stage) -> Result<Plugins> {
        let arena = Arena::new(stage, "cni-plugins")?.with_network();
        let mut process = arena.piped(&std::env::current_exe()?)?.arg(ROLE).arg(&arena.dir).spawn()?;
        let input = process.stdin.take().ok_or("the plugins' runner has no input")?;
        let output = process.stdout.take().ok_or("the plugins' runner has no output")?;
        Ok(Plugins { input, output: BufReader::new(output).lines(), _process: process, _arena: arena })
    }

    /// The network of one pod: made as part of RunPodSandbox, taken away as part of StopPodSandbox.
    pub async fn pod(&mut self) -> Result<Pod> {
        self.input.write_all(b"pod\n").await?;
        let mut pod = Pod::default();
        for op in [op::RUN, op::STOP_POD] {
            let line = self.output.next_line().await?.ok_or("the plugins' runner ended")?;
            pod.push(op, Duration::from_nanos(line.parse()?));
        }
        Ok(pod)
    }
}

/// The process: two lines of nanoseconds for every line read.
pub fn serve(mut args: impl Iterator<Item = OsString>) -> Result<()> {
    let dir = PathBuf::from(args.next().ok_or("the plugins' runner needs a directory")?);
    let configuration = configuration(&dir);
    for (serial, line) in io::stdin().lock().lines().enumerate() {
        line?;
        let (add, del) = pod(&configuration, &format!("pod-{serial}"))?;
        let mut output = io::stdout().lock();
        writeln!(output, "{}\n{}", add.as_nanos(), del.as_nanos())?;
        output.flush()?;
    }
    Ok(())
}

fn pod(configuration: &Value, id: &str) -> Result<(Duration, Duration)> {
    let (made, namespace) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let holder = std::thread::spawn(move || {
        let done = unshare(CloneFlags::CLONE_NEWNET).map(|()| nix::unistd::gettid());
        made.send(done).ok();
        // An error is the other side's end, which is as good.
        ended.recv().ok();
    });
    let thread = namespace.recv()??;
    let path = format!("/proc/self/task/{thread}/ns/net");
    // By descriptor: the plugins have a `/proc/self` of their own.
    let file = File::open(path)?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&file));
    let plugins = configuration["plugins"].as_array().ok_or("no plugins")?;
    let mut previous = Value::Null;
    let start = Instant::now();
    for plugin in plugins {
        previous = serde_json::from_slice(&run("ADD", configuration, plugin, &previous, id, &path)?)?;
    }
    let add = start.elapsed();
    let start = Instant::now();
    for plugin in plugins.iter().rev() {
        run("DEL", configuration, plugin, &previous, id, &path)?;
    }
    let del = start.elapsed();
    end.send(()).ok();
    holder.join().map_err(|_| "the holder of the namespace panicked")?;
    Ok((add, del))
}

fn run(command: &str, list: &Value, plugin: &Value, previous: &Value, id: &str, path: &str) -> Result<Vec<u8>> {
    let mut input = plugin.clone();
    input["name"] = list["name"].clone();
    input["cniVersion"] = list["cniVersion"].clone();
    if !previous.is_null() {
        input["prevResult"] = previous.clone();
    }
    let name = plugin["type"].as_str().ok_or("a plugin without a type")?;
    let mut child = Command::new(Path::new(DIRECTORY).join(name))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", path)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", DIRECTORY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().ok_or("a plugin without input")?.write_all(input.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("{command} by {name}: {}", String::from_utf8_lossy(&output.stdout)).into());
    }
    Ok(output.stdout)
}
