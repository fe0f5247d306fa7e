//! Log lines: where they go and how they look. Numbers: what the daemon counts of its own work ([`metrics`], [`rpc`]).
//!
//! Text for people, JSON for machines, always on standard error: systemd and `serve.log` take it from there.
//! The keys are fixed: `sandbox`, `container`, `image`, `pid`, `step`, `code`, `elapsed`, `error`.

pub mod instrument;
pub mod metrics;
pub mod rpc;

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, fmt};

/// Starts logging for the life of the process: lines of `level` and graver.
///
/// `json` gives one object a line; else it is text, coloured on a terminal unless `NO_COLOR` is set.
/// Libraries speak only when something is wrong, except at the finest level.
///
/// # Errors
/// [`TryInitError`] if logging was started before.
pub fn init(level: LevelFilter, json: bool) -> Result<(), TryInitError> {
    let registry = tracing_subscriber::registry();
    let filter = filter(level);
    if json {
        let layer = fmt::layer().json().flatten_event(true).with_current_span(false).with_writer(std::io::stderr);
        registry.with(layer.with_filter(filter)).try_init()
    } else {
        let layer = fmt::layer().with_target(false).with_ansi(colours()).with_writer(std::io::stderr);
        registry.with(layer.with_filter(filter)).try_init()
    }
}

fn filter(level: LevelFilter) -> Targets {
    let others = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    Targets::new().with_default(others).with_target("aril", level)
}

fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn libraries_are_quiet_unless_all_is_asked_for() {
        let info = filter(LevelFilter::INFO);
        assert!(info.would_enable("aril::node", &Level::INFO));
        assert!(!info.would_enable("aril::node", &Level::DEBUG));
        assert!(!info.would_enable("h2::codec", &Level::INFO));
        assert!(info.would_enable("h2::codec", &Level::WARN));
        assert!(!filter(LevelFilter::ERROR).would_enable("h2::codec", &Level::WARN));
        assert!(filter(LevelFilter::TRACE).would_enable("h2::codec", &Level::TRACE));
    }
}
