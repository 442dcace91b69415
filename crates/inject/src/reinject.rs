//! What an earlier injection left behind, and what the user said about our containers.
//!
//! A pod may be injected again: by a webhook that is called a second time, or as a manifest that was injected before. What
//! was added then is known from the annotation `sidecar.istio.io/status`; what the user had written about containers of
//! ours is kept in `proxy.istio.io/overrides`, because afterwards it could not be told from what we wrote.

use crate::error::InjectError;
use crate::{PROXY, merge, pod, probes};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) const STATUS: &str = "sidecar.istio.io/status";
const OVERRIDES: &str = "proxy.istio.io/overrides";
/// The image that stands for ours: Kubernetes demands one.
const AUTO: &str = "auto";

/// The annotation `sidecar.istio.io/status`: the names of what was added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Status {
    pub(crate) init_containers: Option<Vec<String>>,
    pub(crate) containers: Option<Vec<String>>,
    pub(crate) volumes: Option<Vec<String>>,
    pub(crate) image_pull_secrets: Option<Vec<String>>,
    pub(crate) revision: String,
}

impl Status {
    /// Reads what an earlier injection did.
    pub(crate) fn of_pod(pod: &Value) -> Option<Self> {
        serde_json::from_str(pod::annotation(pod, STATUS)?).ok()
    }

    /// Returns what applying the templates adds.
    pub(crate) fn of_overlay(overlay: &Value, revision: &str) -> Self {
        let names = |field: &str| {
            let entries = overlay["spec"][field].as_array().filter(|entries| !entries.is_empty())?;
            Some(entries.iter().map(|entry| pod::name(entry).to_owned()).collect())
        };
        Self {
            init_containers: names("initContainers"),
            containers: names("containers"),
            volumes: names("volumes"),
            image_pull_secrets: names("imagePullSecrets"),
            revision: revision.to_owned(),
        }
    }

    /// Whether a container of a list was added. A sidecar that becomes a native one counts as somebody's wish, because
    /// what it was told about the application is in it.
    fn added(&self, list: &str, name: &str) -> bool {
        let in_list = |list| self.list(list).iter().any(|ours| ours == name);
        in_list(list) || list == "containers" && in_list("initContainers")
    }

    fn list(&self, list: &str) -> &[String] {
        let names = if list == "containers" { &self.containers } else { &self.init_containers };
        names.as_deref().unwrap_or_default()
    }
}

/// The annotation `proxy.istio.io/overrides`: containers as the user wrote them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Overrides {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<Value>,
}

impl Overrides {
    /// Reads what an earlier injection kept.
    pub(crate) fn of_pod(pod: &Value) -> Result<Self, InjectError> {
        let Some(text) = pod::annotation(pod, OVERRIDES) else { return Ok(Self::default()) };
        let invalid = |reason: String| InjectError::annotation(OVERRIDES, reason);
        let overrides: Self = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
        let mut all = overrides.containers.iter().chain(&overrides.init_containers);
        if all.any(|container| pod::name(container).is_empty()) {
            return Err(invalid("a container has no name".to_owned()));
        }
        Ok(overrides)
    }

    /// Returns what the user wrote about the proxy.
    pub(crate) fn proxy(&self) -> Option<&Value> {
        let mut all = self.containers.iter().chain(&self.init_containers);
        all.find(|container| pod::name(container) == PROXY)
    }

    fn list(&self, list: &str) -> &[Value] {
        if list == "containers" { &self.containers } else { &self.init_containers }
    }
}

/// Returns the pod as its author wrote it, as far as it can be told: what templates look at.
pub(crate) fn original(pod: &Value, status: Option<&Status>, overrides: &Overrides) -> Value {
    let mut original = pod.clone();
    let Some(status) = status else { return original };
    for list in ["containers", "initContainers"] {
        for name in status.list(list) {
            pod::take(&mut original, list, name);
        }
        for kept in overrides.list(list) {
            // A sidecar that became an init container was written among the containers.
            let written = if pod::name(kept) == PROXY { "containers" } else { list };
            if pod::find(&original, written, pod::name(kept)).is_none() {
                let spec = pod::object(&mut original["spec"]);
                match spec.entry(written).or_insert_with(|| json!([])) {
                    Value::Array(containers) => containers.push(kept.clone()),
                    other => *other = json!([kept]),
                }
            }
        }
    }
    pod::remove_annotation(&mut original, STATUS);
    original
}

