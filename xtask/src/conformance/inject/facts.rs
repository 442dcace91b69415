//! Comparing a pod with the facts that must hold of it.

use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Variables that must be equal, besides those whose names begin with `ISTIO_META`.
const VARIABLES: [&str; 3] = ["PROXY_CONFIG", "TRUST_DOMAIN", "CA_ADDR"];
const STATUS: &str = "sidecar.istio.io/status";
const OVERRIDES: &str = "proxy.istio.io/overrides";

/// Returns what differs from the facts.
pub(super) fn compare(facts: &Value, report: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let entries = report.as_array().map_or(&[][..], Vec::as_slice);
    for object in facts["objects"].as_array().into_iter().flatten() {
        let position = |value: &Value| (value["document"].as_u64(), value["item"].as_u64());
        let name = format!("{} {}", text(&object["kind"]), text(&object["name"]));
        let Some(entry) = entries.iter().find(|entry| position(entry) == position(object)) else {
            wrong.push(format!("{name}: is missing"));
            continue;
        };
        let found =
            if object["injected"] == true { injected(object, entry) } else { untouched(object, entry) };
        wrong.extend(found.into_iter().map(|wrong| format!("{name}: {wrong}")));
    }
    wrong
}

fn untouched(object: &Value, entry: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    if entry["injected"] == true {
        wrong.push("must not be injected".to_owned());
    }
    if let Some(warning) = object["warning"].as_str() {
        let notes = entry["notes"].as_array().into_iter().flatten();
        if !notes.into_iter().any(|note| text(note).contains(warning.trim())) {
            wrong.push(format!("does not warn {warning:?}, but says {}", entry["notes"]));
        }
    }
    wrong
}

/// Collects differences by the path of the fact.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn equal(&mut self, path: &str, expected: &Value, found: &Value) {
        let (expected, found) = (normal(expected), normal(found));
        if expected != found {
            self.0.push(format!("{path} is {found}, expected {expected}"));
        }
    }
}

fn injected(facts: &Value, entry: &Value) -> Vec<String> {
    let mut wrong = Differences::default();
    if entry["injected"] != true {
        return vec![format!("must be injected: {}", entry["notes"])];
    }
    let (before, after) = (&entry["before"], &entry["after"]);
    containers(facts, before, after, &mut wrong);
    metadata(facts, before, after, &mut wrong);
    probes(facts, before, after, &mut wrong);
    redirection(facts, after, &mut wrong);
    let proxy = find(after, "istio-proxy");
    if let Some(expected) = facts["proxy"].as_object() {
        match proxy {
            Some(proxy) => of_proxy(expected, proxy, &mut wrong),
            None => wrong.0.push("there is no istio-proxy".to_owned()),
        }
    }
    for init in facts["init"].as_array().into_iter().flatten() {
        let name = text(&init["name"]);
        let container = find(after, name).cloned().unwrap_or_default();
        for field in ["resources", "securityContext"] {
            wrong.equal(&format!("init.{name}.{field}"), &init[field], &container[field]);
        }
    }
    volumes(facts, after, &mut wrong);
    rest(facts, before, after, &mut wrong);
    wrong.0
}

fn containers(facts: &Value, before: &Value, after: &Value, wrong: &mut Differences) {
    for list in ["initContainers", "containers"] {
        let (was, is) = (names(before, list), names(after, list));
        wrong.equal(list, &facts[list], &json!(is));
        let added: Vec<&String> = is.iter().filter(|name| !was.contains(name)).collect();
        wrong.equal(&format!("added.{list}"), &facts["added"][list], &json!(added));
    }
    let native = names(after, "initContainers").contains(&"istio-proxy".to_owned());
    let has_proxy = native || names(after, "containers").contains(&"istio-proxy".to_owned());
    let found = if has_proxy && facts["proxy"].is_object() { json!(native) } else { Value::Null };
    wrong.equal("nativeSidecar", &facts["nativeSidecar"], &found);
    for container in facts["addedContainers"].as_array().into_iter().flatten() {
        if find(after, text(&container["name"])).is_none() {
            wrong.0.push(format!("addedContainers: {} is missing", container["name"]));
        }
    }
}

