//! Discovery responses as bytes: concatenations of what was encoded when the resources were compiled.
//!
//! A response is a short head of its own (the gRPC message header, version, type URL and nonce) and a tail (the
//! resources). Fields of a message may come in any order and need not lie in one buffer, so the tail is in chunks of
//! resources next to each other, and clients share chunks: those that are sent equal resources all of them, whatever
//! their nonces are, and workloads whose own resources come first in the order all chunks but the first. A large
//! resource is sent from where it lies.

use crate::session::{Lists, Protocol};
use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use proto::resource::{Resource, ResourceType};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use xxhash_rust::xxh3::Xxh3;

/// From this size on, a tail is in buffers of its own that clients share. Below, one HTTP/2 frame less is worth more
/// than the copy.
const SHARED_TAIL: usize = 16 * 1024;

/// The largest chunk of several resources: what fits into an HTTP/2 frame.
const CHUNK: usize = 16 * 1024;

/// The length of the header before every gRPC message: a compression flag and the message's length.
pub const GRPC_HEADER: usize = 5;

const LENGTH_DELIMITED: u8 = 2;

/// What a response says besides its resources.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Which of the two response messages.
    pub protocol: Protocol,
    /// The type of the resources.
    pub kind: ResourceType,
    /// The version of the response as a whole.
    pub version: &'a str,
    /// The nonce.
    pub nonce: &'a str,
}

/// One gRPC message, header included, in several buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The first buffer, and all of the message if it is short.
    pub head: Bytes,
    /// The rest in order, shared between clients. None of them is empty.
    pub tail: Vec<Bytes>,
}

impl Frame {
    /// Returns the length of the message, without its header.
    pub fn message_len(&self) -> usize {
        self.head.len() + self.tail.iter().map(Bytes::len).sum::<usize>() - GRPC_HEADER
    }

    /// Returns the message without its gRPC header, in one piece.
    pub fn message(&self) -> Bytes {
        if self.tail.is_empty() {
            return self.head.slice(GRPC_HEADER..);
        }
        let mut message = BytesMut::with_capacity(self.message_len());
        message.put_slice(&self.head[GRPC_HEADER..]);
        for part in &self.tail {
            message.put_slice(part);
        }
        message.freeze()
    }
}

/// Encodes responses, and remembers chunks of large ones for as long as others are likely to want them.
#[derive(Debug)]
pub struct Encoder {
    /// The `control_plane` field's message.
    control_plane: Vec<u8>,
    cache: Mutex<ChunkCache>,
    held_back: Mutex<HashMap<u128, Weak<Resource>>>,
    lists: Lists,
}

impl Encoder {
    /// Makes an encoder whose responses carry `identifier` as their control plane, and that remembers up to
    /// `cache_bytes` of chunks.
    pub fn new(identifier: &str, cache_bytes: usize) -> Self {
        let mut control_plane = Vec::new();
        if !identifier.is_empty() {
            put_bytes(&mut control_plane, 1, identifier.as_bytes());
        }
        Self {
            control_plane,
            cache: Mutex::new(ChunkCache { limit: cache_bytes, ..ChunkCache::default() }),
            held_back: Mutex::default(),
            lists: Lists::default(),
        }
    }

    /// Returns the lists of names that clients share.
    pub(crate) fn lists(&self) -> &Lists {
        &self.lists
    }

    /// Encodes a response that holds `resources` and, in delta, the names in `removed`.
    pub fn frame(&self, head: Head<'_>, resources: &[&Resource], removed: &[&str]) -> Frame {
        let tail_len = tail_len(head.protocol, resources, removed);
        let head_len = self.head_len(head);
        let shares = tail_len >= SHARED_TAIL;

        let own_len = if shares { removed_len(removed) } else { tail_len };
        let mut buffer = BytesMut::with_capacity(GRPC_HEADER + head_len + own_len);
        buffer.put_u8(0);
        // A message of 4 GiB cannot be expressed in gRPC; the sets of one client are far from it.
        buffer.put_u32(u32::try_from(head_len + tail_len).unwrap_or(u32::MAX));
        self.put_head(&mut buffer, head);
        put_removed(&mut buffer, removed);
        let mut tail = Vec::new();
        if shares {
            tail = self.tail(head.protocol, resources);
        } else {
            put_resources(&mut buffer, head.protocol, resources);
        }
        Frame { head: buffer.freeze(), tail }
    }

