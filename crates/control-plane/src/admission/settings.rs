//! What pods are injected with and objects are judged by: the chart's values and the mesh configuration of now.

use anyhow::{Context as _, Result};
use controllers::ConfigMapData;
use inject::{NativeSidecars, Settings, Values, overlay};
use k8s_api::mesh_config::MeshConfig;
use k8s_api::yaml::parse_value;
use model::Str;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::{error, info, warn};
use translate::Context;

/// The key of the ConfigMap with the chart's values, as JSON or YAML.
const VALUES: &str = "values";
/// The key next to it that Istio keeps templates in.
const CONFIG: &str = "config";

/// What does not change while weftd runs.
#[derive(Clone, Debug)]
pub(crate) struct Fixed {
    /// The values of a file, which the ConfigMap is merged over.
    pub(crate) values: Value,
    pub(crate) revision: String,
    pub(crate) namespace: String,
    pub(crate) domain: Str,
    pub(crate) cluster: Str,
    pub(crate) native_sidecars: NativeSidecars,
}

/// What is in use.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) injection: Arc<Settings>,
    pub(crate) context: Arc<Context>,
}

/// Reads the values of a file.
///
/// # Errors
///
/// If it cannot be read, or is no YAML.
pub(crate) fn read_values(path: &Path) -> Result<Value> {
    let name = path.display().to_string();
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {name} (--injection-values)"))?;
    Ok(parse_value::<Value>(&text, &name)?.json)
}

/// Keeps `current` up to date; it stays nothing until there is something good. What is bad changes nothing.
pub(crate) async fn follow(
    fixed: Fixed,
    mut values: watch::Receiver<Option<ConfigMapData>>,
    mut mesh: watch::Receiver<Option<Arc<MeshConfig>>>,
    current: watch::Sender<Option<Current>>,
) {
    let mut unknown = BTreeSet::new();
    loop {
        let data = values.borrow_and_update().clone();
        let config = mesh.borrow_and_update().clone();
        if let Some(data) = data {
            match make(&fixed, &data, config.as_deref(), &mut unknown) {
                Ok(made) => {
                    let is_first = current.borrow().is_none();
                    current.send_replace(Some(made));
                    if !is_first {
                        info!("the settings of injection have changed");
                    }
                }
                Err(failure) => {
                    let reason = format!("{failure:#}");
                    let consequence = match current.borrow().is_some() {
                        true => "the last good ones stay in use",
                        false => "webhooks are not served until they are good",
                    };
                    error!(reason, "the settings of injection are not used; {consequence}");
                }
            }
        }
        tokio::select! {
            changed = values.changed() => if changed.is_err() { return std::future::pending().await },
            changed = mesh.changed() => if changed.is_err() { return std::future::pending().await },
        }
    }
}

fn make(
    fixed: &Fixed,
    data: &ConfigMapData,
    mesh: Option<&MeshConfig>,
    unknown: &mut BTreeSet<String>,
) -> Result<Current> {
    let mut written = json!({ "global": {
        "istioNamespace": fixed.namespace,
        "multiCluster": { "clusterName": fixed.cluster.as_ref() },
        "proxy": { "clusterDomain": fixed.domain.as_ref() },
    } });
    let defaults = written.clone();
    if !fixed.values.is_null() {
        overlay(&mut written, fixed.values.clone());
    }
    if let Some(text) = data.get(VALUES) {
        overlay(&mut written, parse_value::<Value>(text, VALUES)?.json);
    }
    for path in ["/global/istioNamespace", "/global/multiCluster/clusterName", "/global/proxy/clusterDomain"]
    {
        // As in Istio's templates, what is empty is not said.
        if let Some(value) = written.pointer_mut(path)
            && (value.is_null() || value == "")
        {
            *value = defaults.pointer(path).cloned().unwrap_or_default();
        }
    }
    let found: BTreeSet<String> = Values::unknown(&written).into_iter().collect();
    for path in found.difference(unknown) {
        warn!(path, "values: has no effect on injection");
    }
    *unknown = found;
    warn_of_templates(data);

    let mesh = mesh.cloned().unwrap_or_default();
    let translated = translate::mesh_config(&fixed.domain, &fixed.cluster, &mesh);
    let context = translated.value.context("the mesh configuration cannot be used")?.context;
    let mut injection = Settings::new(written, mesh)?;
    injection.control_plane.revision.clone_from(&fixed.revision);
    injection.native_sidecars = fixed.native_sidecars;
    Ok(Current { injection: Arc::new(injection), context: Arc::new(context) })
}

/// Istio keeps its own templates there, which are Go's and of no use here.
fn warn_of_templates(data: &ConfigMapData) {
    if data.contains_key(CONFIG) {
        warn!(key = CONFIG, "is not read: the values say all about injection");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn fixed() -> Fixed {
        Fixed {
            values: json!({"global": {"hub": "from-file", "tag": "1"}}),
            revision: "canary".to_owned(),
            namespace: "mesh".to_owned(),
            domain: "corp.local".into(),
            cluster: "east".into(),
            native_sidecars: NativeSidecars::Disabled,
        }
    }

    fn data(values: &str) -> Option<ConfigMapData> {
        Some(ConfigMapData::from([(VALUES.to_owned(), values.to_owned())]))
    }

    #[tokio::test]
    async fn the_newest_good_settings_are_in_use() {
        let (values, seen) = watch::channel(None);
        let (mesh, config) = watch::channel(None);
        let (sender, mut current) = watch::channel(None);
        let task = tokio::spawn(follow(fixed(), seen, config, sender));
        let waited = tokio::time::timeout(Duration::from_millis(50), current.changed()).await;
        assert!(waited.is_err(), "nothing is known yet");

        values
            .send(data("{\"global\": {\"hub\": \"h\", \"multiCluster\": {\"clusterName\": \"\"}}}"))
            .unwrap();
        current.changed().await.unwrap();
        let first = current.borrow_and_update().clone().unwrap();
        let global = &first.injection.values.global;
        assert_eq!((&*global.hub, &*global.tag), ("h", "1"));
        assert_eq!(global.multi_cluster.cluster_name, "east");
        assert_eq!(global.proxy.cluster_domain, "corp.local");
        assert_eq!(global.istio_namespace, "mesh");
        assert_eq!(first.injection.control_plane.revision, "canary");
        assert_eq!(first.context.domain.as_ref(), "corp.local");

        // What is bad changes nothing, also not when the mesh configuration is new.
        values.send(data("global: nonsense")).unwrap();
        mesh.send(Some(Arc::new(MeshConfig::parse(&[("", "trustDomain: new")]).unwrap().config))).unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(50), current.changed()).await;
        assert!(waited.is_err(), "bad settings are in use");
        values.send(data("global: {hub: again}")).unwrap();
        current.changed().await.unwrap();
        let last = current.borrow().clone().unwrap();
        assert_eq!(&*last.injection.values.global.hub, "again");
        assert_eq!(last.context.trust_domain.as_ref(), "new");
        task.abort();
    }
}