fn metadata(facts: &Value, before: &Value, after: &Value, wrong: &mut Differences) {
    if facts["status"].is_null() {
        // The facts say nothing about metadata: Istio writes that of a CronJob elsewhere.
        return;
    }
    let status: Value = annotation(after, STATUS);
    for key in ["initContainers", "containers", "volumes", "imagePullSecrets", "revision"] {
        if status.get(key).is_none() {
            wrong.0.push(format!("status lacks {key}"));
        }
    }
    wrong.equal("status.revision", &facts["status"]["revision"], &status["revision"]);
    wrong.equal("overrides", &facts["overrides"], &annotation(after, OVERRIDES));
    for part in ["labels", "annotations"] {
        let (was, is) = (strings(before, part), strings(after, part));
        let ours = |name: &str| part == "annotations" && [STATUS, OVERRIDES].contains(&name);
        let added: BTreeMap<_, _> =
            is.iter().filter(|(name, _)| !was.contains_key(*name) && !ours(name)).collect();
        let changed: BTreeMap<_, _> = is
            .iter()
            .filter_map(|(name, to)| {
                let from = was.get(name).filter(|from| *from != to && !ours(name))?;
                Some((name, json!({ "from": from, "to": to })))
            })
            .collect();
        let removed: BTreeSet<_> = was.keys().filter(|name| !is.contains_key(*name)).collect();
        for (kind, found) in
            [("added", json!(added)), ("changed", json!(changed)), ("removed", json!(removed))]
        {
            wrong.equal(&format!("{part}.{kind}"), &facts[part][kind], &found);
        }
    }
}

fn probes(facts: &Value, before: &Value, after: &Value, wrong: &mut Differences) {
    for probe in facts["probes"].as_array().into_iter().flatten() {
        let (container, field) = (text(&probe["container"]), text(&probe["probe"]));
        let of = |pod: &Value| {
            let mut value = find(pod, container).cloned().unwrap_or_default();
            for step in field.split('.') {
                value = value[step].clone();
            }
            value
        };
        let path = format!("{container}.{field}");
        if probe["unchanged"] == true {
            wrong.equal(&path, &of(before), &of(after));
        } else {
            wrong.equal(&path, &probe["to"], &of(after));
        }
    }
    if !facts["appProbers"].is_null() {
        let told = find(after, "istio-proxy").map(|proxy| variable(proxy, "ISTIO_KUBE_APP_PROBERS"));
        let told = told.as_ref().and_then(Value::as_str).and_then(|json| serde_json::from_str(json).ok());
        wrong.equal("appProbers", &facts["appProbers"], &told.unwrap_or_default());
    }
}

fn redirection(facts: &Value, after: &Value, wrong: &mut Differences) {
    let expected = &facts["redirection"];
    let container = ["istio-init", "istio-validation"].into_iter().find_map(|name| find(after, name));
    let (Some(_), Some(container)) = (expected.as_object(), container) else {
        wrong.equal("redirection", &json!(expected.is_object()), &json!(container.is_some()));
        return;
    };
    let arguments: Vec<&str> = container["args"].as_array().into_iter().flatten().map(text).collect();
    let flag = |name: &str| {
        let value = arguments.iter().position(|argument| *argument == name).map(|at| arguments[at + 1]);
        value.map_or(Value::Null, Value::from)
    };
    let has = |name: &str| json!(arguments.contains(&name));
    let applies = !arguments.contains(&"--skip-rule-apply");
    let known = [
        ("container", container["name"].clone()),
        ("outboundPort", flag("-p")),
        ("inboundPort", flag("-z")),
        ("proxyUid", flag("-u")),
        ("mode", flag("-m")),
        ("includeOutboundCidrs", flag("-i")),
        ("excludeOutboundCidrs", flag("-x")),
        ("includeInboundPorts", flag("-b")),
        ("excludeInboundPorts", flag("-d")),
        ("includeOutboundPorts", flag("-q")),
        ("excludeOutboundPorts", flag("-o")),
        ("virtualInterfaces", flag("-k")),
        ("excludeInterfaces", flag("-c")),
        ("validates", has("--run-validation")),
        ("applies", json!(applies)),
    ];
    for key in expected.as_object().into_iter().flat_map(Map::keys) {
        if !known.iter().any(|(name, _)| name == key) {
            wrong.0.push(format!("redirection.{key} is not compared"));
        }
    }
    for (name, found) in known {
        // Lists are sets.
        let set = |value: &Value| match value.as_str() {
            Some(list) if list.contains(',') => {
                json!(list.split(',').map(str::trim).collect::<BTreeSet<_>>())
            }
            _ => value.clone(),
        };
        wrong.equal(&format!("redirection.{name}"), &set(&expected[name]), &set(&found));
    }
}

