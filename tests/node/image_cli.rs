//! The `aril` command and images: pulled, looked at, given back.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use nix::sys::termios::tcgetattr;
use serde_json::Value;

use crate::cli::Person;
use crate::hostile_registry::{image, layer_of, registry};
use crate::support::registry::Misdeed;
use crate::support::{DockerRegistry, Entry, Manner, PASSWORD, TestNode, USER, layer};

const REPOSITORY: &str = "gcr.io/k8s-staging-cri-tools";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `aril` as somebody whose home is the node's directory.
fn aril(node: &TestNode, arguments: &[&str]) -> Output {
    let mut command = node.aril(arguments.iter().copied());
    at_home(node, &mut command).output().expect("run aril")
}

fn at_home<'c>(node: &TestNode, command: &'c mut Command) -> &'c mut Command {
    let path = format!("{}:{}", node.path("bin").display(), std::env::var("PATH").unwrap());
    command
        .env("HOME", node.path("home"))
        .env("PATH", path)
        .env_remove("DOCKER_CONFIG")
        .env_remove("REGISTRY_AUTH_FILE")
}

fn ok(node: &TestNode, arguments: &[&str]) -> (String, String) {
    let output = aril(node, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// The one line that a command complains with, and its exit code.
fn fails(node: &TestNode, arguments: &[&str]) -> (i32, String) {
    let output = aril(node, arguments);
    let lines: Vec<String> = text(&output.stderr).lines().filter(|l| l.contains("error:")).map(str::to_owned).collect();
    assert_eq!(lines.len(), 1, "{arguments:?}: {}", text(&output.stderr));
    (output.status.code().unwrap(), lines[0].clone())
}

fn json(node: &TestNode, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.extend(["--output", "json"]);
    serde_json::from_str(&ok(node, &all).0).expect("JSON")
}

#[test]
fn a_pull_tells_its_steps_and_then_the_image() {
    let node = TestNode::start();
    let registry = DockerRegistry::start(&node);
    registry.publish("test-1");
    registry.publish("test-2");
    registry.stand_in(&node, "gcr.io");
    let name = format!("{REPOSITORY}/test-image-1");
    let (out, progress) = ok(&node, &["pull", &name]);
    assert!(out.starts_with(&format!("{name}:latest (")) && out.lines().count() == 1, "{out}");
    assert!(progress.starts_with(&format!("pulling {name}\n")), "{progress}");
    // busybox is there since the node was made, under the probe.
    assert_eq!(progress.matches(": already there").count(), 1, "{progress}");
    assert_eq!(progress.matches(": unpacked (").count(), 1, "{progress}");
    assert!(!progress.contains('\x1b'), "no terminal, no drawing");

    let (id, quiet) = ok(&node, &["image", "pull", "-q", &name]);
    assert!(id.starts_with("sha256:") && quiet.is_empty(), "{quiet}");
    let pulled = json(&node, &["pull", &name, &format!("{REPOSITORY}/test-image-2")]);
    assert_eq!((pulled[0]["id"].as_str(), pulled.as_array().unwrap().len()), (Some(id.trim()), 2));
    assert_eq!(pulled[1]["image"], format!("{REPOSITORY}/test-image-2:latest"));

    let (code, error) = fails(&node, &["pull", "gcr.io/nothing"]);
    assert!(code == 1 && error.contains("gcr.io/nothing") && error.contains("404"), "{error}");
    let several = aril(&node, &["pull", "-q", "gcr.io/nothing", &name]);
    assert_eq!((several.status.code(), text(&several.stdout)), (Some(1), id));
    assert!(text(&several.stderr).contains("1 of 2 failed"));
    node.finish();
}

#[test]
fn run_pulls_what_it_lacks() {
    let node = TestNode::start();
    let registry = DockerRegistry::start(&node);
    registry.publish("test-1");
    registry.stand_in(&node, "gcr.io");
    let name = format!("{REPOSITORY}/test-image-1");
    let run = |more: &[&'static str]| {
        let mut arguments = vec!["run", "--rm"];
        arguments.extend(more);
        arguments.extend([name.as_str(), "cat", "/marks/test-1"]);
        aril(&node, &arguments)
    };
    let never = run(&["--pull", "never"]);
    assert!(never.status.code() == Some(125) && text(&never.stderr).contains("--pull"), "{}", text(&never.stderr));
    let first = run(&[]);
    assert_eq!((text(&first.stdout), first.status.code()), ("test-1\n".to_owned(), Some(0)), "{}", text(&first.stderr));
    assert!(text(&first.stderr).contains("pulling"));
    // It is there: nobody is asked, and nothing told.
    let requests = registry.requests("/manifests/");
    assert_eq!(text(&run(&[]).stderr), "");
    assert_eq!(registry.requests("/manifests/"), requests);
    // The tag moves.
    let entries = [Entry::Probe("bin/cat"), Entry::File("marks/test-1", 0o644, b"newer\n")];
    let other = [layer(&[Entry::Dir("bin", 0o755)]), layer(&entries)];
    registry.publish_layers(&format!("{name}:latest"), &other);
    assert_eq!(text(&run(&["--pull", "missing"]).stdout), "test-1\n");
    let id = |reference: &str| json(&node, &["image", "inspect", reference])[0]["id"].clone();
    let before = id(&name);
    run(&["--pull", "always"]);
    assert_ne!(id(&name), before);
    assert!(node.pod_ids().is_empty());
    node.finish();
}

#[test]
fn a_login_is_kept_for_its_registry() {
    let node = TestNode::start();
    let registry = DockerRegistry::with(&node, Manner::Basic);
    registry.publish("test-1");
    registry.stand_in(&node, registry.address());
    let name = format!("{}/k8s-staging-cri-tools/test-image-1", registry.address());
    let login = |password: &str| {
        let mut command = node.aril(["login", "-u", USER, "--password-stdin", registry.address()]);
        let mut child = at_home(&node, &mut command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
        child.wait_with_output().unwrap()
    };
    let (_, error) = fails(&node, &["pull", &name]);
    assert!(error.contains("401") && error.contains(registry.address()), "{error}");
    assert!(login("wrong").status.success());
    fails(&node, &["pull", &name]);
    ok(&node, &["pull", "--creds", &format!("{USER}:{PASSWORD}"), &name]);
    ok(&node, &["image", "rm", &name]);
    let told = text(&login(PASSWORD).stdout);
    assert!(told.contains(USER) && told.contains("home/.docker/config.json") && !told.contains(PASSWORD), "{told}");
    let file = node.path("home/.docker/config.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    ok(&node, &["pull", &name]);
    // `run` takes it, too.
    ok(&node, &["image", "rm", &name]);
    assert_eq!(ok(&node, &["run", "--rm", &name, "cat", "/marks/test-1"]).0, "test-1\n");

    assert!(ok(&node, &["logout", registry.address()]).0.contains(registry.address()));
    fails(&node, &["pull", &name]);
    assert!(fails(&node, &["logout", registry.address()]).1.contains("no password"));
    for bad in [vec!["login", "https://x"], vec!["login", "x"], vec!["pull", "--creds", "x", &name]] {
        assert_eq!(aril(&node, &bad).status.code(), Some(2), "{bad:?}");
    }
    node.finish();
}

#[test]
fn a_helper_may_keep_the_password() {
    let node = TestNode::start();
    let registry = DockerRegistry::with(&node, Manner::Basic);
    registry.publish("test-1");
    registry.stand_in(&node, registry.address());
    let name = format!("{}/k8s-staging-cri-tools/test-image-1", registry.address());
    for directory in ["bin", "home/.docker"] {
        fs::create_dir_all(node.path(directory)).unwrap();
    }
    let helper = node.path("bin/docker-credential-vault");
    let script = format!(
        "#!/bin/sh\nread -r server\n[ \"$1 $server\" = 'get {}' ] || {{ echo credentials not found; exit 1; }}\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n",
        registry.address()
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let config = node.path("home/.docker/config.json");
    fs::write(&config, r#"{"credsStore": "vault"}"#).unwrap();
    ok(&node, &["pull", &name]);
    fs::write(&config, r#"{"credsStore": "absent"}"#).unwrap();
    assert!(fails(&node, &["pull", &name]).1.contains("docker-credential-absent"));
    fs::write(&config, "{").unwrap();
    assert!(fails(&node, &["pull", &name]).1.contains("config.json"));
    node.finish();
}

#[test]
fn space_is_accounted_for_and_given_back() {
    let node = TestNode::start();
    for image in ["test-1", "test-2", "busybox"] {
        node.import(image);
    }
    let pod = node.run_pod("user");
    let container = pod.container(["sleep", "100000"]).image(&format!("{REPOSITORY}/test-image-1")).run();
    container.sh("dd if=/dev/zero of=/file bs=1024 count=512 2>/dev/null");
    let usage = json(&node, &["image", "df"]);
    let image = |name: &str| {
        let images = usage["images"].as_array().unwrap();
        images.iter().find(|i| i["tags"][0].as_str().unwrap().contains(name)).unwrap().clone()
    };
    assert_eq!(image("test-image-1")["containers"][0], container.id);
    // Only its mark is its own; busybox is everybody's.
    let own = |name: &str| image(name)["own_bytes"].as_u64().unwrap();
    assert!(own("test-image-1") > 0 && own("test-image-1") < 65536, "{usage}");
    assert_eq!(own("busybox"), 0);
    let written = usage["containers"][0]["written_bytes"].as_u64().unwrap();
    assert!((512 << 10..1 << 20).contains(&written), "{written}");
    let table = ok(&node, &["image", "df"]).0;
    assert!(table.starts_with("WHAT") && table.contains("images      4"), "{table}");

    assert!(ok(&node, &["image", "prune"]).0.starts_with("0 removed"));
    let would = ok(&node, &["image", "prune", "--all", "--dry-run"]).0;
    assert!(would.contains("test-image-2") && !would.contains("test-image-1"), "{would}");
    let pruned = json(&node, &["image", "prune", "--all"]);
    assert_eq!(pruned["images"].as_array().unwrap().len(), 3, "{pruned}");
    assert!(pruned["freed_bytes"].as_u64().unwrap() >= own("test-image-2"));
    assert_eq!(json(&node, &["image", "ls"]).as_array().unwrap().len(), 1);
    assert_eq!(container.sh("cat /marks/test-1"), "test-1");
    node.finish();
}

#[test]
fn damage_on_the_disk_is_found() {
    let node = TestNode::start();
    let registry = DockerRegistry::start(&node);
    registry.publish("test-1");
    registry.stand_in(&node, "gcr.io");
    let name = format!("{REPOSITORY}/test-image-1");
    ok(&node, &["pull", &name]);
    let sound = ok(&node, &["image", "verify"]).0;
    assert!(sound.lines().count() == 2 && sound.lines().all(|l| l.contains(": sound (")), "{sound}");
    let layers = fs::read_dir(node.path("root/layers")).unwrap().map(|e| e.unwrap().path());
    let mark = layers.map(|l| l.join("fs/marks/test-1")).find(|p| p.exists()).expect("the image's own layer");
    fs::write(&mark, "test-X\n").unwrap();
    let output = aril(&node, &["image", "verify", &name]);
    let (told, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.code() == Some(1) && error.contains("1 of 1 images damaged"), "{error}");
    assert!(told.contains("damaged") && told.contains("marks/test-1"), "{told}");
    assert!(fails(&node, &["image", "verify", "nothing"]).1.contains("nothing"));
    node.finish();
}

#[test]
fn a_person_watches_a_pull_and_logs_in() {
    let node = TestNode::start();
    let registry = registry(&node);
    let content = vec![1; 300_000];
    let name = image(&registry, "watched", &content);
    let blob = format!("/blobs/{}", layer_of(&content));
    registry.misbehave("GET", &blob, 1, Misdeed::Trickle(15_000, std::time::Duration::from_millis(100)));
    let mut person = Person::runs(at_home(&node, &mut node.aril(["pull", name.as_str()])));
    let before = tcgetattr(&person.side).unwrap();
    person.sees("0 of 1 layers");
    // A bar that grows.
    person.sees("[=");
    person.sees(" KiB / 294");
    person.sees(&format!("{name} ("));
    assert_eq!(person.leaves(&before), Some(0));

    let mut command = node.aril(["login", "quay.io"]);
    let mut person = Person::runs(at_home(&node, &mut command));
    person.sees("User at quay.io: ");
    person.types("somebody\r");
    person.sees("Password: ");
    person.types("hush-hush\r");
    let shown = person.sees("kept the password of somebody for quay.io");
    assert!(!shown.contains("hush"), "{shown:?}");
    assert_eq!(person.leaves(&before), Some(0));
    let kept = fs::read_to_string(node.path("home/.docker/config.json")).unwrap();
    assert!(kept.contains("quay.io") && !kept.contains("hush"), "it is encoded: {kept}");
    node.finish();
}
