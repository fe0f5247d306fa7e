//! Identifiers: parsed once at the border, trusted from then on.
//!
//! Each is safe as a file name and as a piece of a path by construction.

use std::fmt;
use std::str::FromStr;

/// Why a text is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Wrong length or characters for a sandbox or container id.
    #[error("id {0:?} is not 64 lowercase hexadecimal digits")]
    Id(String),
    /// Not `sha256:` and 64 lowercase hexadecimal digits.
    #[error("digest {0:?} is not sha256:<64 lowercase hexadecimal digits>")]
    Digest(String),
}

fn is_hex64(s: &str) -> bool {
    s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The start of a hostile text is enough to name it.
fn clipped(s: &str) -> String {
    s.chars().take(80).collect()
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// An identifier from 32 bytes, which must be random.
            #[must_use]
            pub fn from_random(bytes: [u8; 32]) -> Self {
                Self(hex(&bytes))
            }

            /// The 64 digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 12 digits, for people.
            #[must_use]
            pub fn short(&self) -> &str {
                &self.0[..12]
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                if is_hex64(s) { Ok(Self(s.to_owned())) } else { Err(IdError::Id(clipped(s))) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        #[cfg(feature = "daemon")]
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        #[cfg(feature = "daemon")]
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id! {
    /// A pod sandbox (CRI `pod_sandbox_id`).
    SandboxId
}
hex_id! {
    /// A container (CRI `container_id`).
    ContainerId
}

/// A content digest, `sha256:…`: of a blob, or as a diff ID of an uncompressed layer.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// The digest of these 32 bytes of SHA-256.
    #[must_use]
    pub fn sha256(hash: [u8; 32]) -> Self {
        Self(format!("sha256:{}", hex(&hash)))
    }

    /// With the algorithm in front.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 digits alone.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        match s.strip_prefix("sha256:") {
            Some(rest) if is_hex64(rest) => Ok(Self(s.to_owned())),
            _ => Err(IdError::Digest(clipped(s))),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(feature = "daemon")]
impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

#[cfg(feature = "daemon")]
impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        // Writing to a String cannot fail.
        write!(s, "{b:02x}").ok();
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_lowercase_hex_digits_are_an_id() {
        let good = "0123456789abcdef".repeat(4);
        assert_eq!(good.parse::<ContainerId>().unwrap().as_str(), good);
        for bad in ["", "..", "a/b", &good[1..], &good.to_uppercase(), &format!("{good}0")] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_digest_is_sha256_and_nothing_else() {
        let hex = "ab".repeat(32);
        let digest: Digest = format!("sha256:{hex}").parse().unwrap();
        assert_eq!(digest.hex(), hex);
        assert!("sha512:00".parse::<Digest>().is_err());
        assert!(format!("sha256:{}", "../".repeat(21)).parse::<Digest>().is_err());
    }

    #[test]
    fn hex_of_bytes() {
        assert_eq!(Digest::sha256([0xab; 32]).hex(), "ab".repeat(32));
    }
}
