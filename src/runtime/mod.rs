//! From a plan to a process: what the kernel is asked to do for a pod.

pub mod cgroup;
