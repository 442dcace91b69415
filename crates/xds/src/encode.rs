//! Discovery responses as bytes: concatenations of what was encoded when the resources were compiled.
//!
//! A response is a short head of its own (the gRPC message header, version, type URL and nonce) and a tail (the
//! resources). Fields of a message may come in any order and need not lie in one buffer, so clients that are sent
//! equal resources share one tail, whatever their nonces are.

use crate::session::Protocol;
use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use proto::resource::{Resource, ResourceType};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// From this size on, a tail is a buffer of its own that clients share. Below, one HTTP/2 frame less is worth more
/// than the copy.
const SHARED_TAIL: usize = 16 * 1024;

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

/// One gRPC message, header included, in one or two buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The first buffer, and all of the message if it is short.
    pub head: Bytes,
    /// The rest, shared between clients. May be empty.
    pub tail: Bytes,
}

impl Frame {
    /// Returns the length of the message, without its header.
    pub fn message_len(&self) -> usize {
        self.head.len() + self.tail.len() - GRPC_HEADER
    }

    /// Returns the message without its gRPC header, in one piece.
    pub fn message(&self) -> Bytes {
        if self.tail.is_empty() {
            return self.head.slice(GRPC_HEADER..);
        }
        let mut message = BytesMut::with_capacity(self.message_len());
        message.put_slice(&self.head[GRPC_HEADER..]);
        message.put_slice(&self.tail);
        message.freeze()
    }
}

/// Encodes responses, and remembers large tails for as long as others are likely to want them.
#[derive(Debug)]
pub struct Encoder {
    /// The `control_plane` field's message.
    control_plane: Vec<u8>,
    cache: Mutex<TailCache>,
    routes: Mutex<HashMap<Arc<str>, std::sync::Weak<Resource>>>,
}

impl Encoder {
    /// Makes an encoder whose responses carry `identifier` as their control plane, and that remembers up to
    /// `cache_bytes` of tails.
    pub fn new(identifier: &str, cache_bytes: usize) -> Self {
        let mut control_plane = Vec::new();
        if !identifier.is_empty() {
            put_bytes(&mut control_plane, 1, identifier.as_bytes());
        }
        Self {
            control_plane,
            cache: Mutex::new(TailCache { limit: cache_bytes, ..TailCache::default() }),
            routes: Mutex::default(),
        }
    }

    /// Encodes a response that holds `resources` and, in delta, the names in `removed`.
    pub fn frame(&self, head: Head<'_>, resources: &[&Resource], removed: &[&str]) -> Frame {
        let tail_len = tail_len(head.protocol, resources, removed);
        let head_len = self.head_len(head);
        let shares = tail_len >= SHARED_TAIL;

        let mut buffer = BytesMut::with_capacity(GRPC_HEADER + head_len + if shares { 0 } else { tail_len });
        buffer.put_u8(0);
        // A message of 4 GiB cannot be expressed in gRPC; the sets of one client are far from it.
        buffer.put_u32(u32::try_from(head_len + tail_len).unwrap_or(u32::MAX));
        self.put_head(&mut buffer, head);
        if shares {
            let tail = self.tail(head.protocol, resources, removed, tail_len);
            return Frame { head: buffer.freeze(), tail };
        }
        put_tail(&mut buffer, head.protocol, resources, removed);
        Frame { head: buffer.freeze(), tail: Bytes::new() }
    }

    /// Returns a route configuration equal to `route` that is in use elsewhere, or `route` itself. Clients that wait
    /// for the same cluster hold back the same virtual host, and need not each keep what remains.
    pub(crate) fn intern(&self, route: Resource) -> Arc<Resource> {
        let mut routes = self.routes.lock();
        if let Some(known) = routes.get(route.version()).and_then(std::sync::Weak::upgrade)
            && *known == route
        {
            return known;
        }
        if routes.len() >= 1024 {
            routes.retain(|_, route| route.strong_count() > 0);
        }
        let route = Arc::new(route);
        routes.insert(route.version().clone(), Arc::downgrade(&route));
        route
    }

