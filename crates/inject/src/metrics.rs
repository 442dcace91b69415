//! Annotations for Prometheus: it is sent to the agent, which adds the application's metrics to those of Envoy.

use crate::error::InjectError;
use crate::{PROXY, pod};
use serde_json::{Value, json};

const VARIABLE: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";
const TARGETS: &str = "prometheus.istio.io/scrape-targets";
const KEYS: [&str; 3] = ["prometheus_io_scrape", "prometheus_io_port", "prometheus_io_path"];

/// Moves the pod's annotations for Prometheus to the agent. Returns what has no effect.
pub(crate) fn merge(pod: &mut Value, status_port: u16) -> Result<Vec<String>, InjectError> {
    let annotations = pod::strings(pod, "annotations");
    // Prometheus knows an annotation by what is left when everything else is replaced by underscores.
    let known = |key: &str| {
        let sanitized: String =
            key.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
        KEYS.iter().position(|known| *known == sanitized)
    };
    let value = |wanted: usize| {
        annotations.iter().find(|(key, _)| known(key) == Some(wanted)).map(|(_, value)| value)
    };
    let (scrape, port, path) = (value(0), value(1), value(2));
    if scrape.is_some_and(|scrape| matches!(scrape.as_str(), "false" | "0" | "f" | "F" | "FALSE" | "False")) {
        return Ok(Vec::new());
    }
    let status_port = status_port.to_string();
    if port == Some(&status_port) {
        // An earlier injection was here, or the author knows what to do.
        return Ok(Vec::new());
    }
    let targets = annotations.get(TARGETS).map(|text| parse_targets(text)).transpose()?.unwrap_or_default();
    let first = targets.first();
    let port = port.or(first.map(|(port, _)| port));
    let path = path.or(first.map(|(_, path)| path));
    let mut warnings = Vec::new();
    if scrape.is_some() || port.is_some() || path.is_some() {
        let text = |value: Option<&String>| value.cloned().unwrap_or_default();
        let mut told = json!({ "scrape": text(scrape), "path": text(path), "port": text(port) });
        if !targets.is_empty() {
            let all = targets.iter().map(|(port, path)| json!({ "port": port, "path": path }));
            told["targets"] = all.collect();
        }
        if targets.len() > 1 {
            warnings.push(format!("annotation {TARGETS}: weft-agent scrapes the first target only"));
        }
        if let Some(proxy) = pod::find_anywhere_mut(pod, PROXY) {
            pod::set_variable(proxy, VARIABLE, &told.to_string());
        }
    }
    for key in annotations.keys().filter(|key| known(key).is_some() || *key == TARGETS) {
        pod::remove_annotation(pod, key);
    }
    pod::set(pod, "annotations", "prometheus.io/port", status_port);
    pod::set(pod, "annotations", "prometheus.io/path", "/stats/prometheus");
    pod::set(pod, "annotations", "prometheus.io/scrape", "true");
    Ok(warnings)
}

/// Reads `8080:/metrics,9100:/custom`.
fn parse_targets(text: &str) -> Result<Vec<(String, String)>, InjectError> {
    let parse = |target: &str| {
        let (port, path) = target.trim().split_once(':').unwrap_or((target.trim(), "/metrics"));
        let valid = port.parse::<u16>().is_ok_and(|port| port > 0) && path.starts_with('/');
        let invalid = || InjectError::annotation(TARGETS, format!("{target:?} is not port:/path"));
        valid.then(|| (port.to_owned(), path.to_owned())).ok_or_else(invalid)
    };
    text.split(',').map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(annotations: &Value) -> (Value, Option<Value>) {
        let proxy = json!({"name": "istio-proxy"});
        let mut pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [proxy]}});
        merge(&mut pod, 15020).unwrap();
        let told = pod::variable(&pod["spec"]["containers"][0], VARIABLE);
        let told = told.map(|json| serde_json::from_str(json).unwrap());
        (pod["metadata"]["annotations"].clone(), told)
    }

    fn ours() -> Value {
        json!({"prometheus.io/port": "15020", "prometheus.io/path": "/stats/prometheus", "prometheus.io/scrape": "true"})
    }

    #[test]
    fn the_agent_is_scraped_and_told_what_was_asked_for() {
        assert_eq!(check(&json!({})), (ours(), None));
        let told = json!({"scrape": "true", "port": "8080", "path": "/m"});
        let all =
            json!({"prometheus.io/scrape": "true", "prometheus.io.port": "8080", "prometheus.io/path": "/m"});
        assert_eq!(check(&all), (ours(), Some(told)));
    }

    #[test]
    fn no_scraping_stays_no_scraping() {
        for key in ["prometheus.io/scrape", "prometheus.io.scrape", "prometheus_io_scrape"] {
            let annotations = json!({ key: "false" });
            assert_eq!(check(&annotations), (annotations, None));
        }
    }

    #[test]
    fn a_second_time_changes_nothing() {
        assert_eq!(check(&ours()), (ours(), None));
    }

    #[test]
    fn several_targets_are_read_and_bad_ones_refused() {
        let told = json!({
            "scrape": "", "port": "8080", "path": "/metrics",
            "targets": [{"port": "8080", "path": "/metrics"}, {"port": "9100", "path": "/c"}],
        });
        assert_eq!(check(&json!({TARGETS: "8080:/metrics, 9100:/c"})), (ours(), Some(told)));
        for bad in ["x:/m", "0:/m", "80:m", "80:/m,"] {
            assert!(parse_targets(bad).is_err(), "{bad}");
        }
    }
}
