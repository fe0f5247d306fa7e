//! Address ranges: what is in them, which address is the gateway's, which one comes next. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::net::NetError;

/// An address range of pods. The first address is the gateway's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Range {
    network: IpAddr,
    prefix: u8,
}

/// Addresses of both families as numbers.
fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

impl Range {
    /// The range an address is in, by the length of its network.
    ///
    /// # Errors
    /// The reason, if a range so small has no room for a gateway and a pod, or the address is no pod's.
    pub fn new(ip: IpAddr, prefix: u8) -> Result<Self, String> {
        let longest = if ip.is_ipv4() { 30 } else { 126 };
        if !(8..=longest).contains(&prefix) {
            return Err(format!("the length of {ip}/{prefix} is not from 8 to {longest}"));
        }
        let range = Self { network: ip, prefix };
        let network = range.at(bits(ip) & !range.host_mask());
        if network.is_unspecified() || network.is_loopback() || network.is_multicast() {
            return Err(format!("{ip}/{prefix} is no range for pods"));
        }
        Ok(Self { network, prefix })
    }

    fn host_mask(self) -> u128 {
        let all: u128 = if self.is_v4() { u32::MAX.into() } else { u128::MAX };
        all.checked_shr(self.prefix.into()).unwrap_or(0)
    }

    fn at(self, bits: u128) -> IpAddr {
        match self.network {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX))),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        }
    }

    /// Whether it is one of IPv4.
    pub fn is_v4(self) -> bool {
        self.network.is_ipv4()
    }

    /// Its first address, all host bits zero.
    pub fn network(self) -> IpAddr {
        self.network
    }

    /// Leading bits that are the network's.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The host's own address in it.
    pub fn gateway(self) -> IpAddr {
        self.at(bits(self.network) + 1)
    }

    /// Whether an address lies in it.
    pub fn contains(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_v4() && bits(ip) & !self.host_mask() == bits(self.network)
    }

    /// Whether a pod may have that address.
    pub fn is_for_pods(self, ip: IpAddr) -> bool {
        self.contains(ip) && (self.first()..=self.last()).contains(&bits(ip))
    }

    /// First and last one of a pod: neither the network's own, nor the gateway's, nor IPv4's broadcast address.
    fn first(self) -> u128 {
        bits(self.network) + 2
    }

    fn last(self) -> u128 {
        bits(self.network) + self.host_mask() - u128::from(self.is_v4())
    }

    /// How many addresses there are for pods, as nearly as a float can say.
    #[allow(clippy::cast_precision_loss)] // beyond 2^53 nobody counts
    pub fn size(self) -> f64 {
        (self.last() - self.first() + 1) as f64
    }

    /// The first free address behind `after`, all round; `None`: none is free.
    pub fn next_free(self, after: Option<IpAddr>, is_free: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let (first, last) = (self.first(), self.last());
        let start = after.filter(|ip| self.is_for_pods(*ip)).map_or(first, |ip| bits(ip) + 1);
        let mut round = (start..=last).chain(first..=last.min(start.saturating_sub(1)));
        round.find(|candidate| is_free(self.at(*candidate))).map(|found| self.at(found))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Range {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{:?} is no address range, such as 10.244.3.0/24", clipped(text));
        let (ip, prefix) = text.split_once('/').ok_or_else(wrong)?;
        Self::new(ip.parse().map_err(|_| wrong())?, prefix.parse().map_err(|_| wrong())?)
    }
}

