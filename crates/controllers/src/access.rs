//! What the API server knows about callers, and the Secrets of the control plane.
//!
//! These are single requests, made when somebody asks. Use a client of their own for them: what is asked here must
//! not wait behind lists.

use crate::trouble::reason;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request, StatusCode};
use kube::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct AccessError {
    what: &'static str,
    reason: String,
}

/// The issuer of the cluster's tokens, and the keys that it signs them with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenKeys {
    /// The `iss` of its tokens.
    pub issuer: String,
    /// A JSON Web Key Set.
    pub jwks: String,
}

/// Asks the API server itself for the keys, wherever it says that they are: nobody but the API server is to vouch for
/// its tokens.
///
/// # Errors
/// If the API server does not answer, or does not let us read them.
pub async fn token_keys(client: &Client) -> Result<TokenKeys, AccessError> {
    #[derive(Deserialize)]
    struct Discovery {
        issuer: String,
    }
    const WHAT: &str = "cannot read the keys of tokens";
    let discovery: Discovery = send(client, WHAT, get("/.well-known/openid-configuration")).await?;
    let jwks = client.request_text(request(WHAT, get("/openid/v1/jwks"))?).await;
    let jwks = jwks.map_err(|error| AccessError { what: WHAT, reason: reason(&error) })?;
    Ok(TokenKeys { issuer: discovery.issuer, jwks })
}

/// What the API server says about a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenReview {
    /// Whether it is a good token of somebody.
    pub authenticated: bool,
    /// Whose token it is.
    pub username: String,
    /// The unique id of that.
    pub uid: String,
    /// Whom it is meant for, of those that were asked for.
    pub audiences: Vec<String>,
    /// Name and unique id of the pod that it is bound to.
    pub pod: Option<(String, String)>,
    /// The node that it was issued for.
    pub node: Option<String>,
}

/// Asks the API server about a token.
///
/// # Errors
/// If the API server does not answer, or does not let us ask.
pub async fn review_token(
    client: &Client,
    token: &str,
    audiences: &[String],
) -> Result<TokenReview, AccessError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Answer {
        status: Status,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Status {
        authenticated: bool,
        user: User,
        audiences: Vec<String>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct User {
        username: String,
        uid: String,
        extra: BTreeMap<String, Vec<String>>,
    }
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": { "token": token, "audiences": audiences },
    });
    let asked = post("/apis/authentication.k8s.io/v1/tokenreviews", &body);
    let Answer { status } = send(client, "cannot review a token", asked).await?;
    let extra = |name: &str| status.user.extra.get(&format!("authentication.kubernetes.io/{name}"))?.first();
    Ok(TokenReview {
        authenticated: status.authenticated,
        pod: extra("pod-name").cloned().zip(extra("pod-uid").cloned()),
        node: extra("node-name").cloned(),
        username: status.user.username,
        uid: status.user.uid,
        audiences: status.audiences,
    })
}

/// Asks the API server whether a service account may list the Secrets of its own namespace.
///
/// # Errors
/// If the API server does not answer, or does not let us ask.
pub async fn may_list_secrets(client: &Client, namespace: &str, account: &str) -> Result<bool, AccessError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Answer {
        status: Status,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Status {
        allowed: bool,
        denied: bool,
    }
    let body = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": format!("system:serviceaccount:{namespace}:{account}"),
            "groups": [
                "system:serviceaccounts",
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated",
            ],
            "resourceAttributes": { "namespace": namespace, "verb": "list", "version": "v1", "resource": "secrets" },
        },
    });
    let asked = post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &body);
    let Answer { status } = send(client, "cannot ask who may list Secrets", asked).await?;
    Ok(status.allowed && !status.denied)
}

/// The data of a Secret.
pub type SecretData = BTreeMap<String, Vec<u8>>;

/// A Secret as it was at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct ReadSecret {
    /// Its data.
    pub data: SecretData,
    /// What tells this moment from others.
    pub version: String,
}

/// Reads the data of a Secret; nothing if there is no such Secret.
///
/// # Errors
/// If the API server does not answer, or does not let us read it, or the data are not what a Secret has.
pub async fn read_secret(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<ReadSecret>, AccessError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Secret {
        metadata: Metadata,
        data: Option<BTreeMap<String, String>>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Metadata {
        resource_version: String,
    }
    const WHAT: &str = "cannot read a Secret";
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
    let answer = client.request::<Secret>(request(WHAT, get(&path))?).await;
    let secret = match answer {
        Ok(secret) => secret,
        Err(kube::Error::Api(status)) if status.code == StatusCode::NOT_FOUND => return Ok(None),
        Err(error) => return Err(AccessError { what: WHAT, reason: format!("{name}: {}", reason(&error)) }),
    };
    let decode = |(key, value): (String, String)| match STANDARD.decode(value) {
        Ok(value) => Ok((key, value)),
        Err(_) => Err(AccessError { what: WHAT, reason: format!("{name}: {key} is not base64") }),
    };
    let data = secret.data.unwrap_or_default().into_iter().map(decode).collect::<Result<_, _>>()?;
    Ok(Some(ReadSecret { data, version: secret.metadata.resource_version }))
}

/// Creates a Secret unless there is one. Returns whether it did: if not, somebody else was faster, and what they
/// wrote is what counts.
///
/// # Errors
/// If the API server does not answer, or does not let us create it.
pub async fn create_secret(
    client: &Client,
    namespace: &str,
    name: &str,
    kind: &str,
    data: &SecretData,
) -> Result<bool, AccessError> {
    const WHAT: &str = "cannot create a Secret";
    let data: BTreeMap<&str, String> =
        data.iter().map(|(key, value)| (key.as_str(), STANDARD.encode(value))).collect();
    let body = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": name, "namespace": namespace },
        "type": kind,
        "data": data,
    });
    let path = format!("/api/v1/namespaces/{namespace}/secrets");
    match client.request::<Value>(request(WHAT, post(&path, &body))?).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == StatusCode::CONFLICT => Ok(false),
        Err(error) => Err(AccessError { what: WHAT, reason: format!("{name}: {}", reason(&error)) }),
    }
}

