//! The benchmark of identity does what it says, on a small mesh. Nothing is said about times.

use bench::identity::{Plan, run};
use bench::mesh::Mesh;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_is_certified_and_connects() {
    let mesh = Mesh { services: 10, endpoints: 3, namespaces: 2, zones: 2 };
    let plan = Plan { mesh, callers: 10, requests: 3, streams: 20, limit: Duration::from_secs(60) };
    let report = run(plan).await.unwrap();
    assert_eq!(report.converged, 20);
    assert!(!report.certificates_cpu.is_zero() && !report.connect_cpu.is_zero(), "{report}");
    assert!(
        report.requests.min() > Duration::ZERO && report.certificates > report.requests.max(),
        "{report}"
    );
    println!("{report}");
}
