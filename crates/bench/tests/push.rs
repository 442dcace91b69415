//! The benchmark does what it says, on a small mesh. Nothing is said about times.

use bench::mesh::Mesh;
use bench::push::{Kind, Plan, Server, run};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_edit_of_a_file_reaches_every_proxy_and_no_route_dangles() {
    every_edit_reaches_every_proxy_and_no_route_dangles(Server::WeftdOnFiles, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_edit_by_the_api_reaches_every_proxy_and_no_route_dangles() {
    // The API server has a Service of its own.
    every_edit_reaches_every_proxy_and_no_route_dangles(Server::Weftd, 1).await;
}

async fn every_edit_reaches_every_proxy_and_no_route_dangles(server: Server, others: usize) {
    let mesh = Mesh { services: 10, endpoints: 3, namespaces: 2, zones: 2 };
    let kinds = Kind::ALL.to_vec();
    let limit = Duration::from_secs(60);
    let plan = Plan { mesh, streams: 20, edits: 2, kinds, server, limit };
    let report = run(plan).await.unwrap();
    assert_eq!(report.converged, 20);
    let names: Vec<&str> = report.steps.iter().map(|step| step.name).collect();
    assert_eq!(names, ["endpoint flip", "route weight", "subset renamed"]);
    // Ten services, two subsets of one, and what every sidecar has besides.
    let [clusters, assignments, listeners, routes] = report.resources;
    assert!(clusters > 12 && assignments == 12 + others && listeners >= 3 && routes >= 1, "{report}");
    for step in std::iter::once(&report.connect).chain(&report.steps) {
        assert_eq!(step.dangling.times, 0, "{report}");
        assert!(step.cpu.is_some_and(|cpu| !cpu.is_zero()), "{report}");
    }
    // One endpoint, one route: one response a proxy, and nothing else.
    assert_eq!(report.steps[0].traffic.responses, 20, "{report}");
    assert_eq!(report.steps[1].traffic.responses, 20, "{report}");
    assert!(report.memory.is_some() && report.idle_cpu.is_some());
    println!("{report}");
}
