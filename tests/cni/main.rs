//! The driver `cni` with real plugins, on machines of its own (a network and a mount namespace each).

mod debian;
mod host;
