//! From descriptors to Rust.

use std::fs;

use anyhow::Result;
use prost_types::FileDescriptorSet;

use crate::Files;

/// The services that get a server trait and a client; the others would be dead code.
const SERVICES: [&str; 10] = [
    "envoy.service.cluster.v3.ClusterDiscoveryService",
    "envoy.service.discovery.v3.AggregatedDiscoveryService",
    "envoy.service.endpoint.v3.EndpointDiscoveryService",
    "envoy.service.extension.v3.ExtensionConfigDiscoveryService",
    "envoy.service.listener.v3.ListenerDiscoveryService",
    "envoy.service.route.v3.RouteDiscoveryService",
    "envoy.service.secret.v3.SecretDiscoveryService",
    "envoy.service.status.v3.ClientStatusDiscoveryService",
    "grpc.health.v1.Health",
    "istio.v1.auth.IstioCertificateService",
];

/// Packages that only annotate other `.proto` files. Their content stays readable in the descriptor set.
const ANNOTATIONS: [&str; 5] =
    ["validate", "envoy.annotations", "udpa.annotations", "xds.annotations.v3", "google.api"];

/// Returns the Rust files for `descriptors`.
pub(crate) fn rust(mut descriptors: FileDescriptorSet) -> Result<Files> {
    descriptors.file.retain(|file| {
        !ANNOTATIONS.contains(&file.package()) && file.name() != "google/protobuf/descriptor.proto"
    });
    for file in &mut descriptors.file {
        let package = file.package().to_owned();
        file.service.retain(|service| SERVICES.contains(&format!("{package}.{}", service.name()).as_str()));
    }

    let out = tempfile::tempdir()?;
    let mut config = prost_build::Config::new();
    config
        // Sub-messages such as `Any.value` share the buffer they were decoded from.
        .bytes(["."])
        // Equal messages encode to equal bytes: versions are hashes of the encoding.
        .btree_map(["."])
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        .compile_well_known_types()
        .disable_comments(["."])
        .include_file("mod.rs");
    tonic_prost_build::configure()
        .build_transport(false)
        .out_dir(out.path())
        .compile_fds_with_config(descriptors, config)?;

    let mut files = Files::new();
    for entry in fs::read_dir(out.path())? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
    }
    Ok(files)
}
