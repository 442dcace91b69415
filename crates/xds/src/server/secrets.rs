//! The secret discovery service: the same streams, for one type.

use super::AdsService;
use proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;

/// Answers `StreamSecrets` and `DeltaSecrets`. Made by [`Server`](super::Server).
#[derive(Clone, Debug)]
pub struct SecretService {
    streams: AdsService,
}

impl SecretService {
    pub(super) fn new(streams: AdsService) -> Self {
        Self { streams }
    }
}

impl tonic::server::NamedService for SecretService {
    const NAME: &'static str = "envoy.service.secret.v3.SecretDiscoveryService";
}

impl tower_service::Service<http::Request<Body>> for SecretService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        ready(Ok(match method {
            "StreamSecrets" => self.streams.start::<DiscoveryRequest>(request),
            "DeltaSecrets" => self.streams.start::<DeltaDiscoveryRequest>(request),
            _ => Status::unimplemented("no such method").into_http(),
        }))
    }
}
