//! The store of objects, and the findings about them.

use crate::registry::Registry;
use crate::rules::Rules;
use k8s_api::mesh_config::MeshConfig as ApiMeshConfig;
use k8s_api::object::{Object, ObjectKey as ApiKey};
use model::{ChangeSet, Kind, MeshConfig, MeshView, MeshViewBuilder, ObjectKey, Origin, Rejection, Str};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use translate::Context;

/// An object with the place it was read from.
#[derive(Clone, Debug, PartialEq)]
pub struct Sourced {
    /// The object.
    pub object: Arc<Object>,
    /// Where it comes from.
    pub origin: Origin,
}

impl Sourced {
    /// Returns an object of the Kubernetes API.
    pub fn from_api(object: Object) -> Self {
        Self { object: Arc::new(object), origin: Origin::Api }
    }
}

/// What does not change while the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cluster's DNS domain, such as `cluster.local`.
    pub domain: Str,
    /// The name of the cluster that endpoints are in.
    pub cluster: Str,
}

/// Which objects a [`Index::reset`] replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reset {
    /// All of them.
    Everything,
    /// Those of one kind.
    Kind(&'static str),
}

/// What a source tells.
#[derive(Debug)]
pub enum Change {
    /// The whole state of what `Reset` names.
    Reset(Reset, Vec<Sourced>),
    /// An object that is new or different.
    Apply(Sourced),
    /// An object that is gone.
    Delete(ApiKey),
    /// The mesh configuration, complete.
    MeshConfig(Box<ApiMeshConfig>),
    /// The source of this name has told its whole state.
    Synced(&'static str),
}

/// What is to be said about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The object, the field and the reason.
    pub rejection: Rejection,
    /// Whether something is not used because of it; otherwise it is a warning.
    pub is_error: bool,
}

/// What is to be said about an object, and where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Where the object was read.
    pub origin: Origin,
    /// The findings, errors first.
    pub findings: Vec<Finding>,
    /// Whether an earlier form of the object is in use because the newest one is refused.
    pub serves_last_good: bool,
}

/// All objects, and the mesh that they make.
#[derive(Debug)]
pub struct Index {
    settings: Settings,
    pub(crate) context: Context,
    objects: HashMap<ApiKey, Sourced>,
    pub(crate) builder: MeshViewBuilder,
    findings: BTreeMap<ObjectKey, Findings>,
    fresh_findings: BTreeSet<ObjectKey>,
    pub(crate) registry: Registry,
    pub(crate) rules: Rules,
}

impl Index {
    /// Makes an empty index. The mesh's settings are the defaults until [`Index::set_mesh_config`].
    pub fn new(settings: Settings) -> Self {
        let config = MeshConfig { domain: settings.domain.clone(), ..MeshConfig::default() };
        let context = Context::new(&config, settings.cluster.clone());
        let mut builder = MeshViewBuilder::default();
        builder.set_config(config);
        Self {
            settings,
            context,
            objects: HashMap::new(),
            builder,
            findings: BTreeMap::new(),
            fresh_findings: BTreeSet::new(),
            registry: Registry::default(),
            rules: Rules::default(),
        }
    }

    /// Replaces the mesh-wide settings and the defaults for objects, and looks at every object anew.
    pub fn set_mesh_config(&mut self, config: MeshConfig, context: Context) {
        let config = MeshConfig { domain: self.settings.domain.clone(), ..config };
        self.builder.set_config(config);
        if self.context != context {
            self.context = context;
            let all: Vec<Sourced> = self.objects.values().cloned().collect();
            for sourced in all {
                self.take_in(&sourced);
            }
        }
    }

    /// Adds or replaces an object.
    pub fn apply(&mut self, sourced: Sourced) {
        let key = sourced.object.key();
        if let Some(known) = self.objects.get_mut(&key)
            && (Arc::ptr_eq(&known.object, &sourced.object) || known.object == sourced.object)
        {
            // Only the place has changed: lines above it came or went.
            known.origin = sourced.origin.clone();
            if let Some(findings) = model_key(&key).and_then(|key| self.findings.get_mut(&key)) {
                findings.origin = sourced.origin;
            }
            return;
        }
        self.take_in(&sourced);
        self.objects.insert(key, sourced);
    }

    /// Removes an object.
    pub fn delete(&mut self, key: &ApiKey) {
        let Some(sourced) = self.objects.remove(key) else { return };
        let Some(key) = model_key(key) else { return };
        self.builder.cause(key.clone());
        if self.findings.remove(&key).is_some() {
            self.fresh_findings.insert(key.clone());
        }
        if !self.registry_remove(&sourced.object) {
            self.rules_remove(&key);
        }
    }

