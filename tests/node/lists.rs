//! Lists in several messages.

use aril::api::cri::{
    ContainerFilter, ListContainersRequest, ListPodSandboxRequest, PodSandboxFilter, StreamContainersRequest,
    StreamImagesRequest, StreamPodSandboxesRequest,
};

use crate::support::TestNode;

#[test]
fn streamed_lists_are_the_lists() {
    let node = TestNode::start();
    // Too large for one message together.
    let annotations = [("long".to_owned(), "x".repeat(300_000))];
    for i in 0..5 {
        let labels = [("parity".to_owned(), (i % 2).to_string())];
        let pod = node.pod(&format!("p{i}")).host_network();
        let pod = pod.with(|c| (c.annotations, c.labels) = (annotations.clone().into(), labels.clone().into())).run();
        let container = pod.container(["true"]);
        container.with(|c| (c.annotations, c.labels) = (annotations.clone().into(), labels.into())).create();
    }
    let cri = node.cri();
    for (label_selector, count) in [(None, 5), (Some(("parity", "1")), 2), (Some(("parity", "2")), 0)] {
        let label_selector = label_selector
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect::<std::collections::BTreeMap<_, _>>();
        let filter = Some(PodSandboxFilter { label_selector: label_selector.clone(), ..Default::default() });
        let request = ListPodSandboxRequest { filter: filter.clone() };
        let list = cri.runtime(|mut c| async move { c.list_pod_sandbox(request).await }).unwrap().items;
        let request = StreamPodSandboxesRequest { filter };
        let messages = cri.all(cri.runtime(|mut c| async move { c.stream_pod_sandboxes(request).await }).unwrap());
        let messages: Vec<_> = messages.unwrap().into_iter().map(|m| m.pod_sandboxes).collect();
        assert_eq!((list.len(), messages.concat()), (count, list));
        assert_eq!(messages.len(), count.div_ceil(3));

        let filter = Some(ContainerFilter { label_selector, ..Default::default() });
        let request = ListContainersRequest { filter: filter.clone() };
        let list = cri.runtime(|mut c| async move { c.list_containers(request).await }).unwrap().containers;
        let request = StreamContainersRequest { filter };
        let messages = cri.all(cri.runtime(|mut c| async move { c.stream_containers(request).await }).unwrap());
        let messages: Vec<_> = messages.unwrap().into_iter().map(|m| m.containers).collect();
        assert_eq!((list.len(), messages.concat()), (count, list));
        assert_eq!(messages.len(), count.div_ceil(3));
    }
    let images = cri.images(|mut c| async move { c.stream_images(StreamImagesRequest::default()).await }).unwrap();
    assert_eq!(cri.all(images).unwrap().iter().map(|m| m.images.len()).sum::<usize>(), 1);
    node.finish();
}
