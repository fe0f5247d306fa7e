//! `aril image verify`: whether images are on the disk as they were unpacked.

use serde_json::json;

use super::args::Output;
use super::connect::Daemon;
use super::error::CliError;
use super::output::{self, short};
use crate::api::cri;
use crate::api::node::{VerifiedLayer, VerifyImageRequest, VerifyImageResponse};

/// `aril image verify`: all images, or those named.
pub(super) async fn verify(daemon: &mut Daemon, names: &[String], output: Output) -> Result<(), CliError> {
    let names = if names.is_empty() { all(daemon).await? } else { names.to_vec() };
    let mut documents = Vec::new();
    let mut damaged = 0;
    for name in &names {
        let request = VerifyImageRequest { reference: name.clone() };
        let verified = daemon.node.verify_image(request).await?.into_inner();
        damaged += usize::from(verified.layers.iter().any(|layer| !layer.faults.is_empty()));
        match output {
            Output::Json => documents.push(document(name, &verified)),
            Output::Table | Output::Wide => output::print(&report(name, &verified))?,
        }
    }
    if output == Output::Json {
        output::print(&output::json(&documents)?)?;
    }
    if damaged == 0 {
        return Ok(());
    }
    let advice = "remove what is damaged with `aril image rm` and pull it again";
    Err(CliError::Failed(format!("{damaged} of {} images damaged; {advice}", names.len())))
}

async fn all(daemon: &mut Daemon) -> Result<Vec<String>, CliError> {
    let images = daemon.images.list_images(cri::ListImagesRequest::default()).await?.into_inner().images;
    Ok(images.into_iter().map(|i| i.repo_tags.into_iter().next().unwrap_or(i.id)).collect())
}

fn document(name: &str, verified: &VerifyImageResponse) -> serde_json::Value {
    let layer = |l: &VerifiedLayer| json!({"key": l.key, "diff_id": l.diff_id, "files": l.files, "bytes": l.bytes, "faults": l.faults});
    json!({"image": name, "id": verified.id, "layers": verified.layers.iter().map(layer).collect::<Vec<_>>()})
}

/// One line if all is well, else the faults below it.
fn report(name: &str, verified: &VerifyImageResponse) -> String {
    let sum = |of: fn(&VerifiedLayer) -> u64| verified.layers.iter().map(of).sum::<u64>();
    let is_sound = verified.layers.iter().all(|layer| layer.faults.is_empty());
    let verdict = if is_sound { "sound" } else { "damaged" };
    let (layers, files) = (verified.layers.len(), sum(|l| l.files));
    let mut text = format!(
        "{name}: {verdict} ({layers} layer{}, {files} files, {})\n",
        if layers == 1 { "" } else { "s" },
        output::bytes(sum(|l| l.bytes))
    );
    for layer in &verified.layers {
        for fault in &layer.faults {
            // Names of files are a stranger's.
            text.push_str(&format!("  layer {}: {}\n", short(&layer.key), fault.escape_debug()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_below_the_image() {
        let layer = |key: &str, faults: &[&str]| VerifiedLayer {
            key: key.repeat(64),
            files: 2,
            bytes: 1024,
            faults: faults.iter().map(|&f| f.to_owned()).collect(),
            ..VerifiedLayer::default()
        };
        let mut verified =
            VerifyImageResponse { id: "sha256:x".into(), layers: vec![layer("a", &[]), layer("b", &[])] };
        assert_eq!(report("x:1", &verified), "x:1: sound (2 layers, 4 files, 2.0 KiB)\n");
        verified.layers.push(layer("c", &["\"etc/\u{1b}\" has other content"]));
        let text = report("x:1", &verified);
        assert!(text.starts_with("x:1: damaged (3 layers") && text.contains("\n  layer cccccccccccc: "), "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}