    /// Replaces all objects that `reset` names: what is not among `objects` is removed. Objects that are there
    /// already cost nothing, so this is also how a source tells of a state without saying what changed.
    pub fn reset(&mut self, reset: &Reset, objects: Vec<Sourced>) {
        let present: HashSet<ApiKey> = objects.iter().map(|sourced| sourced.object.key()).collect();
        let concerned = |key: &ApiKey| match reset {
            Reset::Everything => true,
            Reset::Kind(kind) => key.kind == *kind,
        };
        let gone: Vec<ApiKey> =
            self.objects.keys().filter(|key| concerned(key) && !present.contains(*key)).cloned().collect();
        for key in gone {
            self.delete(&key);
        }
        for sourced in objects {
            self.apply(sourced);
        }
    }

    /// Works out what the changes since the last call lead to. Returns the new view and what is different in it,
    /// or nothing if the mesh is the same.
    pub fn publish(&mut self) -> Option<(Arc<MeshView>, ChangeSet)> {
        self.registry_settle();
        self.rules_settle();
        self.builder.publish().map(|(view, changes)| (Arc::new(view), changes))
    }

    /// Returns the last published view, or one with what has been settled since.
    pub fn view(&self) -> Arc<MeshView> {
        Arc::new(self.builder.view().clone())
    }

    /// Returns everything that is to be said about objects.
    pub fn findings(&self) -> &BTreeMap<ObjectKey, Findings> {
        &self.findings
    }

    /// Returns the objects whose findings have changed since the last call. One without findings has none any
    /// more.
    pub fn take_fresh_findings(&mut self) -> Vec<(ObjectKey, Option<Findings>)> {
        let fresh = std::mem::take(&mut self.fresh_findings);
        fresh.into_iter().map(|key| (key.clone(), self.findings.get(&key).cloned())).collect()
    }

    /// Returns the number of objects.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Returns whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Returns an object.
    pub fn object(&self, key: &ApiKey) -> Option<&Sourced> {
        self.objects.get(key)
    }

    fn take_in(&mut self, sourced: &Sourced) {
        let Some(key) = model_key(&sourced.object.key()) else { return };
        self.builder.cause(key.clone());
        if !self.registry_apply(&sourced.object, &sourced.origin) {
            self.rules_apply(&key, &sourced.object, &sourced.origin);
        }
    }

    /// Notes what translation had to say about an object.
    pub(crate) fn note(
        &mut self,
        key: &ObjectKey,
        origin: &Origin,
        rejections: &[Rejection],
        warnings: &[Rejection],
        serves_last_good: bool,
    ) {
        let errors =
            rejections.iter().map(|rejection| Finding { rejection: rejection.clone(), is_error: true });
        let warnings =
            warnings.iter().map(|rejection| Finding { rejection: rejection.clone(), is_error: false });
        let findings: Vec<Finding> = errors.chain(warnings).collect();
        let changed = if findings.is_empty() {
            self.findings.remove(key).is_some()
        } else {
            let new = Findings { origin: origin.clone(), findings, serves_last_good };
            let same = self.findings.get(key) == Some(&new);
            self.findings.insert(key.clone(), new);
            !same
        };
        if changed {
            self.fresh_findings.insert(key.clone());
        }
    }
}

/// Returns the key under which the mesh knows an object, or nothing for kinds that it does not.
pub(crate) fn model_key(key: &ApiKey) -> Option<ObjectKey> {
    let kind = match (key.group.as_ref(), key.kind.as_ref()) {
        ("", "Service") => Kind::Service,
        ("discovery.k8s.io", "EndpointSlice") => Kind::EndpointSlice,
        ("", "Pod") => Kind::Pod,
        ("", "Node") => Kind::Node,
        ("", "Namespace") => Kind::Namespace,
        ("", "Secret") => Kind::Secret,
        ("", "ConfigMap") => Kind::ConfigMap,
        ("networking.istio.io", "VirtualService") => Kind::VirtualService,
        ("networking.istio.io", "DestinationRule") => Kind::DestinationRule,
        ("networking.istio.io", "Gateway") => Kind::Gateway,
        ("networking.istio.io", "ServiceEntry") => Kind::ServiceEntry,
        ("networking.istio.io", "WorkloadEntry") => Kind::WorkloadEntry,
        ("networking.istio.io", "Sidecar") => Kind::Sidecar,
        ("security.istio.io", "PeerAuthentication") => Kind::PeerAuthentication,
        _ => return None,
    };
    Some(ObjectKey::new(kind, key.namespace.as_str(), key.name.as_str()))
}