    /// Returns the form of `route` in which the virtual hosts of these names are those of `before`, or missing. Clients
    /// that wait for the same cluster hold back the same ones, so it is made once for as long as any of them uses it.
    pub(crate) fn held_back(
        &self,
        route: &Resource,
        before: Option<&Arc<Resource>>,
        held: &[&str],
        make: impl FnOnce() -> Resource,
    ) -> Arc<Resource> {
        let mut hash = Xxh3::new();
        let before = before.map_or("", |before| before.version());
        for part in [route.name(), route.version(), before].into_iter().chain(held.iter().copied()) {
            hash.update(part.as_bytes());
            hash.update(&[0]);
        }
        let key = hash.digest128();
        if let Some(known) = self.held_back.lock().get(&key).and_then(Weak::upgrade) {
            return known;
        }
        let form = Arc::new(make());
        let mut forms = self.held_back.lock();
        if forms.len() >= 1024 {
            forms.retain(|_, form| form.strong_count() > 0);
        }
        forms.insert(key, Arc::downgrade(&form));
        form
    }

    /// Returns `resources` in chunks. They are filled from the end: names of a workload's own resources (`inbound|…`)
    /// sort before those of what it shares with others.
    fn tail(&self, protocol: Protocol, resources: &[&Resource]) -> Vec<Bytes> {
        let mut parts = Vec::new();
        let mut rest = resources;
        while let Some((last, before)) = rest.split_last() {
            if last.bytes().len() >= CHUNK {
                let mut prefix = BytesMut::new();
                put_prefix(&mut prefix, protocol, last);
                parts.extend([last.bytes().clone(), prefix.freeze()]);
                rest = before;
                continue;
            }
            let mut len = 0;
            let fits = |resource: &&&Resource| {
                len += resource_len(protocol, resource);
                resource.bytes().len() < CHUNK && len <= CHUNK
            };
            let count = rest.iter().rev().take_while(fits).count().max(1);
            let (before, chunk) = rest.split_at(rest.len() - count);
            parts.push(self.chunk(protocol, chunk));
            rest = before;
        }
        parts.reverse();
        parts
    }

    fn chunk(&self, protocol: Protocol, resources: &[&Resource]) -> Bytes {
        let key = chunk_key(protocol, resources);
        if let Some(chunk) = self.cache.lock().get(key) {
            return chunk;
        }
        let len = resources.iter().map(|resource| resource_len(protocol, resource)).sum();
        let mut chunk = BytesMut::with_capacity(len);
        put_resources(&mut chunk, protocol, resources);
        let chunk = chunk.freeze();
        self.cache.lock().insert(key, chunk.clone());
        chunk
    }

    fn control_plane_field(protocol: Protocol) -> u32 {
        match protocol {
            Protocol::Sotw => 6,
            Protocol::Delta => 7,
        }
    }

    fn head_len(&self, head: Head<'_>) -> usize {
        let control_plane = match self.control_plane.len() {
            0 => 0,
            len => bytes_len(Self::control_plane_field(head.protocol), len),
        };
        bytes_len(1, head.version.len())
            + bytes_len(4, head.kind.type_url().len())
            + bytes_len(5, head.nonce.len())
            + control_plane
    }

    /// Writes the fields that differ between clients. `version_info` and `system_version_info` are both field 1,
    /// and the type URL and nonce have the same numbers in both messages.
    fn put_head(&self, buffer: &mut BytesMut, head: Head<'_>) {
        put_bytes(buffer, 1, head.version.as_bytes());
        put_bytes(buffer, 4, head.kind.type_url().as_bytes());
        put_bytes(buffer, 5, head.nonce.as_bytes());
        if !self.control_plane.is_empty() {
            put_bytes(buffer, Self::control_plane_field(head.protocol), &self.control_plane);
        }
    }
}

/// Returns the version of a set of resources: equal for equal sets, on every replica and after every restart.
pub(crate) fn set_version<'a>(resources: impl IntoIterator<Item = &'a Arc<Resource>>) -> String {
    let mut hash = Xxh3::new();
    for resource in resources {
        hash.update(resource.name().as_bytes());
        hash.update(&[0]);
        hash.update(resource.version().as_bytes());
    }
    format!("{:032x}", hash.digest128())
}

