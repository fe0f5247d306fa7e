//! `aril login` and `aril logout`: passwords of registries in the caller's own `config.json`.

use std::io::{self, BufRead, IsTerminal, Read};

use super::args::{LoginArgs, LogoutArgs};
use super::credentials::{self, Login};
use super::error::CliError;
use super::output;
use super::terminal::Silent;

/// Longest password that is read.
const MOST_BYTES: u64 = 64 << 10;

/// `aril login`.
pub(super) fn login(args: &LoginArgs) -> Result<(), CliError> {
    check(&args.registry)?;
    let login = if args.password_stdin { given(args)? } else { asked(args)? };
    if login.username.is_empty() || login.username.contains(':') {
        return Err(CliError::Usage(format!("{:?} is no user name: it is empty or has a colon", login.username)));
    }
    if login.password.is_empty() {
        return Err(CliError::Usage("the password is empty".to_owned()));
    }
    let place = credentials::keep(&args.registry, &login)?;
    output::print(&format!(
        "kept the password of {} for {} in {place}; the next pull tries it\n",
        login.username, args.registry
    ))
}

/// `aril logout`.
pub(super) fn logout(args: &LogoutArgs) -> Result<(), CliError> {
    check(&args.registry)?;
    if credentials::forget(&args.registry)? {
        return output::print(&format!("forgot the password for {}\n", args.registry));
    }
    Err(CliError::Failed(format!("no password is kept for {}", args.registry)))
}

/// A registry is given as in the name of an image.
fn check(registry: &str) -> Result<(), CliError> {
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    if !registry.is_empty() && registry.chars().all(is_host) {
        return Ok(());
    }
    Err(CliError::Usage(format!("{registry:?} is no registry; write its host alone, with :PORT if it has one")))
}

fn given(args: &LoginArgs) -> Result<Login, CliError> {
    let Some(username) = args.username.clone() else {
        return Err(CliError::Usage("--password-stdin needs --username".to_owned()));
    };
    let mut password = String::new();
    let read = io::stdin().lock().take(MOST_BYTES).read_to_string(&mut password);
    read.map_err(|e| CliError::io("read the password", e))?;
    // The newline is the shell's, not the password's.
    let password = password.strip_suffix('\n').map(|p| p.strip_suffix('\r').unwrap_or(p)).unwrap_or(&password);
    Ok(Login { username, password: password.to_owned() })
}

fn asked(args: &LoginArgs) -> Result<Login, CliError> {
    if !io::stdin().is_terminal() {
        let advice = "standard input is no terminal; give the password with --password-stdin";
        return Err(CliError::Usage(advice.to_owned()));
    }
    let username = match &args.username {
        Some(username) => username.clone(),
        None => line(&format!("User at {}: ", args.registry))?,
    };
    let silent = Silent::enter()?;
    let password = line("Password: ");
    drop(silent);
    output::remark("");
    Ok(Login { username, password: password? })
}

fn line(prompt: &str) -> Result<String, CliError> {
    output::write(&mut io::stderr().lock(), prompt.as_bytes())?;
    let mut text = String::new();
    io::stdin().lock().take(MOST_BYTES).read_line(&mut text).map_err(|e| CliError::io("read from the terminal", e))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_a_host() {
        for good in ["docker.io", "localhost:5000", "[::1]:5000", "10.0.0.1"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "https://docker.io", "docker.io/library", "a b", "a\n"] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
