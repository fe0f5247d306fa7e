//! From what people write to what is meant: names, `POD/NAME`, beginnings of ids.

use super::connect::Daemon;
use super::error::CliError;
use super::output::short;
use crate::api::cri;

/// Made by `aril run` for one container: it goes when that container is removed.
pub(super) const OWN_POD: &str = "aril/own-pod";
/// Where `aril` let the logs of a pod be written, to be removed with it.
pub(super) const LOG_DIRECTORY: &str = "aril/log-directory";
/// Set to "none" on pods that are to have loopback alone, for which CRI has no word.
pub(super) const NETWORK: &str = "aril/network";
/// "NAME=ADDRESS", comma-separated: names in the pod's hosts file, for which CRI has no field.
pub(super) const HOSTS: &str = "aril/hosts";

/// All there is on the node, as of one moment.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) pods: Vec<cri::PodSandbox>,
    pub(super) containers: Vec<cri::Container>,
}

/// What a name means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Target<'a> {
    Pod(&'a cri::PodSandbox),
    Container(&'a cri::Container),
}

impl Objects {
    /// Asks the daemon.
    pub(super) async fn fetch(daemon: &mut Daemon) -> Result<Self, CliError> {
        let pods = daemon.runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.into_inner().items;
        let containers =
            daemon.runtime.list_containers(cri::ListContainersRequest::default()).await?.into_inner().containers;
        Ok(Self { pods, containers })
    }

    /// The pod called or numbered `name`.
    pub(super) fn pod(&self, name: &str) -> Result<&cri::PodSandbox, CliError> {
        let found = best(name, &self.pods, |p| &p.id, |p| vec![pod_name(p).to_owned()]);
        one(name, found, "pod", "aril pods", |p| format!("{} ({})", pod_name(p), short(&p.id)))
    }

    /// The container called or numbered `name`.
    pub(super) fn container(&self, name: &str) -> Result<&cri::Container, CliError> {
        let found = best(name, &self.containers, |c| &c.id, |c| self.names(c));
        one(name, found, "container", "aril ps -a", |c| self.title(c))
    }

    /// The container or pod called or numbered `name`. A container comes before its own pod, which has its name.
    pub(super) fn target(&self, name: &str) -> Result<Target<'_>, CliError> {
        let containers = best(name, &self.containers, |c| &c.id, |c| self.names(c));
        let pods = best(name, &self.pods, |p| &p.id, |p| vec![pod_name(p).to_owned()]);
        match (&containers[..], &pods[..]) {
            ([container], [] | [_]) if self.in_those(container, &pods) => Ok(Target::Container(container)),
            ([], [pod]) => Ok(Target::Pod(pod)),
            ([], []) => Err(CliError::NotFound { kind: "container or pod", name: name.to_owned(), list: "aril ps -a" }),
            _ => {
                let titles = containers.iter().map(|c| format!("container {}", self.title(c)));
                let pods = pods.iter().map(|p| format!("pod {} ({})", pod_name(p), short(&p.id)));
                Err(CliError::Ambiguous { name: name.to_owned(), candidates: titles.chain(pods).collect() })
            }
        }
    }

    /// The containers of a pod.
    pub(super) fn of_pod<'a>(&'a self, pod: &'a cri::PodSandbox) -> impl Iterator<Item = &'a cri::Container> {
        self.containers.iter().filter(|c| c.pod_sandbox_id == pod.id)
    }

    /// The pod a container is in.
    pub(super) fn pod_of(&self, container: &cri::Container) -> Option<&cri::PodSandbox> {
        self.pods.iter().find(|p| p.id == container.pod_sandbox_id)
    }

    /// "web/nginx (0123456789ab)".
    fn title(&self, container: &cri::Container) -> String {
        let pod = self.pod_of(container).map_or("?", pod_name);
        format!("{pod}/{} ({})", container_name(container), short(&container.id))
    }

    fn names(&self, container: &cri::Container) -> Vec<String> {
        let name = container_name(container);
        let pod = self.pod_of(container).map_or("", pod_name);
        vec![name.to_owned(), format!("{pod}/{name}")]
    }

    fn in_those(&self, container: &cri::Container, pods: &[&cri::PodSandbox]) -> bool {
        pods.iter().all(|p| p.id == container.pod_sandbox_id && self.of_pod(p).count() == 1)
    }
}

