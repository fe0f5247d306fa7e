//! Pods and containers: their state, their tasks, and what Kubernetes asks of them.

pub mod spec;
