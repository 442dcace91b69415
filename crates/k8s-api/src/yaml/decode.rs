//! A tree to a typed object, with fields that nobody reads.

use std::sync::Arc;

use k8s_openapi::api::{core::v1 as full, discovery::v1 as full_discovery};
use kube_core::Resource;
use serde::de::DeserializeOwned;

use super::deserializer::{Decoded, Misfit, decode};
use super::tree::{Path, Step, Tree};
use super::{DEFAULT_NAMESPACE, Document, Warning, YamlError, YamlErrorKind};
use crate::authorization_policy::AuthorizationPolicy;
use crate::core::{ConfigMap, EndpointSlice, Namespace, Node, Pod, Secret, Service};
use crate::crd::IstioKind;
use crate::destination_rule::DestinationRule;
use crate::envoy_filter::EnvoyFilter;
use crate::extension::{TrafficExtension, WasmPlugin};
use crate::gateway::Gateway;
use crate::object::{Object, ObjectKey};
use crate::peer_authentication::PeerAuthentication;
use crate::proxy_config::ProxyConfig;
use crate::reference_grant::ReferenceGrant;
use crate::request_authentication::RequestAuthentication;
use crate::service_entry::ServiceEntry;
use crate::sidecar::Sidecar;
use crate::telemetry::Telemetry;
use crate::virtual_service::VirtualService;
use crate::workload_entry::WorkloadEntry;
use crate::workload_group::WorkloadGroup;

impl Document {
    fn unenforced(self) -> Self {
        Self { is_unenforced: true, ..self }
    }
}

impl Misfit {
    pub(super) fn located(self, tree: &Tree, origin: &Arc<str>, object: Option<ObjectKey>) -> YamlError {
        YamlError {
            origin: Arc::clone(origin),
            line: tree.line_of(&self.path),
            object: object.map(Box::new),
            path: Path(&self.path).to_string(),
            kind: YamlErrorKind::Field,
            message: self.message,
        }
    }
}

/// Makes a warning of each field that is not read, in the order of the text.
pub(super) fn unknown_field_warnings(tree: &Tree, ignored: Vec<Vec<Step>>) -> Vec<Warning> {
    let warning = |path: Vec<Step>| Warning {
        line: tree.line_of(&path),
        path: Path(&path).to_string(),
        message: "unknown field, it has no effect".to_owned(),
    };
    let mut warnings: Vec<Warning> = ignored.into_iter().map(warning).collect();
    warnings.sort_by_key(|warning| warning.line);
    warnings
}

/// Decodes the object of a document, or the objects of a list.
pub(super) fn objects(tree: &Tree, origin: &Arc<str>, results: &mut Vec<Result<Document, YamlError>>) {
    let text = |key: &str| tree.get(key).and_then(Tree::as_str).unwrap_or_default();
    let list_of = text("kind").strip_suffix("List");
    let Some((item_kind, items)) = list_of.zip(tree.get("items")) else {
        results.push(Header::read(tree, origin, "", "").and_then(|header| header.decode(tree, origin)));
        return;
    };
    // The items of a typed list (`PodList`) may leave out what the list says; those of a plain `List` may not.
    let item_version = if item_kind.is_empty() { "" } else { text("apiVersion") };
    let Some(items) = items.items() else {
        if !items.is_null() {
            results.push(Err(not_an_object(items, origin, "items of a list must be a sequence")));
        }
        return;
    };
    for item in items {
        let nested = item.get("kind").and_then(Tree::as_str).is_some_and(|kind| kind.ends_with("List"));
        if nested && item.get("items").is_some() {
            objects(item, origin, results);
        } else {
            let header = Header::read(item, origin, item_version, item_kind);
            results.push(header.and_then(|header| header.decode(item, origin)));
        }
    }
}

/// What every object says about itself.
struct Header {
    api_version: String,
    group: String,
    version: String,
    key: ObjectKey,
}