impl TryFrom<String> for Range {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Range> for String {
    fn from(range: Range) -> Self {
        range.to_string()
    }
}

fn clipped(text: &str) -> String {
    text.chars().take(80).collect()
}

/// One range, or one of each family, separated by a comma.
///
/// # Errors
/// [`NetError::Invalid`] naming `field`.
pub fn parse_list(field: &str, text: &str) -> Result<Vec<Range>, NetError> {
    let invalid = |reason| NetError::Invalid { field: field.into(), reason };
    let list = text.split(',').take(3).map(|part| part.trim().parse());
    let list = list.collect::<Result<Vec<Range>, String>>().map_err(invalid)?;
    one_each(field, &list)?;
    Ok(list)
}

/// Whether there is at most one range of each family, and one at all.
///
/// # Errors
/// [`NetError::Invalid`] naming `field`.
pub fn one_each(field: &str, list: &[Range]) -> Result<(), NetError> {
    let v4 = list.iter().filter(|range| range.is_v4()).count();
    if list.is_empty() || v4 > 1 || list.len() - v4 > 1 {
        let reason = "give one range of IPv4, one of IPv6, or one of each".into();
        return Err(NetError::Invalid { field: field.into(), reason });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_knows_its_ends() {
        let range: Range = "10.1.2.77/24".parse().unwrap();
        assert_eq!(range.to_string(), "10.1.2.0/24");
        assert_eq!(range.gateway(), ip("10.1.2.1"));
        for (address, is_for_pods) in
            [("10.1.2.0", false), ("10.1.2.1", false), ("10.1.2.2", true), ("10.1.2.254", true), ("10.1.2.255", false)]
        {
            assert_eq!(range.is_for_pods(ip(address)), is_for_pods, "{address}");
        }
        assert!(!range.is_for_pods(ip("10.1.3.2")) && !range.contains(ip("::2")));
        let range: Range = "fd00::/64".parse().unwrap();
        assert!(range.is_for_pods(ip("fd00::ffff:ffff:ffff:ffff")) && !range.is_for_pods(ip("fd00::1")));
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/31", "10.0.0.0/33", "x/8", "fd00::/127", "0.0.0.0/0", "127.0.0.0/8"] {
            assert!(text.parse::<Range>().is_err(), "{text}");
        }
        for text in ["224.0.0.0/8", "ff02::/64", "10.0.0.0/-1", "::/64"] {
            assert!(text.parse::<Range>().is_err(), "{text}");
        }
        for text in ["10.1.0.0/16,10.2.0.0/16", "", "10.1.0.0/16,fd00::/64,fd01::/64"] {
            assert!(parse_list("pod_cidr", text).is_err(), "{text}");
        }
        assert_eq!(parse_list("pod_cidr", "fd00::/64, 10.1.0.0/16").unwrap().len(), 2);
    }

    #[test]
    fn an_address_is_not_used_again_at_once() {
        let range: Range = "10.0.0.0/29".parse().unwrap();
        let taken = BTreeSet::from([ip("10.0.0.4")]);
        let next = |after| range.next_free(after, |ip| !taken.contains(&ip));
        assert_eq!(next(None), Some(ip("10.0.0.2")));
        assert_eq!(next(Some(ip("10.0.0.3"))), Some(ip("10.0.0.5")));
        assert_eq!(next(Some(ip("10.0.0.6"))), Some(ip("10.0.0.2")));
        assert_eq!(range.next_free(Some(ip("10.0.0.3")), |_| false), None);
    }

    proptest! {
        /// However pods come and go, nobody gets an address that is taken, and the last free one is found.
        #[test]
        fn every_address_is_given_once(prefix in 26u8..=30, moves in prop::collection::vec(any::<(bool, u8)>(), 0..300)) {
            let range = Range::new(ip("10.9.8.7"), prefix).unwrap();
            let room = (1usize << (32 - prefix)) - 3;
            let (mut taken, mut last) = (BTreeSet::new(), None);
            for (give_back, which) in moves {
                if give_back && !taken.is_empty() {
                    let gone = *taken.iter().nth(usize::from(which) % taken.len()).unwrap();
                    taken.remove(&gone);
                } else {
                    let next = range.next_free(last, |ip| !taken.contains(&ip));
                    prop_assert_eq!(next.is_none(), taken.len() == room);
                    if let Some(next) = next {
                        prop_assert!(range.is_for_pods(next) && taken.insert(next));
                        last = Some(next);
                    }
                }
            }
        }
    }
}
