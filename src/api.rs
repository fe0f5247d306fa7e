//! The public interfaces as types: CRI v1 and aril's own, generated from `proto/`.
//!
//! Messages only; the gRPC services around them are in [`service`] and used by `cri` and `cli` alone.

/// Both interfaces as an encoded `google.protobuf.FileDescriptorSet`, comments included.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public.fds"));

/// CRI v1 (`runtime.v1`).
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod cri {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));

    impl std::fmt::Debug for AuthConfig {
        /// Names the registry, never a secret.
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("AuthConfig").field("server_address", &self.server_address).finish_non_exhaustive()
        }
    }
}

/// What `aril` offers beside CRI (`aril.v1`).
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod node {
    include!(concat!(env!("OUT_DIR"), "/aril.v1.rs"));

    impl std::fmt::Debug for RegistryLogin {
        /// Names the registry, never a secret.
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("RegistryLogin").field("server_address", &self.server_address).finish_non_exhaustive()
        }
    }
}

/// gRPC clients and servers of both.
pub mod service {
    #[allow(missing_docs, clippy::all, clippy::pedantic)]
    pub mod cri {
        include!(concat!(env!("OUT_DIR"), "/services/runtime.v1.rs"));
    }
    #[allow(missing_docs, clippy::all, clippy::pedantic)]
    pub mod node {
        include!(concat!(env!("OUT_DIR"), "/services/aril.v1.rs"));
    }
}