fn of_proxy(expected: &Map<String, Value>, proxy: &Value, wrong: &mut Differences) {
    let fact = |name: &str| expected.get(name).cloned().unwrap_or_default();
    for field in [
        "resources",
        "securityContext",
        "restartPolicy",
        "ports",
        "readinessProbe",
        "startupProbe",
        "livenessProbe",
    ] {
        wrong.equal(&format!("proxy.{field}"), &fact(field), &proxy[field]);
    }
    for hook in ["preStop", "postStart"] {
        wrong.equal(
            &format!("proxy.lifecycle.{hook} (port)"),
            &hook_port(&fact("lifecycle")[hook]),
            &hook_port(&proxy["lifecycle"][hook]),
        );
    }
    environment(&fact("env"), &fact("userSet")["env"], proxy, wrong);
    for (field, value) in fact("other").as_object().into_iter().flatten() {
        wrong.equal(&format!("proxy.{field}"), value, &proxy[field]);
    }
    for (field, value) in fact("userSet").as_object().into_iter().flatten() {
        if ["args", "command", "image"].contains(&field.as_str()) {
            wrong.equal(&format!("proxy.{field}"), value, &proxy[field]);
        }
    }
}

fn environment(expected: &Value, of_user: &Value, proxy: &Value, wrong: &mut Differences) {
    let must = |name: &str| name.starts_with("ISTIO_META") || VARIABLES.contains(&name);
    for (name, value) in expected.as_object().into_iter().flatten() {
        let of_user = of_user.as_array().into_iter().flatten().any(|variable| variable["name"] == *name);
        if !must(name) && !of_user {
            continue;
        }
        let found = variable(proxy, name);
        // JSON in a variable is given parsed.
        let found = match (&found, value) {
            (Value::String(json), Value::Array(_) | Value::Object(_)) => {
                serde_json::from_str(json).unwrap_or(found)
            }
            _ => found,
        };
        wrong.equal(&format!("proxy.env.{name}"), value, &found);
    }
    let names = proxy["env"].as_array().into_iter().flatten().map(|variable| text(&variable["name"]));
    for name in names.filter(|name| must(name) && expected.get(name).is_none()) {
        wrong.0.push(format!("proxy.env.{name} is not expected"));
    }
}

/// Commands differ; the port in them is that of the same server.
fn hook_port(hook: &Value) -> Value {
    let words = hook["exec"]["command"].as_array().into_iter().flatten().map(text);
    let number = |word: &str| {
        let tail = word.rsplit_once(['=', ':']).map(|(_, tail)| tail)?;
        let digits: String = tail.chars().take_while(char::is_ascii_digit).collect();
        (!digits.is_empty()).then_some(digits)
    };
    if hook.is_null() { Value::Null } else { json!(words.filter_map(number).collect::<Vec<_>>()) }
}

