//! `aril pull`: an image from its registry, and how far it is.
//!
//! On a terminal every layer has a bar; elsewhere each step is a line, so that a log of it can be read. Progress goes to
//! standard error: what is printed is the image alone.

use std::collections::HashMap;
use std::io::{self, IsTerminal};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::args::{Output, PullArgs, PullPolicy};
use super::connect::Daemon;
use super::credentials;
use super::error::CliError;
use super::output::{self, short};
use super::request;
use crate::api::cri;
use crate::api::node::layer_progress::State;
use crate::api::node::pull_progress::Phase;
use crate::api::node::{
    LayerProgress, PullImageRequest, PullProgress, PulledImage, RegistryLogin, pull_image_response,
};

/// `aril pull`.
pub(super) async fn pull(daemon: &mut Daemon, args: &PullArgs, output: Output) -> Result<(), CliError> {
    let mut failed = 0;
    let mut images = Vec::new();
    for name in &args.images {
        match one(daemon, name, args.creds.as_ref(), args.quiet).await {
            Ok(image) if output == Output::Json => images.push(image),
            Ok(image) => print(&image, args.quiet)?,
            Err(e) if args.images.len() == 1 => return Err(e),
            Err(e) => {
                output::complain(&e.to_string());
                failed += 1;
            }
        }
    }
    if output == Output::Json {
        let image = |i: &PulledImage| json!({"image": i.reference, "id": i.id, "references": i.references, "size_bytes": i.size_bytes});
        output::print(&output::json(&images.iter().map(image).collect::<Vec<_>>())?)?;
    }
    if failed == 0 { Ok(()) } else { Err(CliError::Several { failed, of: args.images.len() }) }
}

fn print(image: &PulledImage, quiet: bool) -> Result<(), CliError> {
    output::print(&match quiet {
        true => format!("{}\n", image.id),
        false => format!("{} ({}, {})\n", image.reference, short(&image.id), output::bytes(image.size_bytes)),
    })
}

/// Sees to it that the image of a container to be made is here.
pub(super) async fn provide(daemon: &mut Daemon, name: &str, policy: PullPolicy) -> Result<(), CliError> {
    if policy != PullPolicy::Always {
        let request = cri::ImageStatusRequest { image: Some(request::image(name)), verbose: false };
        if daemon.images.image_status(request).await?.into_inner().image.is_some() {
            return Ok(());
        }
        if policy == PullPolicy::Never {
            return Err(CliError::Failed(format!(
                "no image is called {name}; see `aril image ls`, or leave out --pull never to pull it"
            )));
        }
    }
    one(daemon, name, None, false).await.map(drop)
}

/// Pulls one image, with the credentials given, else with those that were kept for its registry.
async fn one(
    daemon: &mut Daemon,
    name: &str,
    login: Option<&credentials::Login>,
    quiet: bool,
) -> Result<PulledImage, CliError> {
    let login = match login {
        Some(login) => Some(RegistryLogin {
            username: login.username.clone(),
            password: login.password.clone(),
            ..RegistryLogin::default()
        }),
        None => credentials::find(&credentials::registry_of(name))?,
    };
    let request = PullImageRequest { reference: name.to_owned(), login };
    let mut stream = daemon.node.pull_image(request).await?.into_inner();
    let mut display = Display::new(name, quiet);
    while let Some(message) = stream.message().await? {
        match message.body {
            Some(pull_image_response::Body::Progress(progress)) => display.show(&progress),
            Some(pull_image_response::Body::Image(image)) => {
                display.end();
                return Ok(image);
            }
            None => {}
        }
    }
    Err(CliError::Failed(format!("the daemon ended the pull of {name} without a word; see its log")))
}

/// How progress is shown.
enum Display {
    Nothing,
    Lines(Lines),
    Bars(Bars),
}

impl Display {
    fn new(name: &str, quiet: bool) -> Self {
        if quiet {
            return Self::Nothing;
        }
        if io::stderr().is_terminal() {
            return Self::Bars(Bars::new(name));
        }
        output::remark(&format!("pulling {name}"));
        Self::Lines(Lines::default())
    }

    fn show(&mut self, progress: &PullProgress) {
        match self {
            Self::Nothing => {}
            Self::Lines(lines) => lines.news(progress).iter().for_each(|line| output::remark(line)),
            Self::Bars(bars) => bars.show(progress),
        }
    }

    fn end(&mut self) {
        if let Self::Bars(bars) = self {
            bars.bars.clear().ok();
        }
    }
}

impl Drop for Display {
    /// Also after an error nothing half drawn is left.
    fn drop(&mut self) {
        self.end();
    }
}

/// A line whenever a layer is finished.
#[derive(Default)]
struct Lines {
    told: HashMap<String, State>,
    committing: bool,
}

