//! Which workload a pod belongs to.

use crate::pod;
use serde_json::Value;

/// What made a pod, such as a Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The API version, such as `apps/v1`.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// The name.
    pub name: String,
}

impl Workload {
    /// Finds the workload of a pod by its controller. What is between them, such as a Deployment's ReplicaSet, is told by
    /// its name and by labels of the pod.
    pub fn of_pod(pod: &Value) -> Self {
        let mut workload = controller(pod).unwrap_or_else(|| Self {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: String::new(),
        });
        if workload.name.is_empty() {
            workload.name = pod_name(pod);
        }
        if let Some(name) = pod::label(pod, "service.istio.io/workload-name").filter(|name| !name.is_empty())
        {
            name.clone_into(&mut workload.name);
        }
        workload
    }

    /// Returns the workload as telemetry names it.
    pub(crate) fn owner(&self, namespace: &str) -> String {
        let (version, kind, name) = (&self.api_version, self.kind.to_lowercase(), &self.name);
        format!("kubernetes://apis/{version}/namespaces/{namespace}/{kind}s/{name}")
    }
}

fn pod_name(pod: &Value) -> String {
    let name = pod["metadata"]["name"].as_str().filter(|name| !name.is_empty());
    let generated = || pod["metadata"]["generateName"].as_str().unwrap_or_default().trim_end_matches('-');
    name.unwrap_or_else(generated).to_owned()
}

fn controller(pod: &Value) -> Option<Workload> {
    let owners = pod["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true)?;
    let text = |field: &str| owner[field].as_str().unwrap_or_default().to_owned();
    let direct = Workload { api_version: text("apiVersion"), kind: text("kind"), name: text("name") };
    let of = |api_version: &str, kind: &str, name: &str| Workload {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    let without_hash = |label: &str| {
        let hash = pod::label(pod, label).filter(|hash| !hash.is_empty())?;
        direct.name.strip_suffix(hash)?.strip_suffix('-')
    };
    let above = match direct.kind.as_str() {
        "ReplicaSet" => without_hash("pod-template-hash")
            .map(|name| of(&direct.api_version, "Deployment", name))
            .or_else(|| {
                let name = without_hash("rollouts-pod-template-hash")?;
                Some(of("argoproj.io/v1alpha1", "Rollout", name))
            }),
        "ReplicationController" => pod::label(pod, "deploymentconfig")
            .filter(|name| !name.is_empty())
            .map(|name| of("apps.openshift.io/v1", "DeploymentConfig", name)),
        "Job" => without_schedule(&direct.name).map(|name| of("batch/v1", "CronJob", name)),
        _ => None,
    };
    Some(above.unwrap_or(direct))
}

/// A CronJob names its jobs by the minute that they were due in.
fn without_schedule(job: &str) -> Option<&str> {
    let (name, minute) = job.rsplit_once('-')?;
    let is_minute = (8..=10).contains(&minute.len()) && minute.bytes().all(|byte| byte.is_ascii_digit());
    is_minute.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(kind: &str, name: &str, labels: &Value) -> String {
        let owner = json!({"apiVersion": "x/v1", "kind": kind, "name": name, "controller": true});
        let other = json!({"apiVersion": "y/v1", "kind": "Other", "name": "other"});
        let metadata = json!({"name": "p", "labels": labels, "ownerReferences": [other, owner]});
        Workload::of_pod(&json!({ "metadata": metadata })).owner("ns")
    }

    #[test]
    fn workloads_are_found_behind_what_they_make() {
        for (kind, name, labels, expected) in [
            (
                "ReplicaSet",
                "web-5f",
                json!({"pod-template-hash": "5f"}),
                "x/v1/namespaces/ns/deployments/web",
            ),
            (
                "ReplicaSet",
                "web-5f",
                json!({"pod-template-hash": "6f"}),
                "x/v1/namespaces/ns/replicasets/web-5f",
            ),
            ("ReplicaSet", "web-5f", json!({}), "x/v1/namespaces/ns/replicasets/web-5f"),
            (
                "ReplicaSet",
                "web-5f",
                json!({"rollouts-pod-template-hash": "5f"}),
                "argoproj.io/v1alpha1/namespaces/ns/rollouts/web",
            ),
            (
                "ReplicationController",
                "web-1",
                json!({"deploymentconfig": "web"}),
                "apps.openshift.io/v1/namespaces/ns/deploymentconfigs/web",
            ),
            ("Job", "backup-28000000", json!({}), "batch/v1/namespaces/ns/cronjobs/backup"),
            ("Job", "backup-1", json!({}), "x/v1/namespaces/ns/jobs/backup-1"),
            ("StatefulSet", "db", json!({}), "x/v1/namespaces/ns/statefulsets/db"),
            (
                "StatefulSet",
                "db",
                json!({"service.istio.io/workload-name": "mine"}),
                "x/v1/namespaces/ns/statefulsets/mine",
            ),
        ] {
            assert_eq!(check(kind, name, &labels), format!("kubernetes://apis/{expected}"), "{kind} {name}");
        }
    }

    #[test]
    fn a_pod_by_itself_is_its_own_workload() {
        let alone = Workload::of_pod(&json!({"metadata": {"name": "p"}}));
        assert_eq!(alone.owner("ns"), "kubernetes://apis/v1/namespaces/ns/pods/p");
        let generated = Workload::of_pod(&json!({"metadata": {"generateName": "p-"}}));
        assert_eq!(generated.name, "p");
    }
}