/// Lets what the user wrote about containers of the templates win, and keeps it for the next time.
pub(crate) fn reapply(
    merged: &mut Value,
    pod: &Value,
    overlay: &Value,
    (status, kept): (Option<&Status>, &Overrides),
) {
    let mut overrides = Overrides::default();
    for list in ["containers", "initContainers"] {
        for template in pod::containers(overlay, list) {
            let name = pod::name(template);
            let of_user = kept.list(list).iter().find(|container| pod::name(container) == name);
            let ours = status.is_some_and(|status| status.added(list, name));
            // A native sidecar's settings may be written where a sidecar's always were, and the other way round.
            let in_pod = || if ours { None } else { pod::find_anywhere(pod, name) };
            let Some(written) = of_user.or_else(in_pod) else { continue };
            let mut container = without_auto(written);
            if list == "containers" {
                // Only init containers have it.
                pod::object(&mut container).remove("restartPolicy");
            }
            let merged_container = pod::containers_mut(merged, list)
                .and_then(|containers| containers.iter_mut().find(|other| pod::name(other) == name));
            if let Some(merged_container) = merged_container {
                probes::make_room(merged_container, &container);
            }
            merge::merge(merged, &json!({ "spec": { list: [&container] } }));
            let collected =
                if list == "containers" { &mut overrides.containers } else { &mut overrides.init_containers };
            collected.push(container);
        }
    }
    if status.is_none() && overrides != Overrides::default() {
        let text = serde_json::to_string(&overrides).expect("JSON values can be written as JSON");
        pod::set(merged, "annotations", OVERRIDES, text);
    }
}

fn without_auto(written: &Value) -> Value {
    let mut container = written.clone();
    let fields = pod::object(&mut container);
    if fields.get("image").is_some_and(|image| image == AUTO || image == "") {
        fields.remove("image");
    }
    // Kubernetes' own types always write it; tools that read the annotation know it so.
    fields.entry("resources").or_insert_with(|| json!({}));
    container
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_taken_away_and_what_was_written_comes_back() {
        let status = r#"{"containers":["hello"],"initContainers":["istio-proxy"],"volumes":null}"#;
        let overrides = r#"{"containers":[{"name":"hello","image":"h"}],"initContainers":[{"name":"istio-proxy","args":["x"]}]}"#;
        let pod = json!({
            "metadata": {"annotations": {STATUS: status, OVERRIDES: overrides}},
            "spec": {"containers": [{"name": "hello", "env": []}], "initContainers": [{"name": "istio-proxy"}]},
        });
        let status = Status::of_pod(&pod).unwrap();
        let original = original(&pod, Some(&status), &Overrides::of_pod(&pod).unwrap());
        let expected = json!({
            "containers": [{"name": "hello", "image": "h"}, {"name": "istio-proxy", "args": ["x"]}],
            "initContainers": [],
        });
        assert_eq!(original["spec"], expected);
    }

    #[test]
    fn overrides_that_are_no_containers_are_refused() {
        for text in ["[", "1", r#"{"containers":[{}]}"#] {
            let pod = json!({"metadata": {"annotations": {OVERRIDES: text}}});
            assert!(
                Overrides::of_pod(&pod)
                    .unwrap_err()
                    .to_string()
                    .starts_with("annotation proxy.istio.io/overrides: ")
            );
        }
    }

    #[test]
    fn the_users_fields_win_over_those_of_the_template() {
        let pod =
            json!({"spec": {"containers": [{"name": "istio-proxy", "image": "auto", "args": ["mine"]}]}});
        let overlay =
            json!({"spec": {"containers": [{"name": "istio-proxy", "image": "i", "args": ["a", "b"]}]}});
        let mut merged = overlay.clone();
        reapply(&mut merged, &pod, &overlay, (None, &Overrides::default()));
        let proxy = &merged["spec"]["containers"][0];
        assert_eq!((&proxy["image"], &proxy["args"]), (&json!("i"), &json!(["mine"])));
        let kept: Value = serde_json::from_str(pod::annotation(&merged, OVERRIDES).unwrap()).unwrap();
        assert_eq!(kept, json!({"containers": [{"name": "istio-proxy", "args": ["mine"], "resources": {}}]}));
    }
}