impl Lines {
    fn news(&mut self, progress: &PullProgress) -> Vec<String> {
        let mut lines = Vec::new();
        for layer in &progress.layers {
            let state = layer.state();
            let is_end = matches!(state, State::Unpacked | State::Present);
            if is_end && self.told.insert(layer.digest.clone(), state) != Some(state) {
                lines.push(match state {
                    State::Present => format!("{}: already there", short(&layer.digest)),
                    _ => format!("{}: unpacked ({})", short(&layer.digest), output::bytes(layer.total_bytes)),
                });
            }
        }
        let is_new = self.told.values().any(|state| *state == State::Unpacked);
        if is_new && progress.phase() == Phase::Committing && !std::mem::replace(&mut self.committing, true) {
            lines.push("writing to the disk".to_owned());
        }
        lines
    }
}

/// A bar for every layer, below a line that says what is being done.
struct Bars {
    bars: MultiProgress,
    head: ProgressBar,
    layers: HashMap<String, ProgressBar>,
    name: String,
}

impl Bars {
    fn new(name: &str) -> Self {
        // Ten times a second is as fast as anybody reads.
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let head = bars.add(ProgressBar::new_spinner());
        head.set_message(format!("{name}: asking the registry"));
        Self { bars, head, layers: HashMap::new(), name: name.to_owned() }
    }

    fn show(&mut self, progress: &PullProgress) {
        self.head.set_message(headline(&self.name, progress));
        self.head.tick();
        for layer in &progress.layers {
            let bar = match self.layers.get(&layer.digest) {
                Some(bar) => bar.clone(),
                None => {
                    let bar = self.bars.add(ProgressBar::new(layer.total_bytes).with_style(style()));
                    bar.set_prefix(short(&layer.digest).to_owned());
                    self.layers.insert(layer.digest.clone(), bar.clone());
                    bar
                }
            };
            bar.set_position(match layer.state() {
                State::Unpacked | State::Present => layer.total_bytes,
                State::Waiting | State::Downloading => layer.done_bytes,
            });
            bar.set_message(word(layer));
        }
    }
}

fn style() -> ProgressStyle {
    let template = "  {prefix} [{bar:30}] {binary_bytes:>10} / {binary_total_bytes:<10} {msg}";
    // The template is a constant that the tests try.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

fn word(layer: &LayerProgress) -> &'static str {
    match layer.state() {
        State::Waiting => "waiting",
        State::Downloading if layer.done_bytes >= layer.total_bytes => "unpacking",
        State::Downloading => "",
        State::Unpacked => "done",
        State::Present => "already there",
    }
}

fn headline(name: &str, progress: &PullProgress) -> String {
    let done = progress.layers.iter().filter(|l| matches!(l.state(), State::Unpacked | State::Present)).count();
    match progress.phase() {
        Phase::Resolving => format!("{name}: asking the registry"),
        Phase::Layers => format!("{name}: {done} of {} layers", progress.layers.len()),
        Phase::Committing => format!("{name}: writing to the disk"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(digest: &str, state: State, done_bytes: u64) -> LayerProgress {
        LayerProgress { digest: format!("sha256:{digest}"), state: state.into(), done_bytes, total_bytes: 2048 }
    }

    fn progress(phase: Phase, layers: Vec<LayerProgress>) -> PullProgress {
        PullProgress { phase: phase.into(), layers }
    }

    #[test]
    fn lines_tell_each_layers_end_once() {
        let mut lines = Lines::default();
        assert!(lines.news(&progress(Phase::Resolving, vec![])).is_empty());
        let half = vec![layer("aa", State::Downloading, 7), layer("bb", State::Present, 0)];
        assert_eq!(lines.news(&progress(Phase::Layers, half)), ["bb: already there"]);
        let all = vec![layer("aa", State::Unpacked, 2048), layer("bb", State::Present, 0)];
        assert_eq!(lines.news(&progress(Phase::Layers, all.clone())), ["aa: unpacked (2.0 KiB)"]);
        assert_eq!(lines.news(&progress(Phase::Committing, all.clone())), ["writing to the disk"]);
        assert!(lines.news(&progress(Phase::Committing, all)).is_empty());
        let present = progress(Phase::Committing, vec![layer("bb", State::Present, 0)]);
        assert_eq!(Lines::default().news(&present), ["bb: already there"], "nothing is written");
    }

    #[test]
    fn the_headline_counts_layers() {
        let two = vec![layer("aa", State::Downloading, 7), layer("bb", State::Present, 0)];
        assert_eq!(headline("x:1", &progress(Phase::Layers, two)), "x:1: 1 of 2 layers");
        assert!(headline("x:1", &progress(Phase::Resolving, vec![])).contains("asking"));
    }

    #[test]
    fn the_style_of_bars_is_sound() {
        assert!(
            ProgressStyle::with_template("  {prefix} [{bar:30}] {binary_bytes:>10} / {binary_total_bytes:<10} {msg}")
                .is_ok()
        );
    }
}