fn volumes(facts: &Value, after: &Value, wrong: &mut Differences) {
    const OURS: [&str; 9] = [
        "workload-socket",
        "credential-socket",
        "workload-certs",
        "istio-envoy",
        "istio-data",
        "istio-podinfo",
        "istio-ca-crl",
        "istio-xds",
        "custom-bootstrap-volume",
    ];
    let all = after["spec"]["volumes"].as_array().map_or(&[][..], Vec::as_slice);
    for (name, expected) in facts["volumes"].as_object().into_iter().flatten() {
        let Some(volume) = all.iter().find(|volume| volume["name"] == *name) else {
            wrong.0.push(format!("volumes.{name} is missing"));
            continue;
        };
        let mut source = volume.clone();
        source.as_object_mut().map(|volume| volume.remove("name"));
        if !OURS.contains(&name.as_str()) {
            wrong.equal(&format!("volumes.{name}"), expected, &source);
        }
    }
    for mount in facts["proxy"]["userSet"]["volumeMounts"].as_array().into_iter().flatten() {
        let proxy = find(after, "istio-proxy").cloned().unwrap_or_default();
        if !proxy["volumeMounts"].as_array().is_some_and(|mounts| mounts.contains(mount)) {
            wrong.0.push(format!("proxy.volumeMounts lacks {mount}"));
        }
    }
}

fn rest(facts: &Value, before: &Value, after: &Value, wrong: &mut Differences) {
    for (field, value) in facts["podSpec"].as_object().into_iter().flatten() {
        wrong.equal(&format!("podSpec.{field}"), value, &after["spec"][field]);
    }
    const COMPARED: [&str; 3] = ["containers", "initContainers", "volumes"];
    for field in after["spec"].as_object().into_iter().flat_map(Map::keys) {
        let changed = after["spec"][field] != before["spec"][field];
        if changed && !COMPARED.contains(&field.as_str()) && facts["podSpec"].get(field).is_none() {
            wrong.0.push(format!("podSpec.{field} is not expected to change: {}", after["spec"][field]));
        }
    }
    for list in ["containers", "initContainers"] {
        for container in before["spec"][list].as_array().into_iter().flatten() {
            let name = text(&container["name"]);
            if name != "istio-proxy" && !["istio-init", "istio-validation"].contains(&name) {
                of_application(facts, name, container, find(after, name), wrong);
            }
        }
    }
}

