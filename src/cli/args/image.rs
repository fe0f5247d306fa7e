//! Images, and the registries they are from.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::credentials;

#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum ImageCommand {
    /// Pull images from their registries
    Pull(PullArgs),
    /// Take in an OCI layout (directory or tar) or a `docker save` archive
    Import(ImportArgs),
    /// List images
    Ls,
    /// Remove names of images, and images with their last name
    Rm(ImageRmArgs),
    /// Remove images that nothing uses
    Prune(PruneArgs),
    /// Show all that is known about images
    Inspect(ImageNames),
    /// Show what images and containers occupy
    Df,
    /// Read images from the disk and compare them with what was unpacked
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct PullArgs {
    /// User and password for the registry; every user of this machine can see them while it runs
    /// [default: what `aril login` kept]
    #[arg(long, value_name = "USER:PASSWORD", value_parser = credentials::parse)]
    pub creds: Option<credentials::Login>,
    /// Print the ids alone and show no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Names like busybox, registry.k8s.io/pause:3.10 or host:5000/name@sha256:…
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct LoginArgs {
    /// User [default: asked for]
    #[arg(short, long)]
    pub username: Option<String>,
    /// Read the password from standard input, and ask for nothing
    #[arg(long)]
    pub password_stdin: bool,
    /// Host of the registry, with its port if it has one
    #[arg(default_value = "docker.io")]
    pub registry: String,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct LogoutArgs {
    /// Host of the registry, with its port if it has one
    #[arg(default_value = "docker.io")]
    pub registry: String,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct PruneArgs {
    /// Also images that have names, if no container uses them
    #[arg(short, long)]
    pub all: bool,
    /// Only tell what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct VerifyArgs {
    /// References, or beginnings of ids [default: all images]
    #[arg(value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct ImportArgs {
    /// Name for the image, instead of the one it carries
    #[arg(long, value_name = "REFERENCE")]
    pub name: Option<String>,
    /// Directory or archive
    pub path: PathBuf,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct ImageRmArgs {
    /// Also images that containers use, and by its id an image with several names
    #[arg(short, long)]
    pub force: bool,
    /// References, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct ImageNames {
    /// References, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}
