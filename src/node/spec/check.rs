//! What texts from outside must be before they are used.

use super::SpecError;

/// Longest path the kernel takes, without its NUL.
pub(super) const MAX_PATH: usize = 4095;

/// Longest single argument or environment entry the kernel takes (`MAX_ARG_STRLEN`), without its NUL.
pub(super) const MAX_ARGUMENT: usize = 128 * 1024 - 1;

/// Anything a process may be given: no NUL, at most `max` bytes.
pub(super) fn bounded(field: &str, text: &str, max: usize) -> Result<(), SpecError> {
    if text.len() > max {
        return Err(SpecError::invalid(field, format!("has {} bytes, more than the {max} allowed", text.len())));
    }
    if text.contains('\0') {
        return Err(SpecError::invalid(field, "contains a NUL"));
    }
    Ok(())
}

/// A word or path: bounded, and no control character, which could break out of a line.
pub(super) fn plain(field: &str, text: &str, max: usize) -> Result<(), SpecError> {
    bounded(field, text, max)?;
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(SpecError::invalid(field, format!("contains the control character {:?}", c))),
        None => Ok(()),
    }
}

/// An absolute path.
pub(super) fn absolute(field: &str, path: &str) -> Result<(), SpecError> {
    plain(field, path, MAX_PATH)?;
    if !path.starts_with('/') {
        return Err(SpecError::invalid(field, format!("{path:?} is not an absolute path")));
    }
    Ok(())
}

/// A path of the container in its shortest form, with `.`, `..` and double slashes resolved as the
/// kernel would at a root without links; never above the root.
pub(super) fn in_container(field: &str, path: &str) -> Result<String, SpecError> {
    absolute(field, path)?;
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

/// A list of at most `max`.
pub(super) fn at_most<T>(field: &str, list: &[T], max: usize) -> Result<(), SpecError> {
    if list.len() > max {
        return Err(SpecError::invalid(field, format!("has {} entries, more than the {max} allowed", list.len())));
    }
    Ok(())
}

/// A value of an enumeration this version knows.
pub(super) fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, SpecError> {
    E::try_from(value).map_err(|_| SpecError::invalid(field, format!("{value} is no known value")))
}

/// A user or group id. The highest number is the kernel's "no id" and belongs to nobody.
pub(super) fn id(field: &str, value: i64) -> Result<u32, SpecError> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(SpecError::invalid(field, format!("{value} is not an id from 0 to {}", u32::MAX - 1))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn container_paths_are_cleaned_and_stay_below_the_root() {
        for (given, clean) in
            [("/", "/"), ("//a/./b/", "/a/b"), ("/a/../b", "/b"), ("/../../etc", "/etc"), ("/a/..", "/")]
        {
            assert_eq!(in_container("f", given).unwrap(), clean);
        }
        for bad in ["", "a", "./a", "/a\nb", "/a\0", &format!("/{}", "x".repeat(5000))] {
            assert!(in_container("f", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_have_32_bits_and_are_somebodys() {
        assert_eq!(id("f", 0), Ok(0));
        assert_eq!(id("f", i64::from(u32::MAX) - 1), Ok(u32::MAX - 1));
        for bad in [-1, i64::from(u32::MAX), 1 << 32, i64::MIN, i64::MAX] {
            assert!(id("f", bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_cleaned_path_is_absolute_and_clean(path in "/[./a]{0,20}") {
            let clean = in_container("f", &path).unwrap();
            prop_assert!(clean.starts_with('/'));
            prop_assert!(clean == "/" || clean[1..].split('/').all(|p| !matches!(p, "" | "." | "..")));
            prop_assert_eq!(in_container("f", &clean).unwrap(), clean);
        }
    }
}