/// Chunks by the hash of what they hold, oldest first.
#[derive(Debug, Default)]
struct ChunkCache {
    limit: usize,
    size: usize,
    chunks: HashMap<u128, Bytes>,
    order: VecDeque<u128>,
}

impl ChunkCache {
    fn get(&self, key: u128) -> Option<Bytes> {
        self.chunks.get(&key).cloned()
    }

    fn insert(&mut self, key: u128, chunk: Bytes) {
        if chunk.len() > self.limit || self.chunks.contains_key(&key) {
            return;
        }
        self.size += chunk.len();
        self.chunks.insert(key, chunk);
        self.order.push_back(key);
        while self.size > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            if let Some(chunk) = self.chunks.remove(&oldest) {
                self.size -= chunk.len();
            }
        }
    }
}

fn chunk_key(protocol: Protocol, resources: &[&Resource]) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(&[u8::from(protocol == Protocol::Delta)]);
    for resource in resources {
        hash.update(resource.kind().short_name().as_bytes());
        hash.update(resource.name().as_bytes());
        hash.update(&[0]);
        hash.update(resource.version().as_bytes());
    }
    hash.digest128()
}

fn any_len(resource: &Resource) -> usize {
    bytes_len(1, resource.kind().type_url().len()) + bytes_len(2, resource.bytes().len())
}

/// `Resource { version = 1, resource = 2, name = 3 }`, the envelope of delta.
fn envelope_len(resource: &Resource) -> usize {
    bytes_len(1, resource.version().len())
        + bytes_len(2, any_len(resource))
        + bytes_len(3, resource.name().len())
}

fn tail_len(protocol: Protocol, resources: &[&Resource], removed: &[&str]) -> usize {
    resources.iter().map(|resource| resource_len(protocol, resource)).sum::<usize>() + removed_len(removed)
}

fn resource_len(protocol: Protocol, resource: &Resource) -> usize {
    match protocol {
        Protocol::Sotw => bytes_len(2, any_len(resource)),
        Protocol::Delta => bytes_len(2, envelope_len(resource)),
    }
}

fn removed_len(removed: &[&str]) -> usize {
    removed.iter().map(|name| bytes_len(6, name.len())).sum()
}

fn put_removed(buffer: &mut BytesMut, removed: &[&str]) {
    for name in removed {
        put_bytes(buffer, 6, name.as_bytes());
    }
}

fn put_resources(buffer: &mut BytesMut, protocol: Protocol, resources: &[&Resource]) {
    for resource in resources {
        put_prefix(buffer, protocol, resource);
        buffer.put_slice(resource.bytes());
    }
}

/// Writes all of a resource but its bytes, which come last.
fn put_prefix(buffer: &mut BytesMut, protocol: Protocol, resource: &Resource) {
    if protocol == Protocol::Delta {
        put_key(buffer, 2, envelope_len(resource));
        put_bytes(buffer, 3, resource.name().as_bytes());
        put_bytes(buffer, 1, resource.version().as_bytes());
    }
    put_key(buffer, 2, any_len(resource));
    put_bytes(buffer, 1, resource.kind().type_url().as_bytes());
    put_key(buffer, 2, resource.bytes().len());
}

fn bytes_len(field: u32, len: usize) -> usize {
    prost::encoding::key_len(field) + prost::length_delimiter_len(len) + len
}

fn put_key(buffer: &mut impl BufMut, field: u32, len: usize) {
    prost::encoding::encode_varint(u64::from(field << 3) | u64::from(LENGTH_DELIMITED), buffer);
    prost::encoding::encode_varint(len as u64, buffer);
}

