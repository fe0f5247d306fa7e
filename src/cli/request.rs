//! From flags to CRI requests. Pure but for the random part of names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::args::{ContainerArgs, Network, PidMode, SandboxArgs};
use super::connect::absolute;
use super::error::CliError;
use super::find::{HOSTS, LOG_DIRECTORY, NETWORK, OWN_POD};
use super::parse::{NumberOrName, Publish, Volume};
use crate::api::cri;

/// Pods made from a shell live in this namespace.
pub(super) const NAMESPACE: &str = "default";

/// A pod to be made: its name, whether it is for one container alone, and where its logs go.
#[derive(Debug)]
pub(super) struct NewPod<'a> {
    pub(super) name: &'a str,
    pub(super) uid: &'a str,
    pub(super) own: bool,
    pub(super) logs: &'a Path,
}

/// The sandbox that the flags describe.
pub(super) fn sandbox(new: &NewPod<'_>, args: &SandboxArgs, privileged: bool) -> cri::PodSandboxConfig {
    let logs = new.logs.to_string_lossy().into_owned();
    let mut annotations: BTreeMap<String, String> = [(LOG_DIRECTORY.to_owned(), logs.clone())].into();
    if new.own {
        annotations.insert(OWN_POD.to_owned(), "true".to_owned());
    }
    let security = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(args)),
        privileged,
        ..Default::default()
    };
    // With the host's network the host's name is the one that means something.
    let hostname = match (&args.hostname, args.network) {
        (Some(name), _) => name.clone(),
        (None, Network::Host) => String::new(),
        (None, Network::None | Network::Pod) => hostname(new.name),
    };
    if args.network == Network::None {
        annotations.insert(NETWORK.to_owned(), "none".to_owned());
    }
    if !args.add_host.is_empty() {
        let entries: Vec<String> = args.add_host.iter().map(|(name, ip)| format!("{name}={ip}")).collect();
        annotations.insert(HOSTS.to_owned(), entries.join(","));
    }
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: new.name.to_owned(),
            uid: new.uid.to_owned(),
            namespace: NAMESPACE.to_owned(),
            attempt: 0,
        }),
        hostname,
        log_directory: logs,
        dns_config: dns(args),
        port_mappings: args.publish.iter().flat_map(mappings).collect(),
        annotations,
        linux: Some(cri::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() }),
        ..Default::default()
    }
}

/// The container that the flags describe.
pub(super) fn container(name: &str, args: &ContainerArgs, pid: PidMode) -> Result<cri::ContainerConfig, CliError> {
    let mounts = args.volumes.iter().map(mount).collect::<Result<_, _>>()?;
    let envs =
        args.env.iter().map(|(key, value)| cri::KeyValue { key: key.clone(), value: value.clone().into_bytes() });
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(image(&args.image)),
        command: args.entrypoint.iter().cloned().collect(),
        args: args.command.clone(),
        working_dir: args.workdir.clone().unwrap_or_default(),
        envs: envs.collect(),
        mounts,
        log_path: format!("{name}.log"),
        stdin: args.interactive,
        stdin_once: args.interactive,
        tty: args.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(args)),
            security_context: Some(security(args, pid)),
        }),
        ..Default::default()
    })
}

/// An image by the name a person gave.
pub(super) fn image(name: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: name.to_owned(), user_specified_image: name.to_owned(), ..Default::default() }
}

/// Refuses ports that lead to a pod without a network of its own, and one that leads to two ports.
pub(super) fn check_ports(args: &SandboxArgs) -> Result<(), CliError> {
    let reason = match args.network {
        _ if args.publish.is_empty() => return Ok(()),
        Network::Host => "--publish with --network host: the pod's ports are this machine's already",
        Network::None => "--publish with --network none: nothing leads into such a pod; use --network pod",
        Network::Pod => return check_twice(&args.publish),
    };
    Err(CliError::Usage(reason.to_owned()))
}

