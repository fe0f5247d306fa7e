//! Values of flags, from text: sizes, processors, variables, volumes, users.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::api::cri::Protocol;

/// A volume as asked for; `host` may still be relative.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Volume {
    pub host: String,
    pub container: String,
    pub readonly: bool,
}

/// Ports of this machine that lead to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The address of this machine; `None`: all of them.
    pub ip: Option<IpAddr>,
    /// The first port here.
    pub host: u16,
    /// The first port in the pod.
    pub pod: u16,
    /// How many in a row.
    pub count: u16,
    /// All of this one.
    pub protocol: Protocol,
}

/// A port of this machine that leads into a pod while a command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Where it listens here.
    pub address: IpAddr,
    /// The port here; 0: any that is free.
    pub local: u16,
    /// The port in the pod, on its localhost.
    pub remote: u16,
}

/// A user as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct User {
    pub user: NumberOrName,
    pub gid: Option<u32>,
}

/// Who: a number, or a name of the image's `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum NumberOrName {
    Number(u32),
    Name(String),
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.user {
            NumberOrName::Number(number) => write!(f, "{number}")?,
            NumberOrName::Name(name) => f.write_str(name)?,
        }
        self.gid.map_or(Ok(()), |gid| write!(f, ":{gid}"))
    }
}

/// CPU time in the kernel's terms: `quota` of every `period`, both in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Cpus {
    pub quota: i64,
    pub period: i64,
}

/// `KEY=VALUE`, or `KEY` with the value it has in this process.
pub(super) fn env(text: &str) -> Result<(String, String), String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, value.to_owned()),
        None => (text, std::env::var(text).map_err(|_| format!("{text} is not set here; write {text}=VALUE"))?),
    };
    if key.is_empty() {
        return Err("the name is missing; write KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value))
}

/// `HOST:CONTAINER[:ro|:rw]`.
pub(super) fn volume(text: &str) -> Result<Volume, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, readonly) = match parts[..] {
        [host, container] => (host, container, false),
        [host, container, "rw"] => (host, container, false),
        [host, container, "ro"] => (host, container, true),
        _ => return Err("write HOST:CONTAINER or HOST:CONTAINER:ro".to_owned()),
    };
    if host.is_empty() {
        return Err("the path on this machine is missing; write HOST:CONTAINER".to_owned());
    }
    if !container.starts_with('/') {
        return Err(format!("{container:?} is not an absolute path inside the container"));
    }
    Ok(Volume { host: host.to_owned(), container: container.to_owned(), readonly })
}

/// `[IP:]PORT:PORT[/PROTOCOL]`; each PORT may be a range `FIRST-LAST`, both then of one length.
pub(super) fn publish(text: &str) -> Result<Publish, String> {
    let usage =
        || format!("{text:?} is no port of this machine and one of the pod; write 8080:80, or [::1]:8080:80/udp");
    let (rest, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((rest, "tcp")) => (rest, Protocol::Tcp),
        Some((rest, "udp")) => (rest, Protocol::Udp),
        Some((rest, "sctp")) => (rest, Protocol::Sctp),
        Some((_, other)) => return Err(format!("{other:?} is no protocol; write tcp, udp or sctp")),
    };
    let (rest, pod) = rest.rsplit_once(':').ok_or_else(usage)?;
    let (ip, host) = match rest.rsplit_once(':') {
        None => (None, rest),
        Some((ip, host)) => (Some(address(ip).ok_or_else(|| not_an_address(ip, text))?), host),
    };
    let (host, pod) = (ports(host).ok_or_else(usage)?, ports(pod).ok_or_else(usage)?);
    if host.1 != pod.1 {
        return Err(format!("{text:?} leads {} ports to {}; make both ranges of one length", host.1, pod.1));
    }
    Ok(Publish { ip, host: host.0, pod: pod.0, count: host.1, protocol })
}

/// `[ADDRESS:]LOCAL:REMOTE`; a LOCAL of 0 is any.
pub(super) fn forward(text: &str) -> Result<Forward, String> {
    let usage = || format!("{text:?} is not LOCAL:REMOTE; write 8080:80, 0:80 for any port, or [::1]:8080:80");
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    let (rest, remote) = text.rsplit_once(':').ok_or_else(usage)?;
    let (address, local) = match rest.rsplit_once(':') {
        None => (Ipv4Addr::LOCALHOST.into(), rest),
        Some((ip, local)) => (address(ip).ok_or_else(|| not_an_address(ip, text))?, local),
    };
    let remote = number(remote).filter(|port| *port != 0).ok_or_else(usage)?;
    Ok(Forward { address, local: number(local).ok_or_else(usage)?, remote })
}

/// An address before a port: one of IPv6 only in brackets, since without them nobody can tell where it ends.
fn address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')) {
        Some(ip) => ip.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

fn not_an_address(address: &str, whole: &str) -> String {
    match address.parse::<Ipv6Addr>() {
        Ok(_) => format!(
            "{whole:?} has an address of IPv6 without brackets; write {}",
            whole.replacen(address, &format!("[{address}]"), 1)
        ),
        Err(_) => format!("{address:?} is no address of this machine; write one like 127.0.0.1 or [::1]"),
    }
}

