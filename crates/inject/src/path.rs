//! Settings in the path of the webhook: `/inject/cluster/remote1/net/network2`, for the webhooks of other clusters.

use std::collections::BTreeMap;

/// Returns the environment that a path asks for. `cluster` and `net` have names of their own; other keys are names of
/// variables in lower case. `--slash--` in a value stands for a slash.
pub fn environment_of_path(path: &str) -> BTreeMap<String, String> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').skip(1).collect();
    let pairs = parts.chunks_exact(2).filter(|pair| !pair[0].is_empty());
    let variable = |pair: &[&str]| {
        let name = match pair[0] {
            "cluster" => "ISTIO_META_CLUSTER_ID".to_owned(),
            "net" => "ISTIO_META_NETWORK".to_owned(),
            other => other.to_uppercase(),
        };
        (name, pair[1].replace("--slash--", "/"))
    };
    pairs.map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expected: &[(&str, &str)]) {
        let expected = expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        assert_eq!(environment_of_path(path), expected.collect(), "{path}");
    }

    #[test]
    fn pairs_become_variables() {
        check("/inject", &[]);
        check("/inject/", &[]);
        check(
            "/inject/cluster/remote1/net/network2",
            &[("ISTIO_META_CLUSTER_ID", "remote1"), ("ISTIO_META_NETWORK", "network2")],
        );
        check("/inject/ca_addr/ca.example--slash--x/", &[("CA_ADDR", "ca.example/x")]);
    }

    #[test]
    fn a_key_without_a_value_is_left_out() {
        check("/inject/cluster/c1/net", &[("ISTIO_META_CLUSTER_ID", "c1")]);
    }
}
