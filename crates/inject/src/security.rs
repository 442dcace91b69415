//! Whom the proxy runs as, where that is not ours to choose.

use crate::error::InjectError;
use crate::reinject::Overrides;
use crate::{INIT, PROXY, VALIDATION, pod};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A user and a group, where the platform gives each namespace its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) user: Option<i64>,
    pub(crate) group: Option<i64>,
}

const USERS: &str = "openshift.io/sa.scc.uid-range";
const GROUPS: &str = "openshift.io/sa.scc.supplemental-groups";

impl Ids {
    /// Returns the last ids of an OpenShift namespace's ranges: applications get the first.
    pub(crate) fn of_namespace(annotations: &BTreeMap<String, String>) -> Result<Self, InjectError> {
        let last = |name: &str| {
            let Some(text) = annotations.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
            // Further ranges are alternatives.
            let range = text.split(',').next().unwrap_or_default();
            let invalid = || InjectError::annotation(name, format!("{text:?} is no range of ids"));
            last_of(range).ok_or_else(invalid).map(Some)
        };
        let user = last(USERS)?;
        let group = last(GROUPS)?.or(user);
        Ok(Self { user, group })
    }
}

/// Reads `start/size` or `start-end`.
fn last_of(range: &str) -> Option<i64> {
    if let Some((start, size)) = range.split_once('/') {
        let (start, size): (u32, u32) = (start.trim().parse().ok()?, size.trim().parse().ok()?);
        return Some(i64::from(start) + i64::from(size.checked_sub(1)?));
    }
    let (start, end) = range.split_once('-')?;
    let (start, end): (u32, u32) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
    (start <= end).then_some(i64::from(end))
}

/// OpenShift gives all containers of a pod one user before we see them. As the application's user the proxy would capture
/// its own traffic, so an id that is also the application's is not taken for its author's will.
pub(crate) fn forget_assigned_user(pod: &mut Value) {
    let user = |container: &Value| container["securityContext"]["runAsUser"].as_i64();
    let others = pod::containers(pod, "containers").iter().filter(|container| pod::name(container) != PROXY);
    let of_application: Vec<Option<i64>> = others.map(user).collect();
    let Some(proxy) = pod::find_anywhere_mut(pod, PROXY) else { return };
    let of_proxy = user(proxy);
    if of_proxy.is_some()
        && of_application.contains(&of_proxy)
        && let Some(security) = proxy.get_mut("securityContext").and_then(Value::as_object_mut)
    {
        security.remove("runAsUser");
        security.remove("runAsGroup");
    }
}

/// Lets traffic capture follow the user that somebody chose for the proxy: it is known by that, and would otherwise be
/// captured itself.
pub(crate) fn follow_the_user(merged: &mut Value, pod: &Value, kept: &Overrides, is_tproxy: bool) {
    let Some(written) = kept.proxy().or_else(|| pod::find_anywhere(pod, PROXY)) else { return };
    let security = &written["securityContext"];
    let (user, group) = (security["runAsUser"].as_i64(), security["runAsGroup"].as_i64());
    if user.is_none() && group.is_none() {
        return;
    }
    if is_tproxy && user.is_some() {
        // Only root can answer with the client's address.
        if let Some(proxy) = pod::find_anywhere_mut(merged, PROXY) {
            pod::object(&mut proxy["securityContext"]).insert("runAsUser".to_owned(), json!(0));
        }
    }
    for name in [INIT, VALIDATION] {
        let Some(container) = pod::containers_mut(merged, "initContainers")
            .and_then(|containers| containers.iter_mut().find(|container| pod::name(container) == name))
        else {
            continue;
        };
        if name == VALIDATION && !is_tproxy {
            let security = pod::object(&mut container["securityContext"]);
            for (field, id) in [("runAsUser", user), ("runAsGroup", group)] {
                if let Some(id) = id {
                    security.insert(field.to_owned(), json!(id));
                }
            }
        }
        if let Some(user) = user.filter(|user| *user != 0) {
            set_user_argument(container, user);
        }
    }
}

fn set_user_argument(container: &mut Value, user: i64) {
    let Some(arguments) = container.get_mut("args").and_then(Value::as_array_mut) else { return };
    let value = arguments.iter().position(|argument| argument == "-u").map(|flag| flag + 1);
    if let Some(value) = value.and_then(|value| arguments.get_mut(value)) {
        *value = Value::String(user.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(users: &str, groups: &str) -> Result<Ids, String> {
        let annotations = [(USERS, users), (GROUPS, groups)];
        let annotations = annotations.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ids::of_namespace(&annotations.into_iter().collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn ranges_are_read_in_both_notations() {
        let both = |user, group| Ok(Ids { user: Some(user), group: Some(group) });
        assert_eq!(ids("1000620000/10000", "1000620000/10000"), both(1_000_629_999, 1_000_629_999));
        assert_eq!(ids("1000-1999", "5-9,20-30"), both(1999, 9));
        assert_eq!(ids("1000-1999", ""), both(1999, 1999));
        assert_eq!(ids("", ""), Ok(Ids::default()));
        for bad in ["x", "1000/0", "9-5", "1000"] {
            assert!(
                ids(bad, "").unwrap_err().starts_with("annotation openshift.io/sa.scc.uid-range: "),
                "{bad}"
            );
        }
    }

    #[test]
    fn an_assigned_user_is_not_somebodys_will() {
        let container = |name: &str, user: i64| json!({"name": name, "securityContext": {"runAsUser": user, "runAsGroup": 1}});
        let mut same = json!({"spec": {"containers": [container("web", 7), container("istio-proxy", 7)]}});
        forget_assigned_user(&mut same);
        assert_eq!(same["spec"]["containers"][1]["securityContext"], json!({}));
        let mut other = json!({"spec": {"containers": [container("web", 7), container("istio-proxy", 8)]}});
        let before = other.clone();
        forget_assigned_user(&mut other);
        assert_eq!(other, before);
    }
}
