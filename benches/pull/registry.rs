//! Debian's `docker-registry` on loopback, for as long as the benchmark runs.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;

#[derive(Debug)]
pub struct Registry {
    address: String,
    process: Child,
}

impl Registry {
    /// Serves what is in `content`; its own files go to `dir`.
    pub fn start(content: &Path, dir: &Path) -> Result<Registry> {
        // Free a moment ago; should somebody else take it meanwhile, the registry says so and the run ends.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let config = dir.join("registry.yml");
        let content = fs::canonicalize(content)?;
        let text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\n\
             storage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            content.display()
        );
        fs::write(&config, text)?;
        let log = File::create(dir.join("registry.log"))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().map_err(|e| format!("docker-registry cannot be run ({e}): --install gets it"))?;
        let mut registry = Registry { address, process };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&registry.address).is_err() {
            if registry.process.try_wait()?.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(dir.join("registry.log")).unwrap_or_default();
                return Err(format!("the registry did not start: {log}").into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(registry)
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
