//! A directory with plugins, a configuration and a driver of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::{Cni, Deadlines, Settings};
use crate::id::SandboxId;
use crate::net::{Attachment, Bandwidth, Dns, Driver, Leftover, Namespace, NetError, Request};

/// What a good plugin answers.
pub const RESULT: &str = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"veth1"},{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/x"}],"ips":[{"address":"10.0.0.5/24","gateway":"10.0.0.1","interface":1}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#;

pub struct Kit {
    dir: tempfile::TempDir,
    limit: Duration,
    pub driver: Cni,
}

impl Kit {
    /// A network "pods" of version 1.0.0 made by these plugins, each a script that has everything it gets in `$dir`.
    pub fn new(plugins: &[(&str, &str)]) -> Self {
        Self::with("1.0.0", "", plugins)
    }

    /// As [`new`](Self::new), with a version and more keys of the list ("\"disableGC\":true,").
    pub fn with(version: &str, keys: &str, plugins: &[(&str, &str)]) -> Self {
        Self::make(version, keys, plugins, Duration::from_secs(20))
    }

    /// As [`new`](Self::new), with deadlines of a second.
    pub fn hasty(plugins: &[(&str, &str)]) -> Self {
        Self::hasty_with("1.0.0", plugins)
    }

    /// As [`hasty`](Self::hasty), with a version.
    pub fn hasty_with(version: &str, plugins: &[(&str, &str)]) -> Self {
        Self::make(version, "", plugins, Duration::from_secs(1))
    }

    /// As [`new`](Self::new), with the file `template` to make configurations of.
    pub fn with_template(plugins: &[(&str, &str)]) -> Self {
        let mut kit = Self::new(plugins);
        let path = kit.path("template");
        kit.driver = Cni::open(Settings { template: Some(path), ..settings(kit.dir.path(), kit.limit) }).unwrap();
        kit
    }

    /// As [`new`](Self::new), with this time for all plugins together.
    pub fn limited(total: Duration, plugins: &[(&str, &str)]) -> Self {
        let mut kit = Self::new(plugins);
        let mut settings = settings(kit.dir.path(), kit.limit);
        (settings.deadlines.total, settings.deadlines.total_of_others) = (total, total);
        kit.driver = Cni::open(settings).unwrap();
        kit
    }

    fn make(version: &str, keys: &str, plugins: &[(&str, &str)], limit: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["net.d", "bin"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let driver = Cni::open(settings(dir.path(), limit)).unwrap();
        let kit = Self { dir, driver, limit };
        let kinds: Vec<String> = plugins.iter().map(|(kind, _)| format!("{{\"type\":\"{kind}\"}}")).collect();
        kit.configure(&format!(
            "{{\"cniVersion\":\"{version}\",{keys}\"name\":\"pods\",\"plugins\":[{}]}}",
            kinds.join(",")
        ));
        plugins.iter().for_each(|(kind, script)| kit.plugin(kind, script));
        kit
    }

    pub fn configure(&self, list: &str) {
        fs::write(self.path("net.d/10-test.conflist"), list).unwrap();
    }

    /// A plugin that keeps its input and environment in `<kind>.<command>` before it does as the script says.
    pub fn plugin(&self, kind: &str, script: &str) {
        let dir = self.dir.path().display();
        let text = format!(
            "#!/bin/sh\ndir={dir}\nkind={kind}\nout=$dir/$kind.$CNI_COMMAND\ncat > $out\nenv | sort > $out.env\n\
             echo $kind $CNI_COMMAND >> $dir/calls\n{script}\n"
        );
        let path = self.path(&format!("bin/{kind}"));
        // Under another name first: a child of another test may have a file open that was just written.
        let fresh = self.path(&format!("bin/.{kind}"));
        fs::write(&fresh, text).unwrap();
        fs::set_permissions(&fresh, PermissionsExt::from_mode(0o755)).unwrap();
        fs::rename(&fresh, &path).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    /// The calls of plugins so far, which are forgotten.
    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        fs::remove_file(self.path("calls")).ok();
        text.lines().map(str::to_owned).collect()
    }

    pub fn setup(&self, request: &Request) -> Result<Attachment, NetError> {
        let namespace = fs::File::open("/proc/self/ns/net").unwrap();
        self.driver.setup(request, Namespace { fd: namespace.as_fd(), path: Some(Path::new("/run/netns/x")) })
    }

    pub fn check(&self, request: &Request) -> Result<(), NetError> {
        let namespace = fs::File::open("/proc/self/ns/net").unwrap();
        self.driver.check(&request.id, Namespace { fd: namespace.as_fd(), path: Some(Path::new("/run/netns/x")) })
    }

    pub fn teardown(&self, request: &Request) -> Vec<Leftover> {
        self.driver.teardown(&request.id, None)
    }

    /// A daemon started anew.
    pub fn reopen(&mut self) {
        self.driver = self.another();
    }

    /// A daemon that takes the place of the one before.
    pub fn another(&self) -> Cni {
        Cni::open(settings(self.dir.path(), self.limit)).unwrap()
    }

    pub fn driver_known(&self) -> Vec<SandboxId> {
        self.driver.known().unwrap()
    }
}

fn settings(dir: &Path, limit: Duration) -> Settings {
    Settings {
        config_dir: dir.join("net.d"),
        plugin_dirs: vec![dir.join("bin")],
        deadlines: Deadlines { add: limit, del: limit, check: limit, gc: limit, status: limit, ..Deadlines::default() },
        ..Settings::new(dir.join("books"))
    }
}

/// A script that answers ADD with a good result.
pub fn good() -> String {
    format!("[ $CNI_COMMAND = ADD ] && echo '{RESULT}'; exit 0")
}

pub fn request(number: u8) -> Request {
    Request {
        id: SandboxId::from_random([number; 32]),
        name: "web".to_owned(),
        namespace: "default".to_owned(),
        uid: "u-1".to_owned(),
        ports: Vec::new(),
        bandwidth: Bandwidth::default(),
        dns: Dns::default(),
        ips: Vec::new(),
        mac: String::new(),
        cgroup_parent: String::new(),
        annotations: BTreeMap::new(),
    }
}