/// Changes the data of a Secret that is as it was at `version`: values that are nothing are removed. Returns whether it
/// did: if not, somebody else has changed it since.
///
/// # Errors
/// If the API server does not answer, or does not let us change it.
pub async fn change_secret(
    client: &Client,
    namespace: &str,
    name: &str,
    version: &str,
    data: &BTreeMap<&str, Option<Vec<u8>>>,
) -> Result<bool, AccessError> {
    const WHAT: &str = "cannot change a Secret";
    let data: BTreeMap<&str, Option<String>> =
        data.iter().map(|(key, value)| (*key, value.as_ref().map(|value| STANDARD.encode(value)))).collect();
    let body = json!({ "metadata": { "resourceVersion": version }, "data": data });
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
    match client.request::<Value>(request(WHAT, (Method::PATCH, path, Some(body)))?).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == StatusCode::CONFLICT => Ok(false),
        Err(error) => Err(AccessError { what: WHAT, reason: format!("{name}: {}", reason(&error)) }),
    }
}

/// Returns the ConfigMaps of a namespace that have a label, each with its data.
///
/// # Errors
/// If the API server does not answer, or does not let us list them.
pub async fn list_config_maps(
    client: &Client,
    namespace: &str,
    label: &str,
) -> Result<Vec<(String, BTreeMap<String, String>)>, AccessError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct List {
        items: Vec<Item>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Item {
        metadata: Metadata,
        data: Option<BTreeMap<String, String>>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Metadata {
        name: String,
    }
    let path =
        format!("/api/v1/namespaces/{namespace}/configmaps?labelSelector={}", label.replace('/', "%2F"));
    let list: List = send(client, "cannot list ConfigMaps", get(&path)).await?;
    Ok(list.items.into_iter().map(|item| (item.metadata.name, item.data.unwrap_or_default())).collect())
}

/// Writes a ConfigMap with a label, as `manager`: creates it, or takes the place of what it was (server-side apply).
///
/// # Errors
/// If the API server does not answer, or does not let us write it.
pub async fn apply_config_map(
    client: &Client,
    namespace: &str,
    name: &str,
    manager: &str,
    label: &str,
    data: &BTreeMap<&str, String>,
) -> Result<(), AccessError> {
    const WHAT: &str = "cannot write a ConfigMap";
    let body = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": name, "namespace": namespace, "labels": { label: "true" } },
        "data": data,
    });
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}?fieldManager={manager}&force=true");
    let request = Request::builder()
        .method(Method::PATCH)
        .uri(path)
        .header(http::header::CONTENT_TYPE, "application/apply-patch+yaml")
        .body(body.to_string().into_bytes())
        .map_err(|error| AccessError { what: WHAT, reason: error.to_string() })?;
    let answer = client.request::<Value>(request).await;
    answer
        .map(drop)
        .map_err(|error| AccessError { what: WHAT, reason: format!("{name}: {}", reason(&error)) })
}

/// Deletes a ConfigMap, if it is there.
///
/// # Errors
/// If the API server does not answer, or does not let us delete it.
pub async fn delete_config_map(client: &Client, namespace: &str, name: &str) -> Result<(), AccessError> {
    const WHAT: &str = "cannot delete a ConfigMap";
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
    match client.request::<Value>(request(WHAT, (Method::DELETE, path, None))?).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == StatusCode::NOT_FOUND => Ok(()),
        Err(error) => Err(AccessError { what: WHAT, reason: format!("{name}: {}", reason(&error)) }),
    }
}

/// A request before it is known to be one.
type Draft = (Method, String, Option<Value>);

fn get(path: &str) -> Draft {
    (Method::GET, path.to_owned(), None)
}

fn post(path: &str, body: &Value) -> Draft {
    (Method::POST, path.to_owned(), Some(body.clone()))
}

fn request(what: &'static str, (method, path, body): Draft) -> Result<Request<Vec<u8>>, AccessError> {
    let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header(http::header::CONTENT_TYPE, content);
    request.body(body).map_err(|error| AccessError { what, reason: error.to_string() })
}

async fn send<T: DeserializeOwned>(
    client: &Client,
    what: &'static str,
    draft: Draft,
) -> Result<T, AccessError> {
    let answer = client.request(request(what, draft)?).await;
    answer.map_err(|error| AccessError { what, reason: reason(&error) })
}
