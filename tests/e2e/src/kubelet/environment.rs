//! What a container is told by its environment, and by `$(NAME)` in its command line.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde_json::Value;

use super::api::Api;
use super::text;

/// What environments are made of.
#[derive(Clone, Debug)]
pub(super) struct Values<'a> {
    /// The API server, for ConfigMaps and Secrets.
    pub(super) api: &'a Api<'a>,
    /// The pod with its addresses.
    pub(super) pod: &'a Value,
}

impl Values<'_> {
    /// Returns the variables of a container.
    pub(super) fn of(&self, container: &Value) -> anyhow::Result<BTreeMap<String, String>> {
        let mut variables = BTreeMap::from([
            ("KUBERNETES_SERVICE_HOST".to_owned(), super::services::KUBERNETES.to_string()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), "443".to_owned()),
            ("HOSTNAME".to_owned(), text(&self.pod["metadata"]["name"]).to_owned()),
        ]);
        if container["envFrom"].as_array().is_some_and(|all| !all.is_empty()) {
            bail!("envFrom is not understood here");
        }
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = text(&variable["name"]);
            let from = &variable["valueFrom"];
            let value = if from.is_null() {
                Some(expand(text(&variable["value"]), &variables))
            } else {
                self.from(container, from).with_context(|| format!("the variable {name}"))?
            };
            if let Some(value) = value {
                variables.insert(name.to_owned(), value);
            }
        }
        Ok(variables)
    }

    fn from(&self, container: &Value, from: &Value) -> anyhow::Result<Option<String>> {
        if let Some(path) = from["fieldRef"]["fieldPath"].as_str() {
            return Ok(Some(field(self.pod, path)?));
        }
        if from["resourceFieldRef"].is_object() {
            let resource = &from["resourceFieldRef"];
            return Ok(Some(limit(container, text(&resource["resource"]), text(&resource["divisor"]))?));
        }
        for (source, kind) in [("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")] {
            let reference = &from[source];
            if reference.is_object() {
                let namespace = text(&self.pod["metadata"]["namespace"]);
                let found = self.api.data(kind, namespace, text(&reference["name"]))?;
                let value = found.and_then(|data| data.get(text(&reference["key"])).cloned());
                if value.is_none() && reference["optional"] != Value::Bool(true) {
                    bail!("there is no {} in {} {}", reference["key"], kind, reference["name"]);
                }
                return Ok(value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
        bail!("{from} is not understood here")
    }
}

/// Returns what the downward API says.
pub(super) fn field(pod: &Value, path: &str) -> anyhow::Result<String> {
    let (metadata, status) = (&pod["metadata"], &pod["status"]);
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = map.strip_prefix("metadata.").context("only metadata has keys")?;
        return Ok(text(&metadata[map][key]).to_owned());
    }
    let value = match path {
        "metadata.name" => &metadata["name"],
        "metadata.namespace" => &metadata["namespace"],
        "metadata.uid" => &metadata["uid"],
        "metadata.labels" => return Ok(lines(&metadata["labels"])),
        "metadata.annotations" => return Ok(lines(&metadata["annotations"])),
        "spec.nodeName" => &pod["spec"]["nodeName"],
        "spec.serviceAccountName" => &pod["spec"]["serviceAccountName"],
        "status.podIP" | "status.podIPs" => &status["podIP"],
        "status.hostIP" => &status["hostIP"],
        _ => bail!("the field {path} is not understood here"),
    };
    Ok(text(value).to_owned())
}

/// As the kubelet writes a map to a file.
fn lines(map: &Value) -> String {
    let pairs = map.as_object().into_iter().flatten();
    let lines: Vec<String> = pairs.map(|(key, value)| format!("{key}={:?}", text(value))).collect();
    lines.join("\n")
}

/// Returns what a container may use, in units of `divisor`; what has no limit may use all of this node: two processors and
/// four gibibytes.
fn limit(container: &Value, resource: &str, divisor: &str) -> anyhow::Result<String> {
    let (group, name) = resource.split_once('.').context("limits.NAME or requests.NAME")?;
    let set = text(&container["resources"][group][name]);
    let set = match (set, name) {
        ("", "cpu") => "2",
        ("", "memory") => "4Gi",
        (set, _) => set,
    };
    let divisor = quantity(if divisor.is_empty() || divisor == "0" { "1" } else { divisor })?;
    Ok(format!("{:.0}", (quantity(set)? / divisor).ceil()))
}

fn quantity(text: &str) -> anyhow::Result<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "" => 1.0,
        "m" => 0.001,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        _ => bail!("the quantity {text} is not understood here"),
    };
    let number: f64 = number.parse().with_context(|| format!("the quantity {text}"))?;
    Ok(number * factor)
}

/// Replaces `$(NAME)` by variables that are there, and `$$` by `$`.
pub(super) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('$') {
        expanded.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            match variables.get(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn variables_are_expanded_as_kubernetes_does() {
        let variables = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        assert_eq!(expand("$(A).$(B).$$(A).$x$", &variables), "1.$(B).$(A).$x$");
    }

    #[test]
    fn limits_are_counted_in_units() {
        let container = json!({ "resources": { "limits": { "cpu": "1500m", "memory": "1Gi" } } });
        assert_eq!(limit(&container, "limits.cpu", "0").unwrap(), "2");
        assert_eq!(limit(&container, "limits.cpu", "1m").unwrap(), "1500");
        assert_eq!(limit(&container, "limits.memory", "0").unwrap(), "1073741824");
        assert_eq!(limit(&json!({}), "limits.cpu", "0").unwrap(), "2");
    }

    #[test]
    fn fields_of_the_pod_are_found() {
        let pod = json!({ "metadata": { "name": "a", "labels": { "x/y": "z" } }, "status": { "podIP": "10.0.0.1" } });
        assert_eq!(field(&pod, "metadata.labels['x/y']").unwrap(), "z");
        assert_eq!(field(&pod, "metadata.labels").unwrap(), "x/y=\"z\"");
        assert_eq!(field(&pod, "status.podIP").unwrap(), "10.0.0.1");
        assert!(field(&pod, "spec.nothing").is_err());
    }
}
