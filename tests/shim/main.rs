//! The real shim, driven as a daemon drives it: containers of busybox in their own pod, with root.
//!
//! Every test ends with [`pod::TestPod::finish`], which shuts the pod down and fails if anything of it is left.

#![allow(clippy::unwrap_used)]

mod attach;
mod end;
mod exec;
mod hostile;
mod lifecycle;
mod logs;
mod pod;
