//! The driver against plugins that misbehave, each a shell script.

mod chain;
mod faults;
mod hostile;
mod kit;
mod parse;