impl Header {
    fn read(tree: &Tree, origin: &Arc<str>, version: &str, kind: &str) -> Result<Self, YamlError> {
        if !tree.is_mapping() {
            return Err(not_an_object(tree, origin, "a Kubernetes object is a mapping"));
        }
        let string = |tree: Option<&Tree>, fallback: &str| {
            let text = tree.and_then(Tree::as_str).filter(|text| !text.is_empty());
            text.unwrap_or(fallback).to_owned()
        };
        let metadata = |key: &str| string(tree.get("metadata").and_then(|metadata| metadata.get(key)), "");
        let api_version = string(tree.get("apiVersion"), version);
        let kind = string(tree.get("kind"), kind);
        if api_version.is_empty() || kind.is_empty() {
            let message = "not a Kubernetes object: apiVersion and kind are required";
            return Err(not_an_object(tree, origin, message));
        }
        let (group, version) = match api_version.split_once('/') {
            Some((group, version)) => (group.to_owned(), version.to_owned()),
            None => (String::new(), api_version.clone()),
        };
        let key = ObjectKey {
            group: group.clone().into(),
            kind: kind.into(),
            namespace: metadata("namespace"),
            name: metadata("name"),
        };
        let header = Self { api_version, group, version, key };
        if header.key.name.is_empty() {
            return Err(header.error(tree, origin, YamlErrorKind::NotAnObject, "metadata.name is required"));
        }
        Ok(header)
    }

    fn decode(self, tree: &Tree, origin: &Arc<str>) -> Result<Document, YamlError> {
        let kind = self.key.kind.clone();
        match (self.group.as_str(), kind.as_ref()) {
            ("networking.istio.io", "VirtualService") => {
                self.istio::<VirtualService>(tree, origin, Object::VirtualService)
            }
            ("networking.istio.io", "DestinationRule") => {
                self.istio::<DestinationRule>(tree, origin, Object::DestinationRule)
            }
            ("networking.istio.io", "Gateway") => self.istio::<Gateway>(tree, origin, Object::Gateway),
            ("networking.istio.io", "ServiceEntry") => {
                self.istio::<ServiceEntry>(tree, origin, Object::ServiceEntry)
            }
            ("networking.istio.io", "WorkloadEntry") => {
                self.istio::<WorkloadEntry>(tree, origin, Object::WorkloadEntry)
            }
            ("networking.istio.io", "Sidecar") => self.istio::<Sidecar>(tree, origin, Object::Sidecar),
            ("security.istio.io", "PeerAuthentication") => {
                self.istio::<PeerAuthentication>(tree, origin, Object::PeerAuthentication)
            }
            ("gateway.networking.k8s.io", "ReferenceGrant") => {
                self.istio::<ReferenceGrant>(tree, origin, Object::ReferenceGrant)
            }
            ("security.istio.io", "AuthorizationPolicy") => {
                self.unread::<AuthorizationPolicy>(tree, origin).map(Document::unenforced)
            }
            ("security.istio.io", "RequestAuthentication") => {
                self.unread::<RequestAuthentication>(tree, origin).map(Document::unenforced)
            }
            ("telemetry.istio.io", "Telemetry") => self.unread::<Telemetry>(tree, origin),
            ("networking.istio.io", "EnvoyFilter") => self.unread::<EnvoyFilter>(tree, origin),
            ("networking.istio.io", "WorkloadGroup") => self.unread::<WorkloadGroup>(tree, origin),
            ("networking.istio.io", "ProxyConfig") => self.unread::<ProxyConfig>(tree, origin),
            ("extensions.istio.io", "WasmPlugin") => self.unread::<WasmPlugin>(tree, origin),
            ("extensions.istio.io", "TrafficExtension") => self.unread::<TrafficExtension>(tree, origin),
            ("", "Service") => self.core::<Service, full::Service>(tree, origin, Object::Service),
            ("", "Pod") => self.core::<Pod, full::Pod>(tree, origin, Object::Pod),
            ("", "Node") => self.core::<Node, full::Node>(tree, origin, Object::Node),
            ("", "Namespace") => self.core::<Namespace, full::Namespace>(tree, origin, Object::Namespace),
            ("", "Secret") => self.core::<Secret, full::Secret>(tree, origin, Object::Secret),
            ("", "ConfigMap") => self.core::<ConfigMap, full::ConfigMap>(tree, origin, Object::ConfigMap),
            ("discovery.k8s.io", "EndpointSlice") => {
                self.core::<EndpointSlice, full_discovery::EndpointSlice>(tree, origin, Object::EndpointSlice)
            }
            _ => Ok(self.other(tree, origin)),
        }
    }

