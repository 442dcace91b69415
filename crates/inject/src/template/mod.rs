//! What is added to a pod, as parts of a pod that are merged over it.
//!
//! Our templates are functions that make Kubernetes' types. Templates of the user's are structured patches.

mod capture;
mod custom;
mod environment;
mod gateway;
mod grpc;
mod parts;
mod sidecar;

use crate::annotations::Options;
use crate::error::InjectError;
use crate::pod;
use crate::settings::Settings;
use crate::workload::Workload;
pub use custom::Custom;
use k8s_api::mesh_config::{InterceptionMode, ProxyConfig};
use k8s_api::pod::PodSpec;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Everything that templates look at.
pub(crate) struct Context<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) options: &'a Options,
    /// The pod as its author wrote it.
    pub(crate) pod: &'a Value,
    /// The effective proxy configuration.
    pub(crate) proxy: &'a ProxyConfig,
    /// What of it differs from the defaults, as JSON.
    pub(crate) proxy_json: &'a str,
    pub(crate) workload: &'a Workload,
    pub(crate) namespace: &'a str,
    pub(crate) native: bool,
    pub(crate) cluster: &'a str,
    pub(crate) network: Option<&'a str>,
    /// The proxy's user, where the platform decides.
    pub(crate) user: Option<i64>,
    /// The proxy's group, where the platform decides.
    pub(crate) group: Option<i64>,
}

/// What a template adds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlay {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    spec: PodSpec,
}

impl Overlay {
    fn into_value(self) -> Result<Value, InjectError> {
        let fail = |error: serde_json::Error| InjectError::Template {
            name: "built-in".to_owned(),
            reason: error.to_string(),
        };
        let spec = serde_json::to_value(self.spec).map_err(fail)?;
        let mut metadata = json!({});
        // An empty map would be added to the pod, too.
        if !self.labels.is_empty() {
            metadata["labels"] = json!(self.labels);
        }
        if !self.annotations.is_empty() {
            metadata["annotations"] = json!(self.annotations);
        }
        Ok(json!({ "metadata": metadata, "spec": spec }))
    }
}

/// Returns what the pod's templates add, one after the other.
pub(crate) fn overlays(context: &Context<'_>) -> Result<Vec<Value>, InjectError> {
    let mut done: Vec<String> = Vec::new();
    let mut overlays = Vec::new();
    for name in chosen(context) {
        // A template that is named twice adds the same twice.
        if done.contains(&name) {
            continue;
        }
        overlays.push(render(context, &name)?);
        done.push(name);
    }
    Ok(overlays)
}

fn chosen(context: &Context<'_>) -> Vec<String> {
    let injector = &context.settings.values.sidecar_injector_webhook;
    let named = match (&context.options.templates, injector.default_templates.as_slice()) {
        (Some(named), _) => named.clone(),
        (None, []) => vec!["sidecar".to_owned()],
        (None, defaults) => defaults.to_vec(),
    };
    let resolve = |name: String| injector.aliases.get(&name).cloned().unwrap_or_else(|| vec![name]);
    named.into_iter().flat_map(resolve).collect()
}

const BUILT_IN: [&str; 4] = ["sidecar", "gateway", "grpc-agent", "grpc-simple"];

fn render(context: &Context<'_>, name: &str) -> Result<Value, InjectError> {
    if let Some(custom) = context.settings.templates.get(name) {
        let fail = |reason| InjectError::Template { name: name.to_owned(), reason };
        return custom.render(context).map_err(fail);
    }
    let overlay = match name {
        "sidecar" => sidecar::overlay(context)?,
        "gateway" => gateway::overlay(context)?,
        "grpc-agent" => grpc::with_agent(context)?,
        "grpc-simple" => grpc::simple(context),
        _ => {
            let custom = context.settings.templates.keys().map(String::as_str);
            let known: Vec<&str> = BUILT_IN.into_iter().chain(custom).collect();
            return Err(InjectError::UnknownTemplate { name: name.to_owned(), known: known.join(", ") });
        }
    };
    overlay.into_value()
}

impl Context<'_> {
    /// Returns how inbound traffic gets to the proxy.
    pub(crate) fn mode(&self) -> InterceptionMode {
        let of_config = || self.proxy.interception_mode.clone();
        self.options.mode.clone().or_else(of_config).unwrap_or(InterceptionMode::Redirect)
    }

    /// Returns the port of the agent's status as the annotation or the values say it; 0 turns probes off.
    pub(crate) fn status_port(&self) -> String {
        let proxy = self.proxy.status_port;
        match self.options.status_port {
            Some(port) => port.to_string(),
            // The agent listens where its configuration says.
            None if proxy != 15020 => proxy.to_string(),
            None => self.settings.values.global.proxy.status_port.0.trim().to_owned(),
        }
    }

    fn probes_proxy(&self) -> bool {
        self.status_port() != "0"
    }

    /// Returns the names of the application's containers.
    fn applications(&self) -> Vec<&str> {
        let names = pod::containers(self.pod, "containers").iter().map(pod::name);
        names.filter(|name| *name != crate::PROXY).collect()
    }

    fn first_label(&self, names: &[&str], default: &str) -> String {
        let found =
            names.iter().find_map(|name| pod::label(self.pod, name).filter(|value| !value.is_empty()));
        found.unwrap_or(default).to_owned()
    }

    fn metadata(&self, name: &str) -> Option<&str> {
        self.proxy.proxy_metadata.get(name).map(String::as_str)
    }

    /// Returns the labels and annotations that all templates with a proxy add.
    fn common(&self) -> Overlay {
        let mut overlay = Overlay::default();
        let canonical_name = self.first_label(
            &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"],
            &self.workload.name,
        );
        let canonical_revision = self.first_label(
            &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"],
            "latest",
        );
        overlay.labels.insert("service.istio.io/canonical-name".to_owned(), canonical_name);
        overlay.labels.insert("service.istio.io/canonical-revision".to_owned(), canonical_revision);
        let revision = self.settings.control_plane.revision.clone();
        overlay.annotations.insert("istio.io/rev".to_owned(), revision);
        overlay.spec.image_pull_secrets = parts::pull_secrets(&self.settings.values);
        overlay
    }

    /// Names the application's first container as the one that tools mean by default.
    fn name_default_container(&self, overlay: &mut Overlay) {
        let Some(first) = self.applications().first().copied() else { return };
        for name in
            ["kubectl.kubernetes.io/default-logs-container", "kubectl.kubernetes.io/default-container"]
        {
            if pod::annotation(self.pod, name).is_none() {
                overlay.annotations.insert(name.to_owned(), first.to_owned());
            }
        }
    }
}