/// `NAME:ADDRESS`, for a pod's hosts file; an address of IPv6 with or without brackets, as nothing follows it.
pub(super) fn host_entry(text: &str) -> Result<(String, IpAddr), String> {
    let usage = || format!("{text:?} is no name and its address; write db:192.0.2.7 or db:[2001:db8::7]");
    let (name, ip) = text.split_once(':').ok_or_else(usage)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let is_name = (1..=255).contains(&name.len()) && name.chars().all(is_plain) && !name.starts_with(['-', '.']);
    let ip = ip.parse().ok().or_else(|| address(ip)).filter(|_| is_name).ok_or_else(usage)?;
    Ok((name.to_owned(), ip))
}

/// A domain of one word.
pub(super) fn domain(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let fits = (1..=255).contains(&text.len()) && text.chars().all(is_plain);
    fits.then(|| text.to_owned()).ok_or_else(|| format!("{text:?} is no domain; write one like example.org"))
}

/// The first of some ports, and how many.
fn ports(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|&p| p != 0 && text.bytes().all(|b| b.is_ascii_digit()));
    match text.split_once('-') {
        None => Some((port(text)?, 1)),
        Some((first, last)) => {
            let (first, last) = (port(first)?, port(last)?);
            Some((first, last.checked_sub(first)?.checked_add(1)?))
        }
    }
}

/// `USER[:GROUP]`; the group must be a number, as CRI knows no other.
pub(super) fn user(text: &str) -> Result<User, String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let gid = group.map(number).transpose()?;
    let user = match user.bytes().next() {
        None => return Err("the user is missing; write USER or USER:GROUP".to_owned()),
        // What starts like a number must be one: `1000x` or 2^32 must not become a name, let alone root.
        Some(b'0'..=b'9' | b'-' | b'+') => NumberOrName::Number(number(user)?),
        Some(_) => NumberOrName::Name(user.to_owned()),
    };
    Ok(User { user, gid })
}

/// `TERM`, `SIGTERM` or `15`: the number.
pub(super) fn signal(text: &str) -> Result<i32, String> {
    use nix::sys::signal::Signal;
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let by_number = || text.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    let signal = name.parse::<Signal>().ok().or_else(by_number);
    signal.map(|signal| signal as i32).ok_or_else(|| format!("{text:?} is no signal; write TERM, SIGTERM or 15"))
}

fn number(text: &str) -> Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // The last number means "unchanged" to the kernel.
    let number = if digits { text.parse().ok().filter(|&n| n != u32::MAX) } else { None };
    number.ok_or_else(|| format!("{text:?} is not a number from 0 to 4294967294"))
}

/// `512`, `64k`, `1.5g`: bytes, powers of 1024.
pub(super) fn size(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let bare = lower.strip_suffix('b').unwrap_or(&lower);
    let bare = bare.strip_suffix('i').unwrap_or(bare);
    let (digits, shift) = match bare.char_indices().last() {
        Some((at, 'k')) => (&bare[..at], 10),
        Some((at, 'm')) => (&bare[..at], 20),
        Some((at, 'g')) => (&bare[..at], 30),
        Some((at, 't')) => (&bare[..at], 40),
        _ => (bare, 0),
    };
    let bytes = scaled(digits, 1 << shift).filter(|&n| n > 0);
    bytes.ok_or_else(|| format!("{text:?} is not a size; write bytes, or 64m, 1.5g"))
}

/// `2`, `0.5`: of every 100 ms.
pub(super) fn cpus(text: &str) -> Result<Cpus, String> {
    const PERIOD: i64 = 100_000;
    // The kernel takes no quota under 1 ms.
    let quota = scaled(text, PERIOD).filter(|&quota| quota >= 1000);
    quota
        .map(|quota| Cpus { quota, period: PERIOD })
        .ok_or_else(|| format!("{text:?} is not a number of processors from 0.01; write 2 or 0.5"))
}

