//! The mesh configuration: a base, and a ConfigMap merged over it.

use crate::objects::{Follower, note_undecodable};
use index::Change;
use k8s_api::core::ConfigMap;
use k8s_api::mesh_config::{MeshConfig, fields_not_read};
use k8s_api::yaml::parse_value;
use kube::core::DeserializeGuard;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The key in it.
const KEY: &str = "mesh";
/// A key next to it that is not read.
const NETWORKS_KEY: &str = "meshNetworks";

/// Follows the ConfigMap of the mesh.
pub(crate) struct MeshSettings {
    /// The name of the ConfigMap.
    name: String,
    base: Value,
    base_config: MeshConfig,
    /// What was in use before a restart.
    last_good: Option<Arc<MeshConfig>>,
    told: Option<MeshConfig>,
    is_there: bool,
    undecodable: BTreeMap<String, String>,
}

impl MeshSettings {
    /// Makes settings that are the base until a ConfigMap is seen. If the first one cannot be read, `last_good` is used.
    ///
    /// # Errors
    /// If a field of the base has the wrong type.
    pub(crate) fn new(
        name: &str,
        base: Value,
        last_good: Option<Arc<MeshConfig>>,
    ) -> Result<Self, serde_json::Error> {
        let base_config = MeshConfig::merge([&base])?;
        Ok(Self {
            name: name.to_owned(),
            base,
            base_config,
            last_good,
            told: None,
            is_there: false,
            undecodable: BTreeMap::new(),
        })
    }

    /// Returns the configuration that a ConfigMap makes, or nothing if it cannot be used.
    fn read(&mut self, object: DeserializeGuard<ConfigMap>) -> Option<MeshConfig> {
        let label = label(&object);
        match object.0.map_err(|invalid| invalid.error).and_then(|object| self.parse(&label, &object)) {
            Ok(config) => {
                self.undecodable.remove(&label);
                Some(config)
            }
            Err(error) => {
                let consequence = match self.told {
                    Some(_) => "its last good form stays in use",
                    None if self.last_good.is_some() => "the one from before the restart is used",
                    None => "it is not used",
                };
                if note_undecodable(&mut self.undecodable, label.clone(), &error) {
                    tracing::error!(
                        object = label,
                        error,
                        "cannot read the mesh configuration; {consequence}"
                    );
                }
                None
            }
        }
    }

    fn parse(&self, label: &str, object: &ConfigMap) -> Result<MeshConfig, String> {
        if let Some(networks) = object.data.get(NETWORKS_KEY) {
            let parsed = parse_value::<Value>(networks, label).map(|parsed| parsed.value);
            let is_empty = parsed.is_ok_and(|value| value.get("networks").is_none_or(is_empty));
            if !is_empty {
                tracing::warn!(object = label, "Weft does not act on {NETWORKS_KEY} yet");
            }
        }
        let Some(text) = object.data.get(KEY) else {
            tracing::warn!(object = label, "has no key {KEY}; the mesh configuration is the base");
            return Ok(self.base_config.clone());
        };
        let parsed = parse_value::<MeshConfig>(text, &format!("{label} key {KEY}"));
        let parsed = parsed.map_err(|error| error.to_string())?;
        for warning in &parsed.warnings {
            tracing::warn!(object = label, line = warning.line, "{}: {}", warning.path, warning.message);
        }
        for path in fields_not_read(&parsed.json) {
            tracing::warn!(
                object = label,
                line = parsed.line_of(&path),
                "{path}: Weft does not act on this field yet"
            );
        }
        MeshConfig::merge([&self.base, &parsed.json]).map_err(|error| error.to_string())
    }

    fn tell(&mut self, config: MeshConfig) -> Option<Change> {
        if self.told.as_ref() == Some(&config) {
            return None;
        }
        self.told = Some(config.clone());
        Some(Change::MeshConfig(Box::new(config)))
    }

    fn is_ours(&self, object: &DeserializeGuard<ConfigMap>) -> bool {
        kube::Resource::meta(object).name.as_ref() == Some(&self.name)
    }

    fn tell_base(&mut self) -> Option<Change> {
        self.is_there = false;
        self.undecodable.clear();
        self.tell(self.base_config.clone())
    }
}

impl Follower for MeshSettings {
    type Object = ConfigMap;

    fn replace(&mut self, objects: Vec<DeserializeGuard<ConfigMap>>) -> Option<Change> {
        let Some(object) = objects.into_iter().find(|object| self.is_ours(object)) else {
            return self.tell_base();
        };
        let change = self.apply(object);
        if self.told.is_none() {
            // Nothing good is known: rather the last one or the base than no mesh at all.
            let config = self.last_good.as_deref().unwrap_or(&self.base_config).clone();
            return self.tell(config);
        }
        change
    }

    fn apply(&mut self, object: DeserializeGuard<ConfigMap>) -> Option<Change> {
        if !self.is_ours(&object) {
            return None;
        }
        self.is_there = true;
        let config = self.read(object)?;
        let change = self.tell(config);
        if change.is_some() {
            tracing::info!("the mesh configuration has changed");
        }
        change
    }

    fn delete(&mut self, object: &DeserializeGuard<ConfigMap>) -> Option<Change> {
        if !self.is_ours(object) {
            return None;
        }
        tracing::warn!(object = label(object), "deleted; the mesh configuration is the base again");
        self.tell_base()
    }

    fn len(&self) -> usize {
        usize::from(self.is_there)
    }

    fn undecodable(&self) -> &BTreeMap<String, String> {
        &self.undecodable
    }
}

fn label(object: &DeserializeGuard<ConfigMap>) -> String {
    k8s_api::object::ObjectKey::of(object).to_string()
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
}
