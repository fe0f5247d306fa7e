//! What a container runs: command, environment, directory.

use super::user::session_user;
use super::{Image, SpecError, check};
use crate::api::cri;
use crate::plan;

/// Where programs are looked for if neither image nor request says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// More entries than any kernel lets a process start with.
const MAX_ENTRIES: usize = 65536;

/// The command line: the request's `command` stands for the image's entry point and `args` for its
/// command. A new entry point does not get the image's command, which was meant for the old one.
pub(super) fn args(config: &cri::ContainerConfig, image: &Image<'_>) -> Result<Vec<String>, SpecError> {
    list("command", &config.command)?;
    list("args", &config.args)?;
    let (entry, rest) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (config.command.as_slice(), config.args.as_slice()),
        (true, false) => (image.entrypoint, config.args.as_slice()),
        (true, true) => (image.entrypoint, image.cmd),
    };
    let args: Vec<String> = entry.iter().chain(rest).cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        let reason = "no command: the request has none and the image no ENTRYPOINT or CMD";
        return Err(SpecError::invalid("command", reason));
    }
    list("image config: Cmd", &args)?;
    Ok(args)
}

fn list(field: &str, list: &[String]) -> Result<(), SpecError> {
    check::at_most(field, list, MAX_ENTRIES)?;
    for (i, text) in list.iter().enumerate() {
        check::bounded(&format!("{field}[{i}]"), text, check::MAX_ARGUMENT)?;
    }
    Ok(())
}

/// The plan of an exec session: command line and terminal; all else is the container's.
///
/// # Errors
/// [`SpecError::Invalid`] for an empty command or one no process can be given.
///
/// Source: CRI v1 `ExecSyncRequest.cmd`, `ExecRequest.cmd`.
pub fn exec_process(cmd: &[String], tty: bool) -> Result<plan::Process, SpecError> {
    if cmd.first().is_none_or(String::is_empty) {
        return Err(SpecError::invalid("cmd", "no command"));
    }
    list("cmd", cmd)?;
    Ok(plan::Process { args: cmd.to_vec(), tty, ..Default::default() })
}

/// As [`exec_process`], with variables (`KEY=VALUE`) beside the container's, and a directory and a user in place of its
/// own where they are not empty.
///
/// # Errors
/// As [`exec_process`]; also for what no variable, directory or user can be.
pub fn exec_session(
    cmd: &[String],
    tty: bool,
    env: &[String],
    cwd: &str,
    user: &str,
) -> Result<plan::Process, SpecError> {
    check::at_most("env", env, MAX_ENTRIES)?;
    for (i, entry) in env.iter().enumerate() {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        check_variable(&format!("env[{i}]"), name, value)?;
    }
    if !cwd.is_empty() {
        check::absolute("working_dir", cwd)?;
    }
    let process = exec_process(cmd, tty)?;
    Ok(plan::Process { env: env.to_vec(), cwd: cwd.to_owned(), user: session_user(user)?, ..process })
}

/// The environment: defaults, then the image's, then the request's; of equal names the last wins
/// and keeps the first one's place.
pub(super) fn env(config: &cri::ContainerConfig, image: &Image<'_>, hostname: &str) -> Result<Vec<String>, SpecError> {
    let mut env = Environment::default();
    env.set("PATH", PATH);
    if config.tty {
        env.set("TERM", "xterm");
    }
    env.set("HOSTNAME", hostname);
    check::at_most("image config: Env", image.env, MAX_ENTRIES)?;
    for (i, (name, value)) in image.env.iter().enumerate() {
        check_variable(&format!("image config: Env[{i}]"), name, value)?;
        env.set(name, value);
    }
    check::at_most("envs", &config.envs, MAX_ENTRIES)?;
    for (i, entry) in config.envs.iter().enumerate() {
        let field = format!("envs[{i}]");
        let value = std::str::from_utf8(&entry.value)
            .map_err(|_| SpecError::invalid(format!("{field}.value"), format!("of {:?} is not UTF-8", entry.key)))?;
        check_variable(&field, &entry.key, value)?;
        env.set(&entry.key, value);
    }
    Ok(env.entries)
}

