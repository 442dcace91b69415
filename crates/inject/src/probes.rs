//! Probes and hooks of the application, which go through the agent: the kubelet has no certificate of the mesh, and with
//! strict mutual TLS nobody else may connect.

use crate::{PROXY, pod};
use serde_json::{Map, Value, json};

const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";
/// What is asked, in the order of preference; `exec` stays as it is.
const NETWORK: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// Sends the network probes of all containers to the agent's `status_port`, and tells it what to ask. Those that an
/// earlier injection has sent there stay as they are, and what the agent was told about them, too.
pub(crate) fn rewrite(pod: &mut Value, status_port: u16) {
    let Some(proxy) = pod::find_anywhere(pod, PROXY) else { return };
    let mut known: Map<String, Value> =
        pod::variable(proxy, VARIABLE).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
    let mut found = Map::new();
    for list in pod::LISTS {
        for container in pod::containers_mut(pod, list).into_iter().flatten() {
            if pod::name(container) != PROXY {
                container_probes(container, status_port, &mut found);
            }
        }
    }
    if found.is_empty() && known.is_empty() {
        return;
    }
    known.extend(found);
    let told = Value::Object(known).to_string();
    if let Some(proxy) = pod::find_anywhere_mut(pod, PROXY) {
        pod::set_variable(proxy, VARIABLE, &told);
    }
}

/// Returns where the probes and hooks of a container are, and the paths of the agent that stand for them.
fn places(container: &str) -> [(Option<&'static str>, &'static str, String); 5] {
    [
        (None, "livenessProbe", format!("/app-health/{container}/livez")),
        (None, "readinessProbe", format!("/app-health/{container}/readyz")),
        (None, "startupProbe", format!("/app-health/{container}/startupz")),
        (Some("lifecycle"), "preStop", format!("/app-lifecycle/{container}/prestopz")),
        (Some("lifecycle"), "postStart", format!("/app-lifecycle/{container}/poststartz")),
    ]
}

fn holder<'a>(container: &'a mut Value, parent: Option<&str>) -> Option<&'a mut Value> {
    match parent {
        Some(parent) => container.get_mut(parent),
        None => Some(container),
    }
}

/// Takes probes away that an earlier injection sent to the agent and that `written` still has as they were.
pub(crate) fn make_room(container: &mut Value, written: &Value) {
    for (parent, field, path) in places(pod::name(written)) {
        let original = parent.map_or(written, |parent| &written[parent]).get(field);
        let Some(Value::Object(fields)) = original.and(holder(container, parent)) else { continue };
        if fields.get(field).is_some_and(|probe| probe["httpGet"]["path"] == path) {
            fields.remove(field);
        }
    }
}

fn container_probes(container: &mut Value, status_port: u16, found: &mut Map<String, Value>) {
    let ports = container.get("ports").cloned().unwrap_or_default();
    for (parent, field, path) in places(pod::name(container)) {
        let holder = holder(container, parent);
        let Some(probe) = holder.and_then(|holder| holder.get_mut(field)) else { continue };
        if let Some(prober) = redirect(probe, &path, status_port, &ports) {
            found.insert(path, prober);
        }
    }
}

/// Sends one probe to the agent and returns what that has to ask. A port whose name the container does not have fails
/// with the kubelet, and is left to it.
fn redirect(probe: &mut Value, path: &str, status_port: u16, ports: &Value) -> Option<Value> {
    let kind = NETWORK.into_iter().find(|kind| probe.get(kind).is_some_and(Value::is_object))?;
    let mut action = probe[kind].clone();
    if action["path"] == path && action["port"] == status_port {
        return None;
    }
    action["port"] = match &action["port"] {
        Value::String(name) => number_of(ports, name)?,
        number => number.clone(),
    };
    let mut prober = json!({ kind: action });
    if let Some(seconds) = probe["timeoutSeconds"].as_i64().filter(|seconds| *seconds != 0) {
        prober["timeoutSeconds"] = seconds.into();
    }
    let redirected = match probe[kind].clone() {
        Value::Object(mut get) if kind == "httpGet" => {
            // The agent is in the pod; another host is for it to ask.
            get.remove("host");
            if get
                .get("scheme")
                .and_then(Value::as_str)
                .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
            {
                get.insert("scheme".to_owned(), "HTTP".into());
            }
            get.insert("path".to_owned(), path.into());
            get.insert("port".to_owned(), status_port.into());
            Value::Object(get)
        }
        _ => json!({ "path": path, "port": status_port }),
    };
    let fields = pod::object(probe);
    fields.remove(kind);
    fields.insert("httpGet".to_owned(), redirected);
    Some(prober)
}

fn number_of(ports: &Value, name: &str) -> Option<Value> {
    if let Ok(number) = name.parse::<u16>() {
        return Some(number.into());
    }
    let port = ports.as_array()?.iter().find(|port| port["name"] == name)?;
    Some(port["containerPort"].clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({"spec": {
            "containers": [
                {
                    "name": "web",
                    "ports": [{"name": "http", "containerPort": 80}],
                    "livenessProbe": {"httpGet": {"port": "http", "scheme": "HTTPS", "host": "other"}, "timeoutSeconds": 3},
                    "readinessProbe": {"grpc": {"port": 90, "service": "s"}, "periodSeconds": 7},
                    "startupProbe": {"exec": {"command": ["true"]}},
                    "lifecycle": {"postStart": {"tcpSocket": {"port": 91}}, "preStop": {"httpGet": {"port": "admin"}}},
                },
                {"name": "istio-proxy", "readinessProbe": {"httpGet": {"port": 15021}}},
            ],
        }})
    }

    #[test]
    fn probes_go_to_the_agent_which_knows_what_to_ask() {
        let mut pod = pod();
        rewrite(&mut pod, 15020);
        let web = &pod["spec"]["containers"][0];
        let live = json!({"httpGet": {"path": "/app-health/web/livez", "port": 15020, "scheme": "HTTP"}, "timeoutSeconds": 3});
        assert_eq!(web["livenessProbe"], live);
        let ready = json!({"httpGet": {"path": "/app-health/web/readyz", "port": 15020}, "periodSeconds": 7});
        assert_eq!(web["readinessProbe"], ready);
        assert_eq!(web["startupProbe"], json!({"exec": {"command": ["true"]}}));
        assert_eq!(web["lifecycle"]["preStop"], json!({"httpGet": {"port": "admin"}}), "an unknown name");
        let proxy = &pod["spec"]["containers"][1];
        assert_eq!(proxy["readinessProbe"], json!({"httpGet": {"port": 15021}}));
        let told: Value = serde_json::from_str(pod::variable(proxy, VARIABLE).unwrap()).unwrap();
        let expected = json!({
            "/app-health/web/livez": {"httpGet": {"port": 80, "scheme": "HTTPS", "host": "other"}, "timeoutSeconds": 3},
            "/app-health/web/readyz": {"grpc": {"port": 90, "service": "s"}},
            "/app-lifecycle/web/poststartz": {"tcpSocket": {"port": 91}},
        });
        assert_eq!(told, expected);
    }

    #[test]
    fn a_second_time_changes_nothing() {
        let mut pod = pod();
        rewrite(&mut pod, 15020);
        let once = pod.clone();
        rewrite(&mut pod, 15020);
        assert_eq!(pod, once);
    }

    #[test]
    fn without_a_proxy_nobody_would_answer() {
        let mut pod = pod();
        pod["spec"]["containers"].as_array_mut().unwrap().pop();
        let before = pod.clone();
        rewrite(&mut pod, 15020);
        assert_eq!(pod, before);
    }
}
