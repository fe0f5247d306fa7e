//! What the shim is told to do: plain messages, generated from `proto/plan.proto`.

include!(concat!(env!("OUT_DIR"), "/aril.plan.v1.rs"));
