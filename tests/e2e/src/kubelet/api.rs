//! The API server, as the node talks to it.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use testkit::rig::ApiServer;
use testkit::rig::http::{Request, Response};

use super::text;

/// The API server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Api<'a>(pub(super) &'a ApiServer);

impl Api<'_> {
    /// Returns an object or a list; nothing if it is not there.
    pub(super) fn get(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let answer = self.0.request(&Request::get(path))?;
        if answer.status == 404 { Ok(None) } else { read(&answer, path).map(Some) }
    }

    /// Returns the elements of a list.
    pub(super) fn list(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let mut list = self.get(path)?.with_context(|| format!("there is no {path}"))?;
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Sends an object and returns what became of it.
    pub(super) fn send(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = Request::new(method, path).header("content-type", kind).body(body.to_string());
        read(&self.0.request(&request)?, path)
    }

    /// Returns the data of a ConfigMap or Secret; nothing if it is not there.
    pub(super) fn data(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<Option<BTreeMap<String, Vec<u8>>>> {
        let Some(object) = self.get(&format!("/api/v1/namespaces/{namespace}/{kind}/{name}"))? else {
            return Ok(None);
        };
        let is_encoded = kind == "secrets";
        let entries = object["data"].as_object().into_iter().flatten().map(|(key, value)| {
            let bytes = text(value).as_bytes().to_vec();
            Ok((key.clone(), if is_encoded { STANDARD.decode(bytes)? } else { bytes }))
        });
        entries.collect::<anyhow::Result<_>>().map(Some)
    }
}

fn read(answer: &Response, path: &str) -> anyhow::Result<Value> {
    ensure!((200..300).contains(&answer.status), "{path}: {} {}", answer.status, answer.text());
    Ok(answer.json()?)
}
