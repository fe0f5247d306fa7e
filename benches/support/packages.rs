//! The peers: got from Debian, and asked for their versions.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::Result;

/// The first line of what `program --version` says.
pub fn first_line(name: &str, program: &Path) -> Result<String> {
    let hint = if name == "aril" { "build it with `make`" } else { "--install gets it" };
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{name} cannot be run ({error}): {hint}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Gets the peers from Debian, those that are not there yet.
pub fn install(packages: &[&'static str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|name| !installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for args in [vec!["update", "-qq"], [vec!["install", "-y", "-qq", "--no-install-recommends"], missing].concat()] {
        let status = Command::new("apt-get").args(&args).env("DEBIAN_FRONTEND", "noninteractive").status()?;
        if !status.success() {
            return Err(format!("apt-get {} failed ({status})", args.join(" ")).into());
        }
    }
    Ok(())
}

fn installed(package: &str) -> bool {
    let asked = Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]).output();
    asked.is_ok_and(|output| output.stdout.ends_with(b" installed"))
}
