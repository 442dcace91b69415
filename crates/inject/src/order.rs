//! The order of containers.

use crate::{CORE_DUMP, INIT, PROXY, VALIDATION, pod};
use serde_json::Value;

/// Where a container belongs.
#[derive(Clone, Copy)]
enum Place {
    First,
    Last,
}

/// Puts our containers where they belong: traffic capture before a native sidecar, which is before the user's init
/// containers; without one, capture after them, since nobody would answer what it captures; and the proxy after the
/// application, so that `kubectl exec` finds that, unless it has to start first.
pub(crate) fn order(pod: &mut Value, hold_application: bool) {
    let place = if hold_application { Place::First } else { Place::Last };
    put(pod, "containers", PROXY, place);
    let moves: &[(&str, Place)] = if pod::find(pod, "initContainers", PROXY).is_some() {
        &[(CORE_DUMP, Place::First), (PROXY, Place::First), (VALIDATION, Place::First), (INIT, Place::First)]
    } else {
        &[(VALIDATION, Place::First), (INIT, Place::Last), (CORE_DUMP, Place::Last)]
    };
    for (name, place) in moves {
        put(pod, "initContainers", name, *place);
    }
}

fn put(pod: &mut Value, list: &str, name: &str, place: Place) {
    let Some(container) = pod::take(pod, list, name) else { return };
    let containers = pod::containers_mut(pod, list).expect("a container was taken out of the list");
    match place {
        Place::First => containers.insert(0, container),
        Place::Last => containers.push(container),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(init: &[&str], containers: &[&str], hold: bool) -> (String, String) {
        let list = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        let mut pod = json!({"spec": {"initContainers": list(init), "containers": list(containers)}});
        order(&mut pod, hold);
        let names = |list| pod::containers(&pod, list).iter().map(pod::name).collect::<Vec<_>>().join(" ");
        (names("initContainers"), names("containers"))
    }

    #[test]
    fn capture_and_a_native_sidecar_come_first() {
        let init = ["enable-core-dump", "a", "istio-proxy", "b", "istio-init"];
        let expected = "istio-init istio-proxy enable-core-dump a b";
        assert_eq!(check(&init, &["web"], false).0, expected);
        let init = ["a", "istio-proxy", "istio-validation"];
        assert_eq!(check(&init, &["web"], false).0, "istio-validation istio-proxy a");
    }

    #[test]
    fn without_one_capture_is_last_and_its_check_first() {
        let init = ["istio-init", "enable-core-dump", "a", "istio-validation"];
        let expected = "istio-validation a istio-init enable-core-dump";
        assert_eq!(check(&init, &["web", "istio-proxy"], false).0, expected);
    }

    #[test]
    fn the_proxy_is_last_unless_the_application_waits_for_it() {
        assert_eq!(check(&[], &["istio-proxy", "web"], false).1, "web istio-proxy");
        assert_eq!(check(&[], &["web", "istio-proxy"], true).1, "istio-proxy web");
    }
}
