//! Whole requests: what they come to (goldens), and how bad ones are refused.

mod golden;
mod random;
mod refused;

use nix::errno::Errno;
use oci_spec::runtime::Spec;

use super::{Defaults, HostDevice, Image, ImageVolume, Input, Paths, SpecError, container_spec, sandbox_plan};
use crate::api::cri;
use crate::compile::{Extra, compile};
use crate::plan;

/// One CreateContainer, with everything it depends on.
#[derive(Clone)]
struct Case {
    sandbox: cri::PodSandboxConfig,
    config: cri::ContainerConfig,
    env: Vec<(String, String)>,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    user: &'static str,
    stop_signal: &'static str,
    working_dir: &'static str,
    image_volumes: Vec<ImageVolume>,
    defaults: Defaults,
}

impl Case {
    /// What critest starts most of its specs with.
    fn new() -> Self {
        Self {
            sandbox: cri::PodSandboxConfig {
                metadata: Some(cri::PodSandboxMetadata {
                    name: "web".to_owned(),
                    uid: "0b2c".to_owned(),
                    namespace: "default".to_owned(),
                    attempt: 0,
                }),
                log_directory: "/var/log/pods/default_web_0b2c".to_owned(),
                ..Default::default()
            },
            config: cri::ContainerConfig {
                metadata: Some(cri::ContainerMetadata { name: "app".to_owned(), attempt: 0 }),
                image: Some(cri::ImageSpec { image: "busybox:1".to_owned(), ..Default::default() }),
                command: strings(&["/bin/sh", "-c", "sleep 1000"]),
                log_path: "app/0.log".to_owned(),
                ..Default::default()
            },
            env: Vec::new(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            user: "",
            stop_signal: "",
            working_dir: "",
            image_volumes: Vec::new(),
            defaults: Defaults { hostname: "node-1".to_owned(), ..Defaults::default() },
        }
    }

    fn sandbox_linux(&mut self) -> &mut cri::LinuxPodSandboxConfig {
        self.sandbox.linux.get_or_insert_default()
    }

    fn sandbox_security(&mut self) -> &mut cri::LinuxSandboxSecurityContext {
        self.sandbox_linux().security_context.get_or_insert_default()
    }

    fn linux(&mut self) -> &mut cri::LinuxContainerConfig {
        self.config.linux.get_or_insert_default()
    }

    fn security(&mut self) -> &mut cri::LinuxContainerSecurityContext {
        self.linux().security_context.get_or_insert_default()
    }

    fn resources(&mut self) -> &mut cri::LinuxContainerResources {
        self.linux().resources.get_or_insert_default()
    }

    /// The same options for the sandbox and the container, as kubelet gives them.
    fn namespaces(&mut self, options: cri::NamespaceOption) {
        self.sandbox_security().namespace_options = Some(options.clone());
        self.security().namespace_options = Some(options);
    }

    fn sandbox_plan(&self) -> Result<plan::Sandbox, SpecError> {
        sandbox_plan(&"5a".repeat(32).parse().unwrap(), &self.sandbox, &self.defaults)
    }

    fn spec(&self) -> Result<(Spec, Extra), SpecError> {
        let paths = Paths {
            layers: strings(&["/layers/top/fs", "/layers/base/fs"]),
            upper: "/containers/c0/upper".to_owned(),
            work: "/containers/c0/work".to_owned(),
            hosts: "/pods/5a/etc/hosts".to_owned(),
            hostname: "/pods/5a/etc/hostname".to_owned(),
            resolv_conf: "/pods/5a/etc/resolv.conf".to_owned(),
        };
        container_spec(&Input {
            id: &"c0".repeat(32).parse().unwrap(),
            sandbox: &self.sandbox,
            config: &self.config,
            image: Image {
                user: self.user,
                env: &self.env,
                entrypoint: &self.entrypoint,
                cmd: &self.cmd,
                working_dir: self.working_dir,
                stop_signal: self.stop_signal,
            },
            paths: &paths,
            image_volumes: &self.image_volumes,
            defaults: &self.defaults,
            devices: &host_devices,
        })
    }

    fn plan(&self) -> plan::Container {
        let (spec, extra) = self.spec().unwrap();
        compile(&spec, &extra).unwrap()
    }
}

/// A machine with a few devices.
fn host_devices(path: &str) -> Result<Vec<HostDevice>, Errno> {
    let device = |path: &str, is_block, major, minor, mode, gid| HostDevice {
        path: path.to_owned(),
        is_block,
        major,
        minor,
        mode,
        uid: 0,
        gid,
    };
    let all = [
        device("/dev/fuse", false, 10, 229, 0o666, 0),
        device("/dev/null", false, 1, 3, 0o666, 0),
        device("/dev/pts/0", false, 136, 0, 0o620, 5),
        device("/dev/snd/controlC0", false, 116, 0, 0o660, 29),
        device("/dev/snd/seq", false, 116, 1, 0o660, 29),
        device("/dev/vda", true, 254, 0, 0o660, 6),
    ];
    let found: Vec<_> = all.into_iter().filter(|d| d.path == path || d.path.starts_with(&format!("{path}/"))).collect();
    match (path, found.is_empty()) {
        ("/etc/passwd", _) => Err(Errno::ENODEV),
        (_, true) => Err(Errno::ENOENT),
        (_, false) => Ok(found),
    }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&s| s.to_owned()).collect()
}
