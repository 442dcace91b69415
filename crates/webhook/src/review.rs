//! `AdmissionReview` of `admission.k8s.io/v1`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version that is spoken.
pub(crate) const API_VERSION: &str = "admission.k8s.io/v1";

/// A question, as the API server sends it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Review {
    #[serde(default)]
    pub(crate) api_version: String,
    #[serde(default)]
    pub(crate) kind: String,
    pub(crate) request: Option<Request>,
}

/// What is asked.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Request {
    pub(crate) uid: String,
    pub(crate) resource: Resource,
    pub(crate) sub_resource: String,
    pub(crate) namespace: String,
    pub(crate) operation: String,
    pub(crate) object: Value,
    pub(crate) old_object: Value,
}

/// The kind of object, as in URLs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) resource: String,
}

/// An answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reply {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) response: Response,
}

/// What is answered.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    pub(crate) uid: String,
    pub(crate) allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<Status>,
    /// A JSON patch in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<String>,
}

/// Why something is refused.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) message: String,
    pub(crate) reason: &'static str,
    pub(crate) code: u16,
}
