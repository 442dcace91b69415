//! How replicas ask each other: a POST of JSON on the secure port, over mTLS, for nobody but weftd's own service account.

use super::local::{Answer, Asked, Local, MOST};
use crate::secure::OwnIdentity;
use anyhow::{Context as _, Result, bail, ensure};
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use identity::{Caller, Proof, REPLICA_COUNTS};
use model::SpiffeId;
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long a replica may take to answer.
const LIMIT: Duration = Duration::from_secs(2);
/// More is no answer of ours.
const LARGEST: usize = 4 << 20;

/// Returns where other replicas ask. `own` is the identity that they must have.
pub(crate) fn route(local: Arc<Local>, own: OwnIdentity) -> Router {
    let answer = move |Extension(caller): Extension<Caller>, Json(asked): Json<Vec<Asked>>| {
        let (local, own) = (local.clone(), own.id());
        async move { answer(&local, own, &caller, &asked).await }
    };
    Router::new().route(REPLICA_COUNTS, post(answer)).layer(DefaultBodyLimit::max(LARGEST))
}

async fn answer(local: &Local, own: Option<SpiffeId>, caller: &Caller, asked: &[Asked]) -> Response {
    // A token of the service account may be elsewhere; the certificate is made by those who have the authority.
    if caller.proof != Proof::Certificate || own.as_ref() != Some(&caller.id) {
        return (StatusCode::FORBIDDEN, "for replicas of this control plane only\n").into_response();
    }
    if asked.len() > MOST {
        return (StatusCode::PAYLOAD_TOO_LARGE, "too many objects at once\n").into_response();
    }
    Json(local.answer(asked).await).into_response()
}

/// The other replicas.
pub(crate) struct Peers {
    pub(crate) identity: OwnIdentity,
    /// The name that replicas have in their certificates.
    pub(crate) server: ServerName<'static>,
}

impl Peers {
    /// Asks the replica at an address.
    ///
    /// # Errors
    ///
    /// If it does not answer in time, or is not who it should be.
    pub(crate) async fn ask(&self, address: SocketAddr, asked: &[Asked]) -> Result<Answer> {
        tokio::time::timeout(LIMIT, self.exchange(address, asked)).await.context("no answer in time")?
    }

    async fn exchange(&self, address: SocketAddr, asked: &[Asked]) -> Result<Answer> {
        let config = self.identity.client_config()?;
        let stream = TcpStream::connect(address).await.context("cannot connect")?;
        let stream = TlsConnector::from(config).connect(self.server.clone(), stream).await?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://{address}{REPLICA_COUNTS}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(bytes::Bytes::from(serde_json::to_vec(asked)?)))?;
        let answered = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST).collect().await;
            let Ok(body) = body else { bail!("the answer is too long, or broke off") };
            let body = body.to_bytes();
            ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&body).trim());
            Ok(serde_json::from_slice(&body)?)
        };
        let answered = answered.await;
        connection.abort();
        answered
    }
}
