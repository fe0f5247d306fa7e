//! Seccomp, AppArmor, SELinux: what is asked for, and what of it this machine and version can do.
//!
//! A profile that would not be enforced is an error. Where the kernel has the module switched off,
//! "the runtime's default" of it is nothing.

use super::{Defaults, SpecError, check};
use crate::api::cri::{self, security_profile::ProfileType};

/// A profile after the deprecated text form has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Profile {
    Unconfined,
    RuntimeDefault,
    Localhost(String),
}

const CONTEXT: &str = "linux.security_context";

/// The new field if it is set, else the old text: `runtime/default`, `unconfined`, `localhost/…`.
fn profile(
    name: &str,
    new: Option<&cri::SecurityProfile>,
    old_name: &str,
    old: &str,
) -> Result<Option<Profile>, SpecError> {
    if let Some(new) = new {
        let field = format!("{CONTEXT}.{name}");
        return match check::known(&format!("{field}.profile_type"), new.profile_type)? {
            ProfileType::RuntimeDefault => Ok(Some(Profile::RuntimeDefault)),
            ProfileType::Unconfined => Ok(Some(Profile::Unconfined)),
            ProfileType::Localhost => {
                check::plain(&format!("{field}.localhost_ref"), &new.localhost_ref, check::MAX_PATH)?;
                Ok(Some(Profile::Localhost(new.localhost_ref.clone())))
            }
        };
    }
    match old {
        "" => Ok(None),
        "runtime/default" | "docker/default" => Ok(Some(Profile::RuntimeDefault)),
        "unconfined" => Ok(Some(Profile::Unconfined)),
        _ => match old.strip_prefix("localhost/") {
            Some(reference) => Ok(Some(Profile::Localhost(reference.to_owned()))),
            None => {
                let reason = format!("{old:?} is none of runtime/default, unconfined, localhost/…");
                Err(SpecError::invalid(format!("{CONTEXT}.{old_name}"), reason))
            }
        },
    }
}

/// Checks a container's profiles.
pub(super) fn container(security: &cri::LinuxContainerSecurityContext, defaults: &Defaults) -> Result<(), SpecError> {
    #[allow(deprecated)]
    let (old_seccomp, old_apparmor) = (&security.seccomp_profile_path, &security.apparmor_profile);
    let seccomp = profile("seccomp", security.seccomp.as_ref(), "seccomp_profile_path", old_seccomp)?;
    // A privileged container is unconfined whatever it asks for.
    if !security.privileged && matches!(seccomp, Some(Profile::RuntimeDefault | Profile::Localhost(_))) {
        return Err(SpecError::unimplemented(format!("{CONTEXT}.seccomp"), "seccomp profiles are"));
    }
    let apparmor = profile("apparmor", security.apparmor.as_ref(), "apparmor_profile", old_apparmor)?;
    check_apparmor(apparmor.as_ref(), defaults)?;
    check_selinux(security.selinux_options.as_ref(), defaults)
}

/// Checks a sandbox's profiles.
///
/// They would confine a process that only holds the pod's namespaces; there is none. So the
/// default profile, which kubelet asks for with every pod, is kept by having nothing to confine,
/// while a profile somebody wrote is an expectation we do not meet.
pub(super) fn sandbox(security: &cri::LinuxSandboxSecurityContext, defaults: &Defaults) -> Result<(), SpecError> {
    #[allow(deprecated)]
    let old = &security.seccomp_profile_path;
    let seccomp = profile("seccomp", security.seccomp.as_ref(), "seccomp_profile_path", old)?;
    if !security.privileged && matches!(seccomp, Some(Profile::Localhost(_))) {
        return Err(SpecError::unimplemented(format!("{CONTEXT}.seccomp"), "seccomp profiles of a sandbox are"));
    }
    if let Some(Profile::Localhost(_)) = profile("apparmor", security.apparmor.as_ref(), "", "")? {
        check_apparmor(Some(&Profile::Localhost(String::new())), defaults)?;
    }
    check_selinux(security.selinux_options.as_ref(), defaults)
}

fn check_apparmor(profile: Option<&Profile>, defaults: &Defaults) -> Result<(), SpecError> {
    let field = format!("{CONTEXT}.apparmor");
    match profile {
        None | Some(Profile::Unconfined) => Ok(()),
        Some(Profile::RuntimeDefault) if !defaults.apparmor => Ok(()),
        Some(Profile::Localhost(_)) if !defaults.apparmor => {
            Err(SpecError::invalid(field, "AppArmor is not enabled on this host"))
        }
        Some(_) => Err(SpecError::unimplemented(field, "AppArmor profiles are")),
    }
}

fn check_selinux(options: Option<&cri::SeLinuxOption>, defaults: &Defaults) -> Result<(), SpecError> {
    let is_asked = options.is_some_and(|o| *o != cri::SeLinuxOption::default());
    if is_asked && defaults.selinux {
        return Err(SpecError::unimplemented(format!("{CONTEXT}.selinux_options"), "SELinux labels are"));
    }
    Ok(())
}