    fn tail(&self, protocol: Protocol, resources: &[&Resource], removed: &[&str], len: usize) -> Bytes {
        let key = tail_key(protocol, resources, removed);
        if let Some(tail) = self.cache.lock().get(key) {
            return tail;
        }
        let mut tail = BytesMut::with_capacity(len);
        put_tail(&mut tail, protocol, resources, removed);
        let tail = tail.freeze();
        self.cache.lock().insert(key, tail.clone());
        tail
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

/// Tails by the hash of what they hold, oldest first.
#[derive(Debug, Default)]
struct TailCache {
    limit: usize,
    size: usize,
    tails: HashMap<u128, Bytes>,
    order: VecDeque<u128>,
}

impl TailCache {
    fn get(&self, key: u128) -> Option<Bytes> {
        self.tails.get(&key).cloned()
    }

    fn insert(&mut self, key: u128, tail: Bytes) {
        if tail.len() > self.limit || self.tails.contains_key(&key) {
            return;
        }
        self.size += tail.len();
        self.tails.insert(key, tail);
        self.order.push_back(key);
        while self.size > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            if let Some(tail) = self.tails.remove(&oldest) {
                self.size -= tail.len();
            }
        }
    }
}

fn tail_key(protocol: Protocol, resources: &[&Resource], removed: &[&str]) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(&[u8::from(protocol == Protocol::Delta)]);
    for resource in resources {
        hash.update(resource.kind().short_name().as_bytes());
        hash.update(resource.name().as_bytes());
        hash.update(&[0]);
        hash.update(resource.version().as_bytes());
    }
    for name in removed {
        hash.update(&[1]);
        hash.update(name.as_bytes());
        hash.update(&[0]);
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
    let resources: usize = resources
        .iter()
        .map(|resource| match protocol {
            Protocol::Sotw => bytes_len(2, any_len(resource)),
            Protocol::Delta => bytes_len(2, envelope_len(resource)),
        })
        .sum();
    resources + removed.iter().map(|name| bytes_len(6, name.len())).sum::<usize>()
}

fn put_tail(buffer: &mut BytesMut, protocol: Protocol, resources: &[&Resource], removed: &[&str]) {
    for resource in resources {
        if protocol == Protocol::Delta {
            put_key(buffer, 2, envelope_len(resource));
            put_bytes(buffer, 3, resource.name().as_bytes());
            put_bytes(buffer, 1, resource.version().as_bytes());
        }
        put_key(buffer, 2, any_len(resource));
        put_bytes(buffer, 1, resource.kind().type_url().as_bytes());
        put_bytes(buffer, 2, resource.bytes());
    }
    for name in removed {
        put_bytes(buffer, 6, name.as_bytes());
    }
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

    #[test]
    fn clients_with_different_nonces_share_a_large_tail() {
        let encoder = Encoder::new("weft", 1 << 20);
        let a = cluster("a", 40_000);
        let first = encoder.frame(head(Protocol::Delta, "n1"), &[&a], &[]);
        let second = encoder.frame(head(Protocol::Delta, "n2"), &[&a], &[]);
        assert_ne!(first.head, second.head);
        assert_eq!(first.tail.as_ptr(), second.tail.as_ptr());
    }

    #[test]
    fn the_cache_forgets_the_oldest_tail_first() {
        let encoder = Encoder::new("", 100_000);
        let frame = |name| encoder.frame(head(Protocol::Delta, "n"), &[&cluster(name, 40_000)], &[]);
        let (a, c) = (frame("a"), (frame("b"), frame("c")).1);
        assert_ne!(frame("a").tail.as_ptr(), a.tail.as_ptr());
        assert_eq!(frame("c").tail.as_ptr(), c.tail.as_ptr());
        assert!(encoder.cache.lock().size <= 100_000);
    }
}
