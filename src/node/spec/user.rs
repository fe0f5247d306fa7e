//! Whom a container runs as.
//!
//! Numbers are decided here, strictly and in 32 bits: a number that does not fit must never wrap
//! round to root or be taken for a name. Names are looked up later, in the container's own files.

use super::{SpecError, check};
use crate::api::cri;
use crate::plan;

/// Longest user or group name, twice what any system allows.
const MAX_NAME: usize = 64;
/// `NGROUPS_MAX` of the kernel.
const MAX_GROUPS: usize = 65536;

/// A user or group as an image or a request writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    Number(u32),
    Name(String),
}

impl Who {
    fn parse(field: &str, text: &str) -> Result<Self, SpecError> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            // Too wide even for 64 bits is as wrong as too wide for 32.
            let number = text.parse().unwrap_or(i64::MAX);
            return check::id(field, number).map(Self::Number);
        }
        check::plain(field, text, MAX_NAME)?;
        let is_odd = |c: char| c.is_whitespace() || matches!(c, ':' | '/' | ',');
        if text.is_empty() || text.starts_with(['-', '+']) || text.contains(is_odd) {
            return Err(SpecError::invalid(field, format!("{text:?} is neither an id nor a name")));
        }
        Ok(Self::Name(text.to_owned()))
    }

    fn number(&self) -> Option<u32> {
        match self {
            Self::Number(n) => Some(*n),
            Self::Name(_) => None,
        }
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(n) => write!(f, "{n}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// User and, if given, group.
type Pair = (Who, Option<Who>);

/// `USER` of an image; empty is nobody in particular, which is root.
fn written_user(field: &str, text: &str) -> Result<Option<Pair>, SpecError> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.split_once(':') {
        None => Ok(Some((Who::parse(field, text)?, None))),
        Some((user, group)) => Ok(Some((Who::parse(field, user)?, Some(Who::parse(field, group)?)))),
    }
}

/// What the request says, if it says anything.
fn requested(security: &cri::LinuxContainerSecurityContext) -> Result<Option<Pair>, SpecError> {
    const CONTEXT: &str = "linux.security_context";
    let uid = security.run_as_user.as_ref();
    let name = security.run_as_username.as_str();
    let group = security
        .run_as_group
        .as_ref()
        .map(|g| check::id(&format!("{CONTEXT}.run_as_group"), g.value).map(Who::Number))
        .transpose()?;
    let user = match (uid, name) {
        (Some(_), name) if !name.is_empty() => {
            let reason = "set together with run_as_user; give one of them";
            return Err(SpecError::invalid(format!("{CONTEXT}.run_as_username"), reason));
        }
        (Some(uid), _) => Who::Number(check::id(&format!("{CONTEXT}.run_as_user"), uid.value)?),
        (None, "") if group.is_some() => {
            let reason = "set without run_as_user or run_as_username";
            return Err(SpecError::invalid(format!("{CONTEXT}.run_as_group"), reason));
        }
        (None, "") => return Ok(None),
        (None, name) => Who::parse(&format!("{CONTEXT}.run_as_username"), name)?,
    };
    Ok(Some((user, group)))
}

/// The user of a container: the request's, else the image's, else root.
pub(super) fn user(security: &cri::LinuxContainerSecurityContext, image: &str) -> Result<plan::User, SpecError> {
    let pair = match requested(security)? {
        Some(pair) => Some(pair),
        None => written_user("image config: User", image)?,
    };
    let field = "linux.security_context.supplemental_groups_policy";
    let policy: cri::SupplementalGroupsPolicy = check::known(field, security.supplemental_groups_policy)?;
    let (uid, gid) = match &pair {
        None => (Some(0), Some(0)),
        // A group left out is the user's own by /etc/passwd, so it is not known yet.
        Some((user, group)) => (user.number(), group.as_ref().and_then(Who::number)),
    };
    let spec = match &pair {
        None => String::new(),
        Some((user, None)) => user.to_string(),
        Some((user, Some(group))) => format!("{user}:{group}"),
    };
    Ok(plan::User {
        spec,
        uid,
        gid,
        additional_gids: groups("linux.security_context.supplemental_groups", &security.supplemental_groups)?,
        merge_image_groups: policy == cri::SupplementalGroupsPolicy::Merge,
    })
}

/// The user of an exec session, with the groups it has in the container; none: the container's.
pub(super) fn session_user(text: &str) -> Result<Option<plan::User>, SpecError> {
    let planned = |(user, group): Pair| plan::User {
        spec: group.as_ref().map_or_else(|| user.to_string(), |group| format!("{user}:{group}")),
        uid: user.number(),
        gid: group.as_ref().and_then(Who::number),
        additional_gids: Vec::new(),
        merge_image_groups: true,
    };
    Ok(written_user("user", text)?.map(planned))
}

/// Group ids, each once, in their order.
pub(super) fn groups(field: &str, list: &[i64]) -> Result<Vec<u32>, SpecError> {
    check::at_most(field, list, MAX_GROUPS)?;
    let mut seen = std::collections::HashSet::new();
    let mut gids = Vec::with_capacity(list.len());
    for (i, gid) in list.iter().enumerate() {
        let gid = check::id(&format!("{field}[{i}]"), *gid)?;
        if seen.insert(gid) {
            gids.push(gid);
        }
    }
    Ok(gids)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of_image(text: &str) -> Result<plan::User, SpecError> {
        user(&cri::LinuxContainerSecurityContext::default(), text)
    }

    #[test]
    fn every_form_of_an_image_user() {
        for (text, uid, gid) in [
            ("", Some(0), Some(0)),
            ("0", Some(0), None),
            ("1000", Some(1000), None),
            ("1000:2000", Some(1000), Some(2000)),
            ("www-data", None, None),
            ("www-data:33", None, Some(33)),
            ("33:www-data", Some(33), None),
            ("4294967294", Some(4_294_967_294), None),
        ] {
            let user = of_image(text).unwrap();
            assert_eq!((user.spec.as_str(), user.uid, user.gid), (text, uid, gid));
        }
    }

    #[test]
    fn what_is_no_user_is_refused() {
        for text in [
            "4294967295",
            "4294967296",
            "18446744073709551616",
            "99999999999999999999999999",
            "-1",
            "+1",
            "1:-1",
            "1:4294967296",
            ":",
            "1:",
            ":1",
            "a:b:c",
            "a b",
            "a\nb",
            "root\0",
            "../x",
        ] {
            assert!(of_image(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_request_overrules_the_image() {
        let number = |value| Some(cri::Int64Value { value });
        let mut security = cri::LinuxContainerSecurityContext { run_as_user: number(7), ..Default::default() };
        assert_eq!(user(&security, "1:1").unwrap().spec, "7");
        security.run_as_group = number(8);
        assert_eq!(user(&security, "1:1").unwrap().spec, "7:8");
        security.run_as_username = "x".to_owned();
        assert!(user(&security, "").unwrap_err().to_string().contains("run_as_username"));
        security.run_as_user = None;
        assert_eq!(user(&security, "").unwrap().spec, "x:8");
        security.run_as_username.clear();
        let error = user(&security, "1").unwrap_err().to_string();
        assert_eq!(error, "linux.security_context.run_as_group: set without run_as_user or run_as_username");
    }

    #[test]
    fn groups_are_ids_and_unique() {
        assert_eq!(groups("g", &[5, 4, 5]), Ok(vec![5, 4]));
        assert_eq!(groups("g", &[5, -4]).unwrap_err().to_string(), "g[1]: -4 is not an id from 0 to 4294967294");
    }

    proptest! {
        #[test]
        fn digits_are_never_taken_for_a_name_nor_cut(text in "[0-9]{1,24}") {
            match of_image(&text) {
                Ok(user) => prop_assert_eq!(user.uid.map(u128::from), text.parse::<u128>().ok()),
                Err(_) => prop_assert!(text.parse::<u128>().unwrap() >= u128::from(u32::MAX)),
            }
        }

        #[test]
        fn no_text_panics_and_none_with_control_characters_passes(text in ".*") {
            if let Ok(user) = of_image(&text) {
                prop_assert!(!user.spec.chars().any(char::is_control));
            }
        }
    }
}