/// Names are words. Values may have several lines, which many configurations do.
fn check_variable(field: &str, name: &str, value: &str) -> Result<(), SpecError> {
    check::plain(field, name, check::MAX_ARGUMENT)?;
    if name.is_empty() || name.contains('=') {
        return Err(SpecError::invalid(field, format!("{name:?} cannot name a variable: it is empty or contains '='")));
    }
    check::bounded(field, value, check::MAX_ARGUMENT - 1 - name.len())
}

#[derive(Default)]
struct Environment {
    entries: Vec<String>,
    place: std::collections::HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}");
        match self.place.get(name) {
            Some(&at) => self.entries[at] = entry,
            None => {
                self.place.insert(name.to_owned(), self.entries.len());
                self.entries.push(entry);
            }
        }
    }
}

/// The directory the process starts in: the request's, the image's, or the root.
pub(super) fn working_dir(config: &cri::ContainerConfig, image: &Image<'_>) -> Result<String, SpecError> {
    match (config.working_dir.as_str(), image.working_dir) {
        ("", "") => Ok("/".to_owned()),
        ("", of_image) => {
            check::absolute("image config: WorkingDir", of_image)?;
            Ok(of_image.to_owned())
        }
        (asked, _) => {
            check::absolute("working_dir", asked)?;
            Ok(asked.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&s| s.to_owned()).collect()
    }

    #[test]
    fn command_and_args_replace_entry_point_and_command() {
        let (entrypoint, cmd) = (strings(&["/entry", "-e"]), strings(&["cmd"]));
        let image = Image { entrypoint: &entrypoint, cmd: &cmd, ..Default::default() };
        let run = |command: &[&str], args: &[&str]| {
            let config = cri::ContainerConfig { command: strings(command), args: strings(args), ..Default::default() };
            super::args(&config, &image).unwrap().join(" ")
        };
        assert_eq!(run(&[], &[]), "/entry -e cmd");
        assert_eq!(run(&["c"], &[]), "c");
        assert_eq!(run(&[], &["a"]), "/entry -e a");
        assert_eq!(run(&["c"], &["a"]), "c a");
    }

    #[test]
    fn no_command_at_all_is_an_error() {
        let config = cri::ContainerConfig::default();
        assert!(args(&config, &Image::default()).is_err());
        let config = cri::ContainerConfig { command: strings(&[""]), ..Default::default() };
        assert!(args(&config, &Image::default()).is_err());
        assert!(exec_process(&[], false).is_err());
    }

    fn env_of(image: &[(&str, &str)], request: &[(&str, &str)]) -> Result<Vec<String>, SpecError> {
        let image_env: Vec<_> = image.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let envs =
            request.iter().map(|(k, v)| cri::KeyValue { key: (*k).to_owned(), value: v.as_bytes().to_vec() }).collect();
        let config = cri::ContainerConfig { envs, ..Default::default() };
        env(&config, &Image { env: &image_env, ..Default::default() }, "host")
    }

    #[test]
    fn the_last_of_equal_names_wins() {
        let env = env_of(&[("A", "image"), ("PATH", "/bin")], &[("A", "1"), ("B", "x=y\nz"), ("A", "2")]).unwrap();
        assert_eq!(env, ["PATH=/bin", "HOSTNAME=host", "A=2", "B=x=y\nz"]);
    }

    #[test]
    fn what_is_no_variable_is_refused_by_place() {
        for name in ["", "A=B", "A\0", "A\n"] {
            assert!(env_of(&[], &[("OK", ""), (name, "v")]).unwrap_err().to_string().starts_with("envs[1]"));
            assert!(env_of(&[(name, "v")], &[]).unwrap_err().to_string().starts_with("image config: Env[0]"));
        }
        assert!(env_of(&[], &[("A", "\0")]).is_err());
        assert!(env_of(&[], &[("A", &"x".repeat(check::MAX_ARGUMENT))]).is_err());
        let config = cri::ContainerConfig {
            envs: vec![cri::KeyValue { key: "A".to_owned(), value: vec![0xff] }],
            ..Default::default()
        };
        let error = env(&config, &Image::default(), "h").unwrap_err().to_string();
        assert_eq!(error, "envs[0].value: of \"A\" is not UTF-8");
    }
}
