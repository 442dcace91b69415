//! The aggregated discovery service, as a tower service that writes shared frames.

use super::body::{FrameBody, Outbox, Reading};
use super::driver::Outgoing;
use super::requests::Requests;
use super::{Shared, driver};
use crate::codec::Message;
use crate::source::PeerInfo;
use proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Answers `StreamAggregatedResources` and `DeltaAggregatedResources`. Made by [`Server`](super::Server).
#[derive(Clone, Debug)]
pub struct AdsService {
    shared: Arc<Shared>,
}

impl AdsService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(super) fn start<M: Message>(
        &self,
        request: http::Request<tonic::body::Body>,
    ) -> http::Response<tonic::body::Body> {
        let Some(permit) = self.shared.admit() else {
            driver::refuse(&self.shared, "streams");
            return Status::resource_exhausted("too many streams").into_http();
        };
        self.shared.watch_readers();
        let (parts, body) = request.into_parts();
        let reading = Arc::new(Reading::new(parts.extensions.get::<serve::Peer>().cloned()));
        let (peer, draining) = peer_of(parts.extensions);
        let requests = Requests::<M>::new(body, self.shared.config.max_request_bytes);
        let (shared, outbox) = (self.shared.clone(), Outbox::default());
        let send_time = shared.metrics.send_time.clone();
        let outgoing = Outgoing { outbox: outbox.clone(), reading: reading.clone() };
        let driver = async move {
            let _permit = permit;
            driver::run(shared, peer, draining, requests, outgoing).await
        };
        let body = FrameBody::new(driver, outbox, reading, send_time);
        let mut response = http::Response::new(tonic::body::Body::new(body));
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
        response
    }
}

impl tonic::server::NamedService for AdsService {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl tower_service::Service<http::Request<tonic::body::Body>> for AdsService {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        ready(Ok(match method {
            "StreamAggregatedResources" => self.start::<DiscoveryRequest>(request),
            "DeltaAggregatedResources" => self.start::<DeltaDiscoveryRequest>(request),
            _ => Status::unimplemented("no such method").into_http(),
        }))
    }
}

/// Returns what is known of a client, and what tells that its connection is about to be closed.
fn peer_of(extensions: http::Extensions) -> (PeerInfo, CancellationToken) {
    let peer = extensions.get::<serve::Peer>().cloned();
    let info = PeerInfo {
        address: peer.as_ref().map(serve::Peer::address),
        encrypted: peer.as_ref().is_some_and(serve::Peer::is_encrypted),
        extensions: Arc::new(extensions),
    };
    (info, peer.map(|peer| peer.draining()).unwrap_or_default())
}