fn put_bytes(buffer: &mut impl BufMut, field: u32, bytes: &[u8]) {
    put_key(buffer, field, bytes.len());
    buffer.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
    use proto::resource::{Body, Needs};

    fn cluster(name: &str, len: usize) -> Resource {
        let body = Body::Whole(Bytes::from(vec![b'x'; len]));
        Resource::new(ResourceType::Cluster, name, body, Needs::default())
    }

    fn head(protocol: Protocol, nonce: &str) -> Head<'_> {
        Head { protocol, kind: ResourceType::Cluster, version: "v7", nonce }
    }

    #[test]
    fn delta_frames_are_what_prost_would_read() {
        let encoder = Encoder::new("weft", 1 << 20);
        for len in [10, 40_000] {
            let (a, b) = (cluster("a", len), cluster("b", 1));
            let frame = encoder.frame(head(Protocol::Delta, "n1"), &[&a, &b], &["gone"]);
            assert_eq!(frame.head[0], 0);
            assert_eq!(frame.head[1..5], u32::try_from(frame.message_len()).unwrap().to_be_bytes());
            let response = DeltaDiscoveryResponse::decode(frame.message()).unwrap();
            assert_eq!(response.system_version_info, "v7");
            assert_eq!(response.nonce, "n1");
            assert_eq!(response.type_url, ResourceType::Cluster.type_url());
            assert_eq!(response.removed_resources, ["gone"]);
            assert_eq!(response.control_plane.unwrap().identifier, "weft");
            assert_eq!(response.resources.len(), 2);
            assert_eq!(response.resources[0].name, "a");
            assert_eq!(*response.resources[0].version, **a.version());
            assert_eq!(response.resources[0].resource, Some(a.to_any()));
        }
    }

    #[test]
    fn sotw_frames_are_what_prost_would_read() {
        let encoder = Encoder::new("", 1 << 20);
        let (a, b) = (cluster("a", 10), cluster("b", 1));
        let frame = encoder.frame(head(Protocol::Sotw, "n1"), &[&a, &b], &[]);
        let response = DiscoveryResponse::decode(frame.message()).unwrap();
        assert_eq!(response.version_info, "v7");
        assert_eq!(response.nonce, "n1");
        assert_eq!(response.resources, [a.to_any(), b.to_any()]);
        assert_eq!(response.control_plane, None);
    }

    fn addresses(parts: &[Bytes]) -> Vec<*const u8> {
        parts.iter().map(|part| part.as_ptr()).collect()
    }

    #[test]
    fn clients_with_different_nonces_share_a_large_tail() {
        let encoder = Encoder::new("weft", 1 << 20);
        let clusters: Vec<Resource> = (0..100).map(|number| cluster(&format!("c{number}"), 1000)).collect();
        let all: Vec<&Resource> = clusters.iter().collect();
        let first = encoder.frame(head(Protocol::Delta, "n1"), &all, &[]);
        let second = encoder.frame(head(Protocol::Delta, "n2"), &all, &[]);
        assert_ne!(first.head, second.head);
        assert_eq!(addresses(&first.tail), addresses(&second.tail));
        assert!(first.tail.iter().all(|part| part.len() <= CHUNK));

        // One that has a resource of its own before the others shares all chunks but the first.
        let own = cluster("a", 1000);
        let with_own: Vec<&Resource> = std::iter::once(&own).chain(all).collect();
        let third = encoder.frame(head(Protocol::Delta, "n3"), &with_own, &[]);
        assert_eq!(addresses(&third.tail[1..]), addresses(&first.tail[1..]));
        let response = DeltaDiscoveryResponse::decode(third.message()).unwrap();
        assert!(
            response
                .resources
                .iter()
                .map(|one| one.name.as_str())
                .eq(with_own.iter().map(|one| &**one.name()))
        );
    }

    #[test]
    fn a_large_resource_is_sent_from_where_it_lies() {
        let encoder = Encoder::new("weft", 1 << 20);
        let (small, large) = (cluster("a", 10), cluster("b", 40_000));
        let frame = encoder.frame(head(Protocol::Delta, "n"), &[&small, &large, &small], &[]);
        assert!(addresses(&frame.tail).contains(&large.bytes().as_ptr()));
        let response = DeltaDiscoveryResponse::decode(frame.message()).unwrap();
        assert_eq!(response.resources[1].resource, Some(large.to_any()));
    }

    #[test]
    fn the_cache_forgets_the_oldest_chunk_first() {
        let encoder = Encoder::new("", 40_000);
        let chunk = |name| {
            let [a, b, c] = [6000, 6001, 6002].map(|len| cluster(name, len));
            encoder.frame(head(Protocol::Delta, "n"), &[&a, &b, &c], &[]).tail.remove(0)
        };
        let (a, c) = (chunk("a"), (chunk("b"), chunk("c")).1);
        assert_ne!(chunk("a").as_ptr(), a.as_ptr());
        assert_eq!(chunk("c").as_ptr(), c.as_ptr());
        assert!(encoder.cache.lock().size <= 40_000);
    }
}
