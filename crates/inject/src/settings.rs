//! What the control plane is told about injection.

use crate::native::NativeSidecars;
use crate::selector::Selector;
use crate::template::Custom;
use crate::values::Values;
use k8s_api::mesh_config::MeshConfig;
use serde::Deserialize as _;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Whether pods get a proxy that say nothing about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// They do.
    #[default]
    Enabled,
    /// They do not.
    Disabled,
    /// Something else is written: nobody gets one.
    Unknown(String),
}

impl From<&str> for Policy {
    fn from(text: &str) -> Self {
        match text {
            "enabled" => Self::Enabled,
            "disabled" => Self::Disabled,
            other => Self::Unknown(other.to_owned()),
        }
    }
}

/// What pods are run by, where that makes a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Platform {
    /// Kubernetes.
    #[default]
    Kubernetes,
    /// OpenShift, which gives each namespace user ids of its own.
    OpenShift,
}

/// Which revisions a control plane stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane {
    /// Its own.
    pub revision: String,
    /// Tags that point to it. `default` makes it responsible for `istio-injection: enabled`.
    pub tags: BTreeSet<String>,
    /// Whether namespaces without labels are injected.
    pub namespaces_by_default: bool,
}

impl Default for ControlPlane {
    fn default() -> Self {
        Self { revision: "default".to_owned(), tags: BTreeSet::new(), namespaces_by_default: false }
    }
}

impl ControlPlane {
    /// Returns whether a revision or a tag means this control plane.
    pub fn serves(&self, revision: &str) -> bool {
        self.revision == revision || self.tags.contains(revision)
    }
}

/// What the control plane is told about injection.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Who it is.
    pub control_plane: ControlPlane,
    /// The chart's values.
    pub values: Values,
    /// The same as they were written, for templates of the user's.
    pub written: Value,
    /// The mesh configuration.
    pub mesh: MeshConfig,
    /// Whether pods get a proxy that say nothing about it.
    pub policy: Policy,
    /// Pods that get one unless they say otherwise.
    pub always_inject: Vec<Selector>,
    /// Pods that get none unless they say otherwise.
    pub never_inject: Vec<Selector>,
    /// Templates of the user's.
    pub templates: BTreeMap<String, Custom>,
    /// When the proxy is a native sidecar.
    pub native_sidecars: NativeSidecars,
    /// What pods are run by.
    pub platform: Platform,
    /// A compliance policy such as `fips-140-2`; empty for none.
    pub compliance_policy: String,
}

/// Why settings are refused. The last good ones stay in use.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The values have the wrong shape.
    #[error("values: {0}")]
    Values(#[source] serde_json::Error),
    /// A selector is not one.
    #[error("{list}[{index}]: {source}")]
    Selector {
        /// Which list it is in.
        list: &'static str,
        /// Which one of it.
        index: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A template cannot be read.
    #[error("sidecarInjectorWebhook.templates.{name}: {reason}")]
    Template {
        /// Its name.
        name: String,
        /// Why not.
        reason: String,
    },
}

impl Settings {
    /// Reads the chart's values; `mesh` is the effective mesh configuration.
    ///
    /// # Errors
    /// The first value that is not understood.
    pub fn new(written: Value, mesh: MeshConfig) -> Result<Self, SettingsError> {
        let values: Values = match &written {
            Value::Null => Values::default(),
            written => Values::deserialize(written).map_err(SettingsError::Values)?,
        };
        let injector = &values.sidecar_injector_webhook;
        let revision = if values.revision.is_empty() { "default" } else { &values.revision };
        let control_plane = ControlPlane {
            revision: revision.to_owned(),
            tags: BTreeSet::new(),
            namespaces_by_default: injector.enable_namespaces_by_default,
        };
        let platform = match values.global.platform.as_str() {
            "openshift" => Platform::OpenShift,
            _ => Platform::Kubernetes,
        };
        let templates = injector.templates.iter().map(|(name, template)| {
            let custom = Custom::parse(template);
            let refuse = |reason| SettingsError::Template { name: name.clone(), reason };
            Ok((name.clone(), custom.map_err(refuse)?))
        });
        Ok(Self {
            control_plane,
            policy: values.global.proxy.auto_inject.as_str().into(),
            always_inject: selectors("alwaysInjectSelector", &injector.always_inject_selector)?,
            never_inject: selectors("neverInjectSelector", &injector.never_inject_selector)?,
            templates: templates.collect::<Result<_, _>>()?,
            native_sidecars: NativeSidecars::default(),
            platform,
            compliance_policy: String::new(),
            written,
            mesh,
            values,
        })
    }
}

fn selectors(list: &'static str, written: &[Value]) -> Result<Vec<Selector>, SettingsError> {
    let parse = |(index, value): (usize, &Value)| {
        Selector::deserialize(value).map_err(|source| SettingsError::Selector { list, index, source })
    };
    written.iter().enumerate().map(parse).collect()
}