/// A decimal number times `unit`, exactly, rounded down; up to six decimals.
fn scaled(text: &str, unit: i64) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 6 {
        return None;
    }
    let denominator = 10i128.pow(u32::try_from(fraction.len()).ok()?);
    let numerator = whole.parse::<i64>().ok().map(i128::from)? * denominator + fraction.parse::<i128>().ok()?;
    i64::try_from(numerator * i128::from(unit) / denominator).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_those_of_this_machine_first() {
        let plain = Publish { ip: None, host: 8080, pod: 80, count: 1, protocol: Protocol::Tcp };
        assert_eq!(publish("8080:80"), Ok(plain.clone()));
        assert_eq!(publish("8080:80/udp"), Ok(Publish { protocol: Protocol::Udp, ..plain.clone() }));
        let ip = |text: &str| Some(text.parse().unwrap());
        assert_eq!(publish("127.0.0.1:8080:80"), Ok(Publish { ip: ip("127.0.0.1"), ..plain.clone() }));
        let ranged = Publish { ip: ip("::1"), host: 9000, pod: 90, count: 3, protocol: Protocol::Sctp };
        assert_eq!(publish("[::1]:9000-9002:90-92/sctp"), Ok(ranged));
        for bad in [
            "", "80", ":80", "80:", "0:80", "80:0", "1:2/icmp", "65536:1", "+1:2", "x:1:2", "1-2:1", "2-1:2-1",
            "1:2:3:4",
        ] {
            assert!(publish(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_port_that_leads_into_a_pod_is_on_loopback_unless_told() {
        let of = |text: &str| forward(text).map(|f| (f.address.to_string(), f.local, f.remote));
        assert_eq!(of("8080:80"), Ok(("127.0.0.1".to_owned(), 8080, 80)));
        assert_eq!(of("0:80"), Ok(("127.0.0.1".to_owned(), 0, 80)));
        assert_eq!(of("[::1]:1:2"), Ok(("::1".to_owned(), 1, 2)));
        assert_eq!(of("0.0.0.0:1:2"), Ok(("0.0.0.0".to_owned(), 1, 2)));
        for wrong in ["80", "80:0", ":80", "+1:80", "1:2:3", "localhost:1:2", "65536:80", "1:", ""] {
            assert!(forward(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(["TERM", "sigterm", "15"].map(signal), [Ok(15), Ok(15), Ok(15)]);
        assert!(["", "SIG", "0", "-1", "NOPE", "1000"].iter().all(|text| signal(text).is_err()));
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("1", 1), ("64k", 65536), ("64M", 64 << 20), ("1.5g", 3 << 29), ("2GiB", 2 << 30), ("7b", 7)]
        {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "m", "-1", "0", "1.g", ".5g", "1e3", "9999999999t", "12x", "ki"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn processors() {
        assert_eq!(cpus("0.5").unwrap(), Cpus { quota: 50_000, period: 100_000 });
        assert_eq!(cpus("2").unwrap().quota, 200_000);
        for bad in ["0", "0.001", "-1", "two", "1.0000001"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn variables() {
        assert_eq!(env("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert_eq!(env("A=").unwrap(), ("A".into(), String::new()));
        assert_eq!(env("PATH").unwrap().1, std::env::var("PATH").unwrap());
        assert!(env("=x").is_err());
        assert!(env("ARIL_SURELY_NOT_SET").unwrap_err().contains("not set"));
    }

    #[test]
    fn volumes() {
        let v = volume("/a:/b:ro").unwrap();
        assert_eq!((v.host.as_str(), v.container.as_str(), v.readonly), ("/a", "/b", true));
        assert!(!volume("./a:/b").unwrap().readonly);
        for bad in ["/a", ":/b", "/a:b", "/a:/b:rw:x", "/a:/b:exec"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_of_ipv6_before_a_port_wants_brackets() {
        let told = |result: Result<String, String>| result.unwrap_err();
        let published = |text: &str| publish(text).map(|p| format!("{:?}", p.ip));
        assert_eq!(published("[::1]:8080:80").unwrap(), "Some(::1)");
        assert_eq!(published("127.0.0.1:8080:80").unwrap(), "Some(127.0.0.1)");
        let error = told(published("2001:db8::7:8080:80/udp"));
        assert!(error.contains("write [2001:db8::7]:8080:80/udp"), "{error}");
        let error = told(forward("::1:8080:80").map(|f| format!("{f:?}")));
        assert!(error.contains("write [::1]:8080:80"), "{error}");
        for bad in ["[127.0.0.1]:8080:80", "[::1:8080:80", "host:8080:80"] {
            assert!(told(published(bad)).contains("no address of this machine"), "{bad}");
        }
    }

    #[test]
    fn host_entries_and_domains() {
        let ip = |text: &str| host_entry(text).map(|(name, ip)| format!("{name} {ip}"));
        for text in ["db:2001:db8::7", "db:[2001:db8::7]"] {
            assert_eq!(ip(text).unwrap(), "db 2001:db8::7");
        }
        assert_eq!(ip("db.example_1:192.0.2.7").unwrap(), "db.example_1 192.0.2.7");
        for bad in ["db", "db:", ":1.2.3.4", "d b:1.2.3.4", "-d:1.2.3.4", "d,e:1.2.3.4", "d=e:1.2.3.4", "db:host"] {
            assert!(ip(bad).unwrap_err().contains("write db:192.0.2.7"), "{bad}");
        }
        assert!(domain("a.example").is_ok() && domain("a b").is_err() && domain("").is_err());
    }

    #[test]
    fn a_user_that_starts_like_a_number_is_one() {
        assert_eq!(user("0").unwrap(), User { user: NumberOrName::Number(0), gid: None });
        assert_eq!(user("www:33").unwrap(), User { user: NumberOrName::Name("www".into()), gid: Some(33) });
        for bad in ["", ":1", "1x", "-1", "+1", "4294967295", "4294967296", "99999999999", "a:b", "1:"] {
            assert!(user(bad).is_err(), "{bad}");
        }
    }
}
