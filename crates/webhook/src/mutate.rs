//! `/inject`: proxies for pods.

use crate::review::{Request, Response};
use crate::{Knowledge, namespace_or_default};
use base64::Engine as _;
use inject::Decision;
use serde_json::Value;
use std::collections::BTreeMap;

/// Answers a review of a pod that is being created. `path` says which cluster asks.
pub(crate) fn mutate(knowledge: &dyn Knowledge, path: &str, request: &Request) -> Response {
    let is_new_pod = request.resource.group.is_empty()
        && request.resource.resource == "pods"
        && request.sub_resource.is_empty()
        && request.operation == "CREATE";
    if !is_new_pod {
        return Response::allow([]);
    }
    let settings = knowledge.injection();
    let pod = &request.object;
    let of_pod = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let namespace = namespace_or_default(if of_pod.is_empty() { &request.namespace } else { of_pod });
    if let Decision::Skip(reason) = inject::decide_pod(&settings, namespace, pod) {
        tracing::debug!(ns = namespace, %reason, "a pod is not injected");
        return Response::allow([]);
    }
    let labels: BTreeMap<String, String> = pod["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    let kubelets = knowledge.kubelets(pod["spec"]["nodeName"].as_str());
    let injected = inject::inject(
        &settings,
        &inject::Request {
            pod,
            namespace,
            namespace_annotations: &knowledge.namespace_annotations(namespace),
            workload: None,
            proxy_config: &knowledge.proxy_config(namespace, &labels),
            native_sidecar: inject::native_sidecars_supported(
                settings.native_sidecars,
                kubelets.iter().map(String::as_str),
            ),
            environment: &inject::environment_of_path(path),
        },
    );
    let name = pod["metadata"]["name"].as_str().or_else(|| pod["metadata"]["generateName"].as_str());
    match injected {
        Ok(injected) => match patch(&injected) {
            Ok(patch) => {
                tracing::info!(ns = namespace, name, "a pod is injected");
                let warnings = injected.warnings.into_iter().map(|warning| format!("injection: {warning}"));
                Response { patch: Some(patch), patch_type: Some("JSONPatch"), ..Response::allow(warnings) }
            }
            Err(error) => Response::refuse(format!("the patch cannot be written: {error}")),
        },
        Err(error) => {
            tracing::warn!(ns = namespace, name, %error, "a pod is refused: it cannot be injected");
            Response::refuse(error.to_string())
        }
    }
}

fn patch(injected: &inject::Injected) -> Result<String, serde_json::Error> {
    let operations: Value = serde_json::to_value(&injected.patch)?;
    Ok(base64::engine::general_purpose::STANDARD.encode(serde_json::to_vec(&operations)?))
}
