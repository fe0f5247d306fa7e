//! `aril doctor`: what this kernel and machine offer, what is missing, and the remedy.
//!
//! Kernel features are tried, not guessed from version numbers: distributions backport, and seccomp filters and
//! security modules take away. Nothing that is tried leaves a trace.

mod kernel;
mod machine;

use serde::Serialize;

use super::args::Output;
use super::error::CliError;
use super::output::{self, Colour, Rows};
use crate::config::Config;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// There.
    Ok,
    /// Worth knowing; everything works.
    Note,
    /// Something will work less well, or not at all for some pods.
    Warning,
    /// No pod will run.
    Missing,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do; empty if nothing needs to be done.
    #[serde(skip_serializing_if = "str::is_empty")]
    remedy: String,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict, found: found.into(), remedy: remedy.into() }
    }

    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, found, "")
    }

    fn missing(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, Verdict::Missing, found, remedy)
    }

    fn warning(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warning, found, remedy)
    }

    fn note(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Verdict::Note, found, "")
    }
}

/// Examines everything and prints it; 1 if something is missing without which no pod runs.
pub(super) fn doctor(config: &Config, output: Output) -> Result<u8, CliError> {
    let mut checks = kernel::checks(&config.root);
    checks.extend(machine::checks(config));
    if !nix::unistd::geteuid().is_root() {
        checks.iter_mut().for_each(leave_to_root);
    }
    let sick = checks.iter().any(|c| c.verdict == Verdict::Missing);
    match output {
        Output::Json => output::print(&output::json(&serde_json::json!({"healthy": !sick, "checks": checks}))?)?,
        Output::Table | Output::Wide => {
            output::print(&text(&checks, output::coloured(&std::io::stdout())))?;
        }
    }
    Ok(u8::from(sick))
}

/// What an ordinary user is refused says nothing of the machine.
fn leave_to_root(check: &mut Check) {
    if check.verdict == Verdict::Missing && ["EPERM", "EACCES"].iter().any(|errno| check.found.contains(errno)) {
        let found = format!("only root can try it ({})", check.found);
        *check = Check::warning(check.name, found, "run `aril doctor` as root");
    }
}

fn text(checks: &[Check], colours: bool) -> String {
    let mut rows = Rows::new(&["", "CHECK", "FOUND"]);
    for check in checks {
        rows.add([mark(check.verdict).to_owned(), check.name.to_owned(), check.found.clone()]);
    }
    let mut lines: Vec<String> = rows.text().lines().map(ToOwned::to_owned).collect();
    for (line, check) in lines.iter_mut().skip(1).zip(checks) {
        // Painted last: the table counts the letters of its cells.
        *line = line.replacen(mark(check.verdict), &paint(check.verdict, colours), 1);
    }
    let remedies = checks.iter().filter(|c| !c.remedy.is_empty());
    let mut remedies: Vec<String> =
        remedies.map(|c| format!("{} {}: {}", paint(c.verdict, colours), c.name, c.remedy)).collect();
    if !remedies.is_empty() {
        remedies.insert(0, "\nWhat to do:".to_owned());
    }
    lines.extend(remedies);
    let missing = checks.iter().filter(|c| c.verdict == Verdict::Missing).count();
    lines.push(if missing == 0 {
        "\nPods can run here.".to_owned()
    } else {
        format!("\nNo pod can run here: {missing} missing.")
    });
    lines.join("\n") + "\n"
}

fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Warning => "warning",
        Verdict::Missing => "missing",
    }
}

fn paint(verdict: Verdict, colours: bool) -> String {
    let colour = match verdict {
        Verdict::Ok => Colour::Green,
        Verdict::Note => return mark(verdict).to_owned(),
        Verdict::Warning => Colour::Yellow,
        Verdict::Missing => Colour::Red,
    };
    output::paint(mark(verdict), colour, colours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_root_may_is_not_missing() {
        let mut refused = Check::missing("openat2", "refused with EPERM", "use a newer kernel");
        leave_to_root(&mut refused);
        assert_eq!((refused.verdict, refused.remedy.as_str()), (Verdict::Warning, "run `aril doctor` as root"));
        let mut absent = Check::missing("openat2", "refused with ENOSYS", "use a newer kernel");
        leave_to_root(&mut absent);
        assert_eq!(absent.verdict, Verdict::Missing);
    }

    #[test]
    fn the_report_ends_with_what_to_do() {
        let checks = [Check::ok("overlay", "works"), Check::missing("root", "uid 1000", "run it as root")];
        assert_eq!(
            text(&checks, false),
            "         CHECK    FOUND\nok       overlay  works\nmissing  root     uid 1000\n\nWhat to do:\n\
             missing root: run it as root\n\nNo pod can run here: 1 missing.\n"
        );
        assert!(text(&checks[..1], false).ends_with("\n\nPods can run here.\n"));
        assert!(text(&checks, true).contains("\x1b[31mmissing\x1b[0m  root"));
    }

    #[test]
    fn this_machine_can_be_examined() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { root: dir.path().join("root"), ..Config::default() };
        let checks = [kernel::checks(&config.root), machine::checks(&config)].concat_all();
        assert!(checks.len() > 15);
        assert!(checks.iter().all(|c| !c.found.is_empty()), "{checks:?}");
        assert!(checks.iter().all(|c| c.verdict != Verdict::Missing || !c.remedy.is_empty()), "{checks:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    trait ConcatAll {
        fn concat_all(self) -> Vec<Check>;
    }

    impl<const N: usize> ConcatAll for [Vec<Check>; N] {
        fn concat_all(self) -> Vec<Check> {
            self.into_iter().flatten().collect()
        }
    }
}
