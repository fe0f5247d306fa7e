//! Versions of the CNI specification: those spoken here, and which one a list is run with.

use std::fmt;

use super::error::ConfigError;

/// A version of the specification that is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Chains and results with several addresses.
    V0_3_1,
    /// CHECK, and the cached result for DEL.
    V0_4_0,
    /// Results whose addresses have no `version`; no single configurations.
    V1_0_0,
    /// STATUS, GC, `cniVersions`, MTU in results.
    V1_1_0,
}

impl Version {
    const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// "1.1.0".
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of this name, if it is spoken here.
    #[must_use]
    pub fn known(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The versions a list may be run with, highest first: `cniVersion` and `cniVersions` together, without those that are
/// not spoken here.
///
/// # Errors
/// [`ConfigError::Versions`] if none is left.
pub(super) fn candidates(version: Option<&str>, versions: &[String]) -> Result<Vec<Version>, ConfigError> {
    let named: Vec<&str> = version.into_iter().chain(versions.iter().map(String::as_str)).collect();
    if let Some(wrong) = named.iter().find(|text| numbers(text).is_none()) {
        return Err(ConfigError::Versions { reason: format!("{:?} is no version of CNI", clip(wrong)) });
    }
    let mut found: Vec<Version> = named.iter().filter_map(|text| Version::known(text)).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.dedup();
    if found.is_empty() {
        return Err(ConfigError::Versions { reason: refusal(&named) });
    }
    Ok(found)
}

fn refusal(named: &[&str]) -> String {
    let spoken = "aril speaks 0.3.1, 0.4.0, 1.0.0 and 1.1.0";
    match named {
        [] => format!("none is named, which means 0.1.0; {spoken}: set cniVersion to one that all plugins know"),
        [one] if numbers(one) < numbers("0.3.1") => format!("{one} is too old; {spoken}: raise it"),
        [one] => format!("{one} is unknown; {spoken}"),
        several => format!("none of {} is known; {spoken}", several.join(", ")),
    }
}

/// Three numbers, as versions are compared.
fn numbers(text: &str) -> Option<[u32; 3]> {
    let mut parts = text.split('.').map(|part| {
        let is_number = !part.is_empty() && part.len() < 6 && part.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| part.parse().ok()).flatten()
    });
    let three = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(three)
}

fn clip(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(version: Option<&str>, versions: &[&str]) -> Result<Vec<Version>, String> {
        let versions: Vec<String> = versions.iter().map(|&v| v.to_owned()).collect();
        candidates(version, &versions).map_err(|e| e.to_string())
    }

    #[test]
    fn the_highest_version_comes_first_and_later_ones_are_left_out() {
        assert_eq!(of(Some("1.0.0"), &[]), Ok(vec![Version::V1_0_0]));
        let both = of(Some("0.4.0"), &["1.1.0", "0.3.1", "9.0.0", "0.4.0", "0.2.0"]);
        assert_eq!(both, Ok(vec![Version::V1_1_0, Version::V0_4_0, Version::V0_3_1]));
        assert_eq!(of(None, &["1.0.0"]), Ok(vec![Version::V1_0_0]));
    }

    #[test]
    fn what_is_not_spoken_is_refused_by_name() {
        for old in ["0.1.0", "0.2.0", "0.3.0"] {
            let error = of(Some(old), &[]).unwrap_err();
            assert!(error.contains(&format!("{old} is too old")), "{error}");
        }
        assert!(of(None, &[]).unwrap_err().contains("0.1.0"));
        assert!(of(Some("1.2.0"), &[]).unwrap_err().contains("1.2.0 is unknown"));
        assert!(of(Some("1.2.0"), &["2.0.0"]).unwrap_err().contains("none of 1.2.0, 2.0.0"));
        for wrong in ["", "1", "1.0", "1.0.0.0", "v1.0.0", "1.0.0-rc1", "1..0", "١.0.0", "99999999999.0.0"] {
            assert!(of(Some(wrong), &["1.0.0"]).unwrap_err().contains("no version"), "{wrong:?}");
        }
    }
}
