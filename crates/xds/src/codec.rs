//! The two request messages as one.

use crate::session::{Answer, Held, Names, Protocol, Request};
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use proto::google::rpc::Status as RpcStatus;
use proto::resource::ResourceType;

/// A message that a client of ADS sends.
pub trait Message: prost::Message + Default + 'static {
    /// The protocol it belongs to.
    const PROTOCOL: Protocol;

    /// Takes the node out of it. Only the first message of a stream has to carry one.
    fn take_node(&mut self) -> Option<Node>;

    /// Returns the type URL.
    fn type_url(&self) -> &str;

    /// Returns what it asks for, or `None` for a type that is not served. Envoy answers a response of a type that
    /// it did not ask for with an empty type URL.
    fn into_request(self) -> Option<Request>;
}

impl Message for DiscoveryRequest {
    const PROTOCOL: Protocol = Protocol::Sotw;

    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn into_request(self) -> Option<Request> {
        let held = match self.version_info {
            version if version.is_empty() => Held::Nothing,
            version => Held::Set(version),
        };
        Some(Request {
            kind: ResourceType::from_type_url(&self.type_url)?,
            names: Names::All(self.resource_names),
            held,
            answer: answer(self.response_nonce, self.error_detail),
        })
    }
}

impl Message for DeltaDiscoveryRequest {
    const PROTOCOL: Protocol = Protocol::Delta;

    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn into_request(self) -> Option<Request> {
        Some(Request {
            kind: ResourceType::from_type_url(&self.type_url)?,
            names: Names::Change {
                subscribe: self.resource_names_subscribe,
                unsubscribe: self.resource_names_unsubscribe,
            },
            held: Held::Each(self.initial_resource_versions),
            answer: answer(self.response_nonce, self.error_detail),
        })
    }
}

fn answer(nonce: String, error: Option<RpcStatus>) -> Option<Answer> {
    (!nonce.is_empty()).then(|| Answer { nonce, error: error.map(|status| status.message) })
}
