//! What an injection costs, by the number of containers: `cargo bench -p weft-inject`. Also how much memory it takes.

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, black_box};
use inject::{Request, Settings};
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

fn pod(containers: usize) -> Value {
    let container = |index: usize| {
        let port = 8000 + index;
        json!({
            "name": format!("c{index}"), "image": "registry.example/app:1",
            "ports": [{"name": "http", "containerPort": port}],
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
            "livenessProbe": {"httpGet": {"path": "/live", "port": "http"}, "timeoutSeconds": 3},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": port}},
            "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
        })
    };
    let containers: Vec<Value> = (0..containers).map(container).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "app-", "namespace": "shop", "labels": {"app": "shop", "version": "v1"}},
        "spec": {"containers": containers, "volumes": [{"name": "token", "emptyDir": {}}]},
    })
}

#[divan::bench(args = [0, 5, 15])]
fn inject_pod(bencher: Bencher<'_, '_>, containers: usize) {
    let (settings, none) = (Settings::default(), BTreeMap::new());
    let pod = pod(containers);
    let request = Request {
        pod: &pod,
        namespace: "shop",
        namespace_annotations: &none,
        workload: None,
        proxy_config: &[],
        native_sidecar: true,
        environment: &none,
    };
    bencher.counter(ItemsCount::new(1_usize)).bench(|| {
        let injected = inject::inject(&settings, black_box(&request)).expect("the pod is in order");
        serde_json::to_vec(&injected.patch).expect("a patch can be written")
    });
}