/// The matches of the best kind there is: the whole id, else a name, else the beginning of an id.
fn best<'a, T>(wanted: &str, all: &'a [T], id: impl Fn(&T) -> &str, names: impl Fn(&T) -> Vec<String>) -> Vec<&'a T> {
    let whole: Vec<&T> = all.iter().filter(|x| id(x) == wanted).collect();
    if !whole.is_empty() {
        return whole;
    }
    let named: Vec<&T> = all.iter().filter(|x| names(x).iter().any(|n| n == wanted)).collect();
    if !named.is_empty() || wanted.is_empty() {
        return named;
    }
    all.iter().filter(|x| id(x).starts_with(wanted)).collect()
}

fn one<'a, T>(
    name: &str,
    found: Vec<&'a T>,
    kind: &'static str,
    list: &'static str,
    title: impl Fn(&T) -> String,
) -> Result<&'a T, CliError> {
    match found[..] {
        [one] => Ok(one),
        [] => Err(CliError::NotFound { kind, name: name.to_owned(), list }),
        _ => Err(CliError::Ambiguous { name: name.to_owned(), candidates: found.iter().map(|x| title(x)).collect() }),
    }
}

/// The pod's name; empty if it carries none.
pub(super) fn pod_name(pod: &cri::PodSandbox) -> &str {
    pod.metadata.as_ref().map_or("", |m| &m.name)
}

/// The container's name; empty if it carries none.
pub(super) fn container_name(container: &cri::Container) -> &str {
    container.metadata.as_ref().map_or("", |m| &m.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str, name: &str) -> cri::PodSandbox {
        let metadata = cri::PodSandboxMetadata { name: name.into(), ..Default::default() };
        cri::PodSandbox { id: id.into(), metadata: Some(metadata), ..Default::default() }
    }

    fn container(id: &str, name: &str, pod: &str) -> cri::Container {
        let metadata = cri::ContainerMetadata { name: name.into(), attempt: 0 };
        cri::Container { id: id.into(), pod_sandbox_id: pod.into(), metadata: Some(metadata), ..Default::default() }
    }

    fn objects() -> Objects {
        Objects {
            pods: vec![pod("aa11", "web"), pod("bb22", "solo"), pod("bb33", "twin")],
            containers: vec![
                container("cc11", "app", "aa11"),
                container("cc12", "log", "aa11"),
                container("dd11", "solo", "bb22"),
                container("ee11", "app", "bb33"),
            ],
        }
    }

    #[test]
    fn by_name_id_and_beginning() {
        let all = objects();
        assert_eq!(all.container("log").unwrap().id, "cc12");
        assert_eq!(all.container("cc12").unwrap().id, "cc12");
        assert_eq!(all.container("d").unwrap().id, "dd11");
        assert_eq!(all.container("twin/app").unwrap().id, "ee11");
        assert_eq!(all.pod("aa").unwrap().id, "aa11");
    }

    #[test]
    fn a_container_comes_before_the_pod_made_for_it() {
        let all = objects();
        assert_eq!(all.target("solo").unwrap(), Target::Container(&all.containers[2]));
        assert_eq!(all.target("web").unwrap(), Target::Pod(&all.pods[0]));
        assert_eq!(all.target("bb22").unwrap(), Target::Pod(&all.pods[1]));
    }

    #[test]
    fn a_pod_named_like_a_stranger_is_ambiguous() {
        let mut all = objects();
        all.pods.push(pod("ff00", "log"));
        assert!(matches!(all.target("log"), Err(CliError::Ambiguous { .. })));
    }

    #[test]
    fn what_is_unclear_is_listed_and_what_is_absent_said() {
        let all = objects();
        let error = all.container("app").unwrap_err().to_string();
        assert!(error.contains("web/app (cc11)") && error.contains("twin/app (ee11)"), "{error}");
        assert!(matches!(all.pod("bb"), Err(CliError::Ambiguous { .. })));
        assert_eq!(
            all.container("nope").unwrap_err().to_string(),
            "no container has the name or id \"nope\"; see `aril ps -a`"
        );
        assert!(all.container("").is_err());
    }
}
