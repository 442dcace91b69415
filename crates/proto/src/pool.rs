//! Descriptors of all messages under `proto/`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use prost::Message;
use prost_reflect::DescriptorPool;

/// An encoded `FileDescriptorSet`.
static ENCODED: &[u8] = include_bytes!("generated/envoy.fds");

/// Returns the descriptors of all messages under `proto/`, with their custom options.
///
/// The first call decodes them, which takes some tens of milliseconds and more than ten megabytes for good.
pub fn pool() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(ENCODED).expect("the descriptor set was written by our own generator")
    });
    &POOL
}

/// Returns an encoded `FileDescriptorSet` with the files that describe a service, by its full name, and all that they
/// refer to. Empty if there is no such service. Nothing but these is decoded.
pub fn descriptors_of(service: &str) -> Vec<u8> {
    let all = Files::decode(Bytes::from_static(ENCODED)).unwrap_or_default();
    let files: BTreeMap<String, (File, Bytes)> = all
        .file
        .into_iter()
        .filter_map(|encoded| Some((File::decode(encoded.clone()).ok()?, encoded)))
        .map(|(file, encoded)| (file.name.clone(), (file, encoded)))
        .collect();
    let defines = |file: &File| {
        file.service.iter().any(|candidate| format!("{}.{}", file.package, candidate.name) == service)
    };
    let mut wanted: Vec<&str> =
        files.values().filter(|(file, _)| defines(file)).map(|(file, _)| file.name.as_str()).collect();
    let mut found: BTreeMap<&str, Bytes> = BTreeMap::new();
    while let Some(name) = wanted.pop() {
        if let Some((file, encoded)) = files.get(name)
            && found.insert(name, encoded.clone()).is_none()
        {
            wanted.extend(file.dependency.iter().map(String::as_str));
        }
    }
    Files { file: found.into_values().collect() }.encode_to_vec()
}

/// A `FileDescriptorSet` whose files stay encoded.
#[derive(Clone, PartialEq, prost::Message)]
struct Files {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file: Vec<Bytes>,
}

/// A `FileDescriptorProto`, as far as it is needed to find others.
#[derive(Clone, PartialEq, prost::Message)]
struct File {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    package: String,
    #[prost(string, repeated, tag = "3")]
    dependency: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    service: Vec<Service>,
}

/// A `ServiceDescriptorProto`, likewise.
#[derive(Clone, PartialEq, prost::Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_described_with_all_that_it_refers_to_and_no_more() {
        let name = "envoy.service.discovery.v3.AggregatedDiscoveryService";
        let encoded = descriptors_of(name);
        let described = DescriptorPool::decode(encoded.as_slice()).expect("it is complete");
        let service = described.get_service_by_name(name).expect("it is there");
        assert_eq!(service.methods().count(), 2);
        assert!(described.files().count() * 4 < pool().files().count());
        assert!(descriptors_of("no.such.Service").is_empty());
    }
}