/// What templates change about a container of the user's, and nothing else.
fn of_application(facts: &Value, name: &str, before: &Value, after: Option<&Value>, wrong: &mut Differences) {
    const REWRITTEN: [&str; 4] = ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"];
    let Some(after) = after else {
        wrong.0.push(format!("{name} is gone"));
        return;
    };
    let expected = &facts["otherChanges"][name];
    for (variable_name, value) in expected["envAdded"].as_object().into_iter().flatten() {
        wrong.equal(&format!("{name}.env.{variable_name}"), value, &variable(after, variable_name));
    }
    for mount in expected["volumeMountsAdded"].as_array().into_iter().flatten() {
        let mounts = after["volumeMounts"].as_array();
        if !mounts.is_some_and(|mounts| mounts.iter().any(|found| normal(found) == normal(mount))) {
            wrong.0.push(format!("{name}.volumeMounts lacks {mount}"));
        }
    }
    for (field, change) in expected.as_object().into_iter().flatten() {
        if !["envAdded", "volumeMountsAdded"].contains(&field.as_str()) {
            wrong.0.push(format!("otherChanges.{name}.{field} is not compared: {change}"));
        }
    }
    for field in after.as_object().into_iter().flat_map(Map::keys) {
        let may_change = REWRITTEN.contains(&field.as_str())
            || field == "env" && expected.get("envAdded").is_some()
            || field == "volumeMounts" && expected.get("volumeMountsAdded").is_some();
        if !may_change {
            wrong.equal(&format!("{name}.{field}"), &before[field], &after[field]);
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let containers = pod["spec"][list].as_array().into_iter().flatten();
    containers.map(|container| text(&container["name"]).to_owned()).collect()
}

fn find<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    let lists = ["containers", "initContainers"].into_iter().filter_map(|list| pod["spec"][list].as_array());
    lists.flatten().find(|container| container["name"] == name)
}

fn strings(pod: &Value, part: &str) -> BTreeMap<String, String> {
    let entries = pod["metadata"][part].as_object().into_iter().flatten();
    entries.map(|(key, value)| (key.clone(), text(value).to_owned())).collect()
}

fn annotation(pod: &Value, name: &str) -> Value {
    serde_json::from_str(text(&pod["metadata"]["annotations"][name])).unwrap_or_default()
}

/// Returns a variable's value, or what it refers to.
fn variable(container: &Value, name: &str) -> Value {
    let variables = container["env"].as_array().into_iter().flatten();
    let Some(variable) = variables.into_iter().find(|variable| variable["name"] == name) else {
        return Value::Null;
    };
    let source = &variable["valueFrom"];
    if let Some(path) = source["fieldRef"]["fieldPath"].as_str() {
        return json!(format!("field:{path}"));
    }
    if let Some(resource) = source["resourceFieldRef"]["resource"].as_str() {
        return json!(format!("resource:{resource}"));
    }
    variable["value"].clone()
}

/// Writes a value in one way: nothing for `null` and empty parts, quantities and numbers as numbers.
fn normal(value: &Value) -> Value {
    match value {
        Value::Array(values) if values.is_empty() => Value::Null,
        Value::Array(values) => values.iter().map(normal).collect(),
        Value::Object(fields) => {
            let fields: Map<String, Value> = fields
                .iter()
                .map(|(key, value)| (key.clone(), normal(value)))
                .filter(|(_, value)| !value.is_null())
                .collect();
            if fields.is_empty() { Value::Null } else { Value::Object(fields) }
        }
        Value::String(text) => quantity(text).map_or_else(|| value.clone(), Value::from),
        Value::Number(number) => number.as_f64().map_or_else(|| value.clone(), Value::from),
        _ => value.clone(),
    }
}

/// Reads a quantity such as `100m` or `1Gi`.
fn quantity(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (amount, unit) = text.split_at(end);
    let factor = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        _ => return None,
    };
    Some(amount.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(after: &Value) -> Value {
        let before = json!({"metadata": {}, "spec": {"containers": [{"name": "web"}]}});
        json!([{"document": 0, "injected": true, "before": before, "after": after, "notes": []}])
    }

    fn facts() -> Value {
        json!({"objects": [{
            "document": 0, "injected": true, "containers": ["web"], "initContainers": ["istio-proxy"],
            "added": {"containers": [], "initContainers": ["istio-proxy"]}, "nativeSidecar": true,
            "status": {"revision": "default"}, "labels": {"added": {"a": "1"}},
            "proxy": {"resources": {"limits": {"cpu": "2"}}, "env": {"PROXY_CONFIG": {}}},
        }]})
    }

    fn pod(cpu: &str, label: &str) -> Value {
        let status = r#"{"initContainers":null,"containers":null,"volumes":null,"imagePullSecrets":null,"revision":"default"}"#;
        let proxy = json!({
            "name": "istio-proxy", "resources": {"limits": {"cpu": cpu}},
            "env": [{"name": "PROXY_CONFIG", "value": "{}"}],
        });
        json!({
            "metadata": {"labels": {"a": label}, "annotations": {STATUS: status}},
            "spec": {"containers": [{"name": "web"}], "initContainers": [proxy]},
        })
    }

    #[test]
    fn equal_pods_have_no_differences() {
        assert_eq!(compare(&facts(), &entry(&pod("2000m", "1"))), Vec::<String>::new());
    }

    #[test]
    fn every_difference_is_named() {
        let wrong = compare(&facts(), &entry(&pod("1", "2")));
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].contains("labels.added is"), "{wrong:?}");
        assert!(wrong[1].contains("proxy.resources is"), "{wrong:?}");
        let mut changed = pod("2", "1");
        changed["spec"]["containers"][0]["image"] = json!("other");
        changed["spec"]["hostNetwork"] = json!(true);
        let wrong = compare(&facts(), &entry(&changed));
        assert_eq!(wrong.len(), 2, "{wrong:?}");
    }
}
