//! Where the application's own metrics are: its `prometheus.io` annotations, which the injector moved into
//! `ISTIO_PROMETHEUS_ANNOTATIONS` when it put the agent's port in their place.

use super::{ConfigError, Environment};
use serde::Deserialize;

const VARIABLE: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";

/// Where an application has metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrapeTarget {
    /// The port, on the loopback interface.
    pub port: u16,
    /// The path.
    pub path: String,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Annotations {
    scrape: String,
    path: String,
    port: String,
}

/// Reads the variable; `None` if the application has no metrics.
pub(super) fn parse(
    environment: &Environment,
    status_port: u16,
) -> Result<Option<ScrapeTarget>, ConfigError> {
    let Some(json) = environment.text(VARIABLE) else { return Ok(None) };
    let invalid = |reason: String| ConfigError::variable(VARIABLE, reason);
    let annotations: Annotations = serde_json::from_str(json).map_err(|error| invalid(error.to_string()))?;
    if annotations.scrape == "false" {
        return Ok(None);
    }
    let port = match annotations.port.as_str() {
        "" => 80,
        text => text.parse().map_err(|_| invalid(format!("{text:?} is not a port")))?,
    };
    if port == status_port {
        return Err(invalid(format!("port {port} is the agent's own: a scrape would never end")));
    }
    let path = match annotations.path.as_str() {
        "" => "/metrics".to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    Ok(Some(ScrapeTarget { port, path }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<Option<(u16, String)>, String> {
        let environment = Environment::from_iter([(VARIABLE, json)]);
        match parse(&environment, 15020) {
            Ok(target) => Ok(target.map(|target| (target.port, target.path))),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn annotations_have_the_defaults_of_prometheus() {
        assert_eq!(check(r#"{"scrape":"true"}"#), Ok(Some((80, "/metrics".to_owned()))));
        assert_eq!(
            check(r#"{"scrape":"true","path":"stats","port":"9090"}"#),
            Ok(Some((9090, "/stats".to_owned())))
        );
        assert_eq!(check(r#"{"scrape":"false","port":"9090"}"#), Ok(None));
        assert_eq!(check(""), Ok(None));
    }

    #[test]
    fn an_endless_loop_is_refused() {
        assert!(check(r#"{"port":"15020"}"#).unwrap_err().contains("is the agent's own"));
        assert!(check(r#"{"port":"http"}"#).unwrap_err().contains("not a port"));
        assert!(check("[").unwrap_err().starts_with("ISTIO_PROMETHEUS_ANNOTATIONS: "));
    }
}