    /// Istio's kinds carry every field, so the type itself knows which are unknown.
    fn istio<K: IstioKind + DeserializeOwned>(
        self,
        tree: &Tree,
        origin: &Arc<str>,
        wrap: impl FnOnce(Box<K>) -> Object,
    ) -> Result<Document, YamlError> {
        self.check_version(tree, origin, K::DEFINITION.versions)?;
        let decoded = decode::<K>(tree);
        let Decoded { value, mut ignored } =
            decoded.map_err(|error| error.located(tree, origin, Some(self.key.clone())))?;
        // The root's type has no place for what the header has read, and the status is an open schema.
        ignored.retain(|path| {
            let root = path.first();
            let is = |name: &str| matches!(root, Some(Step::Key(key)) if key == name);
            !(is("status") || path.len() == 1 && (is("apiVersion") || is("kind")))
        });
        Ok(self.document(tree, origin, wrap(Box::new(value)), unknown_field_warnings(tree, ignored)))
    }

    /// Kinds that Weft does not act on yet. Their fields are checked all the same: who writes them should hear of it.
    fn unread<K: IstioKind + DeserializeOwned>(
        self,
        tree: &Tree,
        origin: &Arc<str>,
    ) -> Result<Document, YamlError> {
        let key = self.key.clone();
        let without_effect = self.without_effect(tree);
        let mut document = self.istio::<K>(tree, origin, |_| Object::Other(key))?;
        document.warnings.insert(0, without_effect);
        Ok(document)
    }

    fn without_effect(&self, tree: &Tree) -> Warning {
        let message = format!("{} {} is not read yet, it has no effect", self.api_version, self.key.kind);
        Warning { line: tree.line, path: "kind".to_owned(), message }
    }

    /// Kubernetes' kinds are decoded twice: the slim type is what Weft uses, the full one knows which fields exist.
    fn core<K, F>(
        self,
        tree: &Tree,
        origin: &Arc<str>,
        wrap: impl FnOnce(Box<K>) -> Object,
    ) -> Result<Document, YamlError>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
        F: DeserializeOwned,
    {
        self.check_version(tree, origin, &[K::version(&()).as_ref()])?;
        let slim = decode::<K>(tree).map_err(|error| error.located(tree, origin, Some(self.key.clone())))?;
        let warnings = match decode::<F>(tree) {
            Ok(full) => unknown_field_warnings(tree, full.ignored),
            Err(error) => {
                let error = error.located(tree, origin, None);
                let message = format!("the API server would refuse this: {}", error.message);
                vec![Warning { line: error.line, path: error.path, message }]
            }
        };
        Ok(self.document(tree, origin, wrap(Box::new(slim.value)), warnings))
    }

    fn other(self, tree: &Tree, origin: &Arc<str>) -> Document {
        let mesh_api = self.group.ends_with(".istio.io")
            || self.group == "gateway.networking.k8s.io"
            || (self.group == "networking.k8s.io" && self.key.kind == "Ingress");
        let warnings = if mesh_api { vec![self.without_effect(tree)] } else { Vec::new() };
        let object = Object::Other(self.key.clone());
        self.document(tree, origin, object, warnings)
    }

    fn document(
        self,
        tree: &Tree,
        origin: &Arc<str>,
        mut object: Object,
        warnings: Vec<Warning>,
    ) -> Document {
        let namespaced = !matches!(object, Object::Node(_) | Object::Namespace(_));
        if let Some(metadata) = object.metadata_mut().filter(|_| namespaced)
            && metadata.namespace.as_ref().is_none_or(String::is_empty)
        {
            metadata.namespace = Some(DEFAULT_NAMESPACE.to_owned());
        }
        Document {
            origin: Arc::clone(origin),
            line: tree.line,
            api_version: self.api_version,
            kind: self.key.kind.into_owned(),
            object,
            is_unenforced: false,
            warnings,
        }
    }

    fn check_version(&self, tree: &Tree, origin: &Arc<str>, versions: &[&str]) -> Result<(), YamlError> {
        if versions.contains(&self.version.as_str()) {
            return Ok(());
        }
        let message =
            format!("there is no version {:?} of this kind, only {}", self.version, versions.join(", "));
        Err(self.error(tree, origin, YamlErrorKind::Version, &message))
    }

    fn error(&self, tree: &Tree, origin: &Arc<str>, kind: YamlErrorKind, message: &str) -> YamlError {
        YamlError {
            origin: Arc::clone(origin),
            line: tree.line,
            object: Some(Box::new(self.key.clone())),
            path: String::new(),
            kind,
            message: message.to_owned(),
        }
    }
}

fn not_an_object(tree: &Tree, origin: &Arc<str>, message: &str) -> YamlError {
    YamlError {
        origin: Arc::clone(origin),
        line: tree.line,
        object: None,
        path: String::new(),
        kind: YamlErrorKind::NotAnObject,
        message: message.to_owned(),
    }
}