fn check_twice(publish: &[Publish]) -> Result<(), CliError> {
    let mut seen: BTreeMap<(i32, Option<IpAddr>, i32), i32> = BTreeMap::new();
    for one in publish {
        // The address of no machine in particular is all of them.
        let ip = one.ip.filter(|ip| !ip.is_unspecified());
        for port in mappings(one) {
            match seen.insert((port.protocol, ip, port.host_port), port.container_port) {
                Some(other) if other != port.container_port => {
                    return Err(CliError::Usage(format!(
                        "--publish: port {} of this machine is to lead to port {other} and to port {} of the pod; \
                         choose another for one of them",
                        port.host_port, port.container_port
                    )));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// `None` leaves it to what this machine has.
fn dns(args: &SandboxArgs) -> Option<cri::DnsConfig> {
    let servers: Vec<String> = args.dns.iter().map(ToString::to_string).collect();
    let is_asked = !(servers.is_empty() && args.dns_search.is_empty());
    is_asked.then(|| cri::DnsConfig { servers, searches: args.dns_search.clone(), options: Vec::new() })
}

fn mappings(publish: &Publish) -> impl Iterator<Item = cri::PortMapping> {
    let Publish { ip, host, pod, count, protocol } = publish.clone();
    (0..count).map(move |i| cri::PortMapping {
        protocol: protocol.into(),
        container_port: i32::from(pod) + i32::from(i),
        host_port: i32::from(host) + i32::from(i),
        host_ip: ip.map(|ip| ip.to_string()).unwrap_or_default(),
    })
}

fn namespaces(args: &SandboxArgs) -> cri::NamespaceOption {
    let network = match args.network {
        Network::Host => cri::NamespaceMode::Node,
        Network::None | Network::Pod => cri::NamespaceMode::Pod,
    };
    cri::NamespaceOption {
        network: network.into(),
        pid: pid_mode(args.pid).into(),
        ipc: cri::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn pid_mode(mode: PidMode) -> cri::NamespaceMode {
    match mode {
        PidMode::Container => cri::NamespaceMode::Container,
        PidMode::Pod => cri::NamespaceMode::Pod,
        PidMode::Host => cri::NamespaceMode::Node,
    }
}

/// A pod's name as a host name: 63 letters, digits and dashes.
fn hostname(pod: &str) -> String {
    let host: String =
        pod.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    host.trim_matches('-').chars().take(63).collect()
}

fn mount(volume: &Volume) -> Result<cri::Mount, CliError> {
    let host = absolute(Path::new(&volume.host))?;
    // The daemon makes a directory of what is not there, as kubelet wants it; to a person it is a typing error.
    std::fs::metadata(&host)
        .map_err(|e| CliError::io(format!("find {} of -v; make it first, or name another", host.display()), e))?;
    Ok(cri::Mount {
        container_path: volume.container.clone(),
        host_path: host.to_string_lossy().into_owned(),
        readonly: volume.readonly,
        ..Default::default()
    })
}

fn resources(args: &ContainerArgs) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        memory_limit_in_bytes: args.memory.unwrap_or(0),
        cpu_quota: args.cpus.map_or(0, |c| c.quota),
        cpu_period: args.cpus.map_or(0, |c| c.period),
        ..Default::default()
    }
}

fn security(args: &ContainerArgs, pid: PidMode) -> cri::LinuxContainerSecurityContext {
    let mut context = cri::LinuxContainerSecurityContext {
        privileged: args.privileged,
        readonly_rootfs: args.read_only,
        namespace_options: Some(cri::NamespaceOption {
            network: cri::NamespaceMode::Pod.into(),
            pid: pid_mode(pid).into(),
            ipc: cri::NamespaceMode::Pod.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    if !args.privileged {
        context.masked_paths = MASKED.iter().map(|&p| p.to_owned()).collect();
        context.readonly_paths = READ_ONLY.iter().map(|&p| p.to_owned()).collect();
    }
    if let Some(user) = &args.user {
        match &user.user {
            NumberOrName::Number(uid) => context.run_as_user = Some(cri::Int64Value { value: i64::from(*uid) }),
            NumberOrName::Name(name) => context.run_as_username.clone_from(name),
        }
        context.run_as_group = user.gid.map(|gid| cri::Int64Value { value: i64::from(gid) });
    }
    context
}

/// What of /proc and /sys tells too much of this machine. CRI leaves the choice to whoever asks for a container.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What of /proc changes this machine.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A name for a container nobody named: the image's last part and four random digits.
pub(super) fn invented_name(image: &str) -> Result<String, CliError> {
    Ok(format!("{}-{}", stem(image), &random_hex()?[..4]))
}

/// "registry.example:5000/team/App_1:tag@sha256:…" → "app-1".
fn stem(image: &str) -> String {
    let without_digest = image.split('@').next().unwrap_or(image);
    let last = without_digest.rsplit('/').next().unwrap_or(without_digest);
    let name = hostname(last.split(':').next().unwrap_or(last));
    let is_id = name.len() >= 12 && name.bytes().all(|b| b.is_ascii_hexdigit());
    if name.is_empty() || is_id { "container".to_owned() } else { name }
}

/// 32 random hexadecimal digits.
pub(super) fn random_hex() -> Result<String, CliError> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|e| CliError::io("read /dev/urandom", e))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Refuses names that cannot be a file's or would confuse a person.
pub(super) fn check_name(name: &str) -> Result<(), CliError> {
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let good = name.bytes().all(sound) && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if good && name.len() <= 128 {
        return Ok(());
    }
    Err(CliError::Usage(format!("{name:?} cannot be a name; use letters, digits, `-`, `_`, `.`, at most 128")))
}

/// Where the logs of the pod `uid` go.
pub(super) fn log_directory(root: &str, uid: &str) -> PathBuf {
    Path::new(root).join("logs").join(uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse;

    fn pod<'a>() -> NewPod<'a> {
        NewPod { name: "Web_1", uid: "u", own: true, logs: Path::new("/l/u") }
    }

    #[test]
    fn a_sandbox_by_default_has_its_own_network_and_name() {
        let config = sandbox(&pod(), &SandboxArgs::default(), false);
        assert_eq!((config.hostname.as_str(), config.log_directory.as_str()), ("web-1", "/l/u"));
        assert_eq!(config.annotations[OWN_POD], "true");
        assert_eq!(config.annotations.get(NETWORK), None);
        let security = config.linux.unwrap().security_context.unwrap();
        let options = security.namespace_options.unwrap();
        assert_eq!(options.network, cri::NamespaceMode::Pod as i32);
        assert_eq!(options.pid, cri::NamespaceMode::Container as i32);
    }

    #[test]
    fn ports_want_a_network_of_the_pods_own() {
        let publish = |text: &str| vec![parse::publish(text).unwrap()];
        let args = SandboxArgs { publish: publish("8000-8001:80-81"), ..Default::default() };
        let config = sandbox(&pod(), &args, false);
        let ports: Vec<_> = config.port_mappings.iter().map(|p| (p.host_port, p.container_port)).collect();
        assert_eq!((ports, config.annotations.get(NETWORK)), (vec![(8000, 80), (8001, 81)], None));
        assert!(check_ports(&args).is_ok());
        for network in [Network::None, Network::Host] {
            assert!(check_ports(&SandboxArgs { network, ..args.clone() }).is_err());
        }
        let none = SandboxArgs { network: Network::None, ..Default::default() };
        let alone = sandbox(&pod(), &none, false);
        assert_eq!(alone.annotations.get(NETWORK).map(String::as_str), Some("none"));
    }

    #[test]
    fn a_port_of_this_machine_leads_to_one_of_the_pod() {
        let check = |ports: &[&str]| {
            let publish = ports.iter().map(|text| parse::publish(text).unwrap()).collect();
            check_ports(&SandboxArgs { publish, ..Default::default() }).map_err(|e| e.to_string())
        };
        let error = check(&["8080:80", "8080:81"]).unwrap_err();
        assert!(error.contains("port 8080 ") && error.contains("80 and") && error.contains("81 of"), "{error}");
        assert!(check(&["8080-8090:80-90", "8085:9"]).is_err());
        assert!(check(&["0.0.0.0:8080:80", "8080:81"]).is_err(), "both are all addresses");
        for fine in [["8080:80", "8080:80"], ["8080:80", "8080:81/udp"], ["127.0.0.1:1:1", "127.0.0.2:1:2"]] {
            assert_eq!(check(&fine), Ok(()), "{fine:?}");
        }
    }

    #[test]
    fn name_service_goes_into_the_sandbox() {
        let args = SandboxArgs {
            dns: vec!["192.0.2.53".parse().unwrap()],
            dns_search: vec!["a.example".into()],
            add_host: vec![parse::host_entry("db:192.0.2.7").unwrap(), parse::host_entry("six:fd00::7").unwrap()],
            ..Default::default()
        };
        let config = sandbox(&pod(), &args, false);
        let dns = config.dns_config.unwrap();
        assert_eq!((dns.servers, dns.searches), (vec!["192.0.2.53".to_owned()], vec!["a.example".to_owned()]));
        assert_eq!(config.annotations[HOSTS], "db=192.0.2.7,six=fd00::7");
        let config = sandbox(&pod(), &SandboxArgs::default(), false);
        assert!(config.dns_config.is_none() && !config.annotations.contains_key(HOSTS));
    }

    #[test]
    fn the_hosts_network_brings_the_hosts_name() {
        let args = SandboxArgs { network: Network::Host, pid: PidMode::Host, ..Default::default() };
        let config = sandbox(&pod(), &args, true);
        assert_eq!(config.hostname, "");
        let security = config.linux.unwrap().security_context.unwrap();
        assert!(security.privileged);
        assert_eq!(security.namespace_options.unwrap().network, cri::NamespaceMode::Node as i32);
    }

    #[test]
    fn flags_reach_the_container() {
        let args = ContainerArgs {
            image: "busybox".into(),
            command: vec!["ls".into()],
            env: vec![("A".into(), "1".into())],
            volumes: vec![parse::volume("src:/data:ro").unwrap()],
            user: Some(parse::user("1000:100").unwrap()),
            memory: Some(64 << 20),
            cpus: Some(parse::cpus("0.5").unwrap()),
            interactive: true,
            read_only: true,
            ..Default::default()
        };
        let config = container("c", &args, PidMode::Pod).unwrap();
        assert!(config.mounts[0].host_path.starts_with('/') && config.mounts[0].readonly);
        let mistyped = parse::volume("no-such-directory:/data").unwrap();
        assert!(container("c", &ContainerArgs { volumes: vec![mistyped], ..args }, PidMode::Pod).is_err());
        assert_eq!((config.args, config.log_path.as_str()), (vec!["ls".to_owned()], "c.log"));
        assert!(config.stdin && config.stdin_once && !config.tty);
        let linux = config.linux.unwrap();
        let resources = linux.resources.unwrap();
        assert_eq!((resources.memory_limit_in_bytes, resources.cpu_quota), (64 << 20, 50_000));
        let security = linux.security_context.unwrap();
        assert!(security.readonly_rootfs && security.masked_paths.contains(&"/proc/kcore".to_owned()));
        assert_eq!(security.run_as_user.unwrap().value, 1000);
        assert_eq!(security.run_as_group.unwrap().value, 100);
        assert_eq!(security.namespace_options.unwrap().pid, cri::NamespaceMode::Pod as i32);
    }

    #[test]
    fn privilege_lifts_the_masks() {
        let args = ContainerArgs { privileged: true, user: Some(parse::user("www").unwrap()), ..Default::default() };
        let security = container("c", &args, PidMode::Container).unwrap().linux.unwrap().security_context.unwrap();
        assert!(security.privileged && security.masked_paths.is_empty() && security.readonly_paths.is_empty());
        assert_eq!((security.run_as_username.as_str(), security.run_as_user), ("www", None));
    }

    #[test]
    fn names_are_made_from_the_image() {
        assert_eq!(stem("registry.example:5000/team/App_1:tag@sha256:00"), "app-1");
        assert_eq!(stem("busybox"), "busybox");
        assert_eq!(stem("0123456789abcdef"), "container");
        assert_eq!(stem(":"), "container");
        let name = invented_name("busybox").unwrap();
        assert!(name.starts_with("busybox-") && name.len() == 12);
    }

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for bad in ["", "../x", "a/b", ".hidden", "-x", "a b", "ä", &"x".repeat(129)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name("web-1.2_a").is_ok());
    }
}
