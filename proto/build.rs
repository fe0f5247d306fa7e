//! Compiles `proto/*.proto` without `protoc`: protox parses, prost and tonic generate.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let daemon = env::var_os("CARGO_FEATURE_DAEMON").is_some();

    let internal = protox::compile(["proto/plan.proto", "proto/shim.proto"], ["."])?;
    // Sorted maps: equal messages have equal bytes and equal text.
    prost_build::Config::new().btree_map(["."]).compile_fds(internal)?;
    if !daemon {
        return Ok(());
    }

    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(["proto/cri.proto", "proto/aril.proto"])?;
    // The compiler's own encoding: prost's types would drop options they do not know.
    fs::write(out.join("public.fds"), compiler.encode_file_descriptor_set())?;
    let public = compiler.file_descriptor_set();
    messages(public.clone())?;
    services(public)
}

/// The messages alone: they are stored as JSON too, and known to modules that know no gRPC.
fn messages(fds: prost_types::FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    prost_build::Config::new()
        .type_attribute(".runtime.v1", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".runtime.v1", "#[serde(default)]")
        // Its fields are secrets; see `api`.
        .skip_debug(["runtime.v1.AuthConfig", "aril.v1.RegistryLogin"])
        .btree_map(["."])
        .compile_fds(fds)?;
    Ok(())
}

#[cfg(feature = "daemon")]
fn services(fds: prost_types::FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(env::var("OUT_DIR")?).join("services");
    fs::create_dir_all(&dir)?;
    tonic_prost_build::configure()
        .out_dir(dir)
        .extern_path(".runtime.v1", "crate::api::cri")
        .extern_path(".aril.v1", "crate::api::node")
        .compile_fds(fds)?;
    Ok(())
}

#[cfg(not(feature = "daemon"))]
fn services(_: prost_types::FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    Ok(())
}
