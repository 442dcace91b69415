//! The store of objects, and the findings about them.

use crate::doubt::Doubt;
use crate::registry::{Registry, service_object};
use crate::rules::Rules;
use k8s_api::mesh_config::MeshConfig as ApiMeshConfig;
use k8s_api::object::{Object, ObjectKey as ApiKey};
use model::{
    ChangeSet, Kind, Labels, MeshConfig, MeshView, MeshViewBuilder, ObjectKey, Origin, Rejection, Str,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;
use translate::Context;

/// The label that Kubernetes puts on every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The label by which an object belongs to a revision.
const REVISION: &str = "istio.io/rev";

/// An object with the place it was read from.
#[derive(Clone, Debug, PartialEq)]
pub struct Sourced {
    /// The object.
    pub object: Arc<Object>,
    /// Where it comes from.
    pub origin: Origin,
    /// Why its newest form cannot be read. The object is an older form then, or [`Object::Other`] if its source knows
    /// none.
    pub unread: Option<Str>,
}

impl Sourced {
    /// Returns an object of the Kubernetes API.
    pub fn from_api(object: Object) -> Self {
        Self { object: Arc::new(object), origin: Origin::Api, unread: None }
    }

    /// Returns an object of the Kubernetes API of which only the name can be read, and why.
    pub fn unread(key: ApiKey, reason: impl Into<Str>) -> Self {
        Self { object: Arc::new(Object::Other(key)), origin: Origin::Api, unread: Some(reason.into()) }
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
    /// The names of the revision whose objects count: its own, and tags.
    Revisions(BTreeSet<String>),
    /// The source of this name has told its whole state.
    Synced(&'static str),
    /// Sources that lost touch together are about to catch up, each at its own pace: for a moment what they tell may be
    /// half of a change.
    CatchingUp,
}

/// What is to be said about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The object, the field and the reason.
    pub rejection: Rejection,
    /// Whether something is not used because of it; otherwise it is a warning.
    pub is_error: bool,
}

impl Finding {
    const UNREAD: &str = "cannot be read: ";

    fn unread(key: &ObjectKey, reason: &str) -> Self {
        let reason = format!("{}{reason}", Self::UNREAD);
        Self {
            rejection: Rejection { object: key.clone(), field: "spec".to_owned(), reason },
            is_error: true,
        }
    }

    fn is_unread(&self) -> bool {
        self.rejection.field == "spec" && self.rejection.reason.starts_with(Self::UNREAD)
    }
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

/// An object that is in use although its newest form is not.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// The last form that was good.
    pub object: Arc<Object>,
    /// Where the newest form is.
    pub origin: Origin,
}

/// All objects, and the mesh that they make.
#[derive(Debug)]
pub struct Index {
    settings: Settings,
    pub(crate) context: Context,
    objects: HashMap<ApiKey, Sourced>,
    /// The last accepted form of rules, policies and ServiceEntries.
    pub(crate) accepted: HashMap<ApiKey, Arc<Object>>,
    /// Last accepted forms of another process, whose objects have not been seen yet.
    restored: HashMap<ApiKey, Arc<Object>>,
    /// The names of the revision whose objects count; nothing if all do.
    revisions: Option<BTreeSet<String>>,
    /// What cannot be read, and why.
    unread: BTreeMap<ObjectKey, Str>,
    /// What is not used because something else is there already.
    conflicts: BTreeMap<ObjectKey, Vec<Finding>>,
    pub(crate) builder: MeshViewBuilder,
    findings: BTreeMap<ObjectKey, Findings>,
    fresh_findings: BTreeSet<ObjectKey>,
    pub(crate) registry: Registry,
    pub(crate) rules: Rules,
    /// The time, in seconds since 1970, if anybody has said it.
    pub(crate) now: Option<i64>,
}

impl Index {
    /// Makes an empty index. The mesh's settings are the defaults until [`Index::set_mesh_config`].
    pub fn new(settings: Settings) -> Self {
        let config = own(&settings, MeshConfig::default());
        let context = Context::new(&config, settings.cluster.clone());
        let mut builder = MeshViewBuilder::default();
        builder.set_config(config);
        Self {
            settings,
            context,
            objects: HashMap::new(),
            accepted: HashMap::new(),
            restored: HashMap::new(),
            revisions: None,
            unread: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            builder,
            findings: BTreeMap::new(),
            fresh_findings: BTreeSet::new(),
            registry: Registry::default(),
            rules: Rules::default(),
            now: None,
        }
    }

    /// Tells the time, in seconds since 1970: a certificate that has expired does not take the place of another one.
    pub fn set_time(&mut self, now: i64) {
        self.now = Some(now);
    }

    /// Replaces the mesh-wide settings and the defaults for objects, and looks at every object anew.
    pub fn set_mesh_config(&mut self, config: MeshConfig, context: Context) {
        let config = own(&self.settings, config);
        self.builder.set_config(config);
        if self.context != context {
            self.context = context;
            let all: Vec<Sourced> = self.objects.values().cloned().collect();
            for sourced in all {
                let last = self.accepted.get(&sourced.object.key());
                if let Some(last) = last.filter(|last| !Arc::ptr_eq(last, &sourced.object)).cloned() {
                    self.take_in_again(last);
                }
                self.take_in(&sourced);
            }
        }
    }

    /// Says by which names the revision is known whose objects count: configuration that is labelled with another one is
    /// left out, as in Istio. Services, pods and the like belong to all, and so does what has no such label.
    pub fn set_revisions(&mut self, names: BTreeSet<String>) {
        let before = self.revisions.replace(names);
        let of_another = |object: &Object| is_of_another(before.as_ref(), object);
        let changed: Vec<Sourced> = self
            .objects
            .values()
            .filter(|sourced| {
                of_another(&sourced.object) != is_of_another(self.revisions.as_ref(), &sourced.object)
            })
            .cloned()
            .collect();
        for sourced in changed {
            self.take_in(&sourced);
        }
    }

    /// Says which objects were in use by [`Index::held`] in another process. Each is used as soon as its object turns
    /// up with a newer form that is refused.
    pub fn restore(&mut self, objects: impl IntoIterator<Item = Arc<Object>>) {
        self.restored.extend(objects.into_iter().map(|object| (object.key(), object)));
    }

    /// Forgets what [`Index::restore`] was told of objects that have not turned up: they were deleted meanwhile.
    pub fn forget_restored(&mut self) {
        self.restored.clear();
    }

    /// Says which parts of objects are not used because they conflict with others, as somebody who knows how objects
    /// come together has found out. It replaces what was said before.
    pub fn set_conflicts(&mut self, rejections: Vec<Rejection>) {
        let mut conflicts: BTreeMap<ObjectKey, Vec<Finding>> = BTreeMap::new();
        for rejection in rejections {
            let of_object = conflicts.entry(rejection.object.clone()).or_default();
            of_object.push(Finding { rejection, is_error: true });
        }
        let before = std::mem::replace(&mut self.conflicts, conflicts);
        let concerned: BTreeSet<ObjectKey> = before.keys().chain(self.conflicts.keys()).cloned().collect();
        for key in concerned {
            let Some(sourced) = self.objects.get(&api_key(&key)) else { continue };
            let origin = sourced.origin.clone();
            let mut findings = self.findings.get(&key).cloned().unwrap_or_default();
            let old = before.get(&key).map(Vec::as_slice).unwrap_or_default();
            findings.findings.retain(|finding| !old.contains(finding));
            findings.findings.extend(self.conflicts.get(&key).into_iter().flatten().cloned());
            findings.origin = origin;
            self.set_findings(&key, findings);
        }
    }

    /// Returns the objects of which an older form is in use because the newest one is refused or cannot be read, by
    /// key. Secrets are not among them: they are not for other eyes.
    pub fn held(&self) -> Vec<Held> {
        let held = self.findings.iter().filter(|(key, findings)| {
            findings.serves_last_good && !matches!(key.kind, Kind::Secret | Kind::ConfigMap)
        });
        held.filter_map(|(key, findings)| {
            let key = api_key(key);
            let object = self.accepted.get(&key).or_else(|| Some(&self.objects.get(&key)?.object))?;
            Some(Held { object: object.clone(), origin: findings.origin.clone() })
        })
        .collect()
    }

    /// Adds or replaces an object.
    pub fn apply(&mut self, mut sourced: Sourced) {
        let key = sourced.object.key();
        let restored = self.restored.remove(&key);
        if sourced.unread.is_some() && is_unknown(&sourced.object) {
            let known = self.objects.get(&key).map(|known| &known.object).filter(|known| !is_unknown(known));
            if let Some(object) = known.or(restored.as_ref()) {
                sourced.object = object.clone();
            }
        }
        self.set_unread(&key, &sourced);
        if let Some(known) = self.objects.get_mut(&key)
            && (Arc::ptr_eq(&known.object, &sourced.object) || known.object == sourced.object)
        {
            // Only the place has changed, since lines above it came or went, or what the source says of it.
            let was_unread = known.unread.clone();
            known.origin = sourced.origin.clone();
            known.unread = sourced.unread.clone();
            let Some(key) = model_key(&key) else { return };
            if was_unread != sourced.unread && self.is_part(&sourced.object) {
                self.note_unread(&key, &sourced);
            }
            if let Some(findings) = self.findings.get_mut(&key) {
                findings.origin = sourced.origin;
            }
            return;
        }
        if let Some(restored) = restored {
            self.take_in_again(restored);
        }
        if let Object::Namespace(_) = sourced.object.as_ref() {
            let was_discovered = self.discovers(&key.name);
            self.objects.insert(key.clone(), sourced.clone());
            self.rediscover(&key.name, was_discovered);
        }
        self.take_in(&sourced);
        if let Some(key) = model_key(&key)
            && sourced.unread.is_some()
            && self.is_part(&sourced.object)
        {
            self.note_unread(&key, &sourced);
        }
        self.objects.insert(key, sourced);
    }

    fn set_unread(&mut self, key: &ApiKey, sourced: &Sourced) {
        let Some(key) = model_key(key) else { return };
        match &sourced.unread {
            Some(reason) => drop(self.unread.insert(key, reason.clone())),
            None => drop(self.unread.remove(&key)),
        }
    }

    /// Removes an object.
    pub fn delete(&mut self, key: &ApiKey) {
        self.restored.remove(key);
        let was_discovered = key.kind == "Namespace" && key.group.is_empty() && self.discovers(&key.name);
        let Some(sourced) = self.objects.remove(key) else { return };
        if let Object::Namespace(_) = sourced.object.as_ref() {
            self.rediscover(&key.name, was_discovered);
        }
        self.accepted.remove(key);
        let Some(key) = model_key(key) else { return };
        self.builder.cause(key.clone());
        self.unread.remove(&key);
        self.conflicts.remove(&key);
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
    /// or nothing if the mesh is the same. The objects are taken at their word: nothing is doubted.
    pub fn publish(&mut self) -> Option<(Arc<MeshView>, ChangeSet)> {
        self.publish_with(None)
    }

    /// As [`Index::publish`], of what somebody follows: for [`ENDPOINT_DOUBT`] a Service of which no EndpointSlice
    /// tells any more keeps its endpoints, and one of which none tells yet is not used. Call it again at
    /// [`Index::doubts_until`].
    ///
    /// [`ENDPOINT_DOUBT`]: crate::ENDPOINT_DOUBT
    pub fn publish_at(&mut self, now: Instant) -> Option<(Arc<MeshView>, ChangeSet)> {
        self.publish_with(Some(now))
    }

    /// Returns when the next doubt ends.
    pub fn doubts_until(&self) -> Option<Instant> {
        self.registry.doubts.until()
    }

    /// Returns the doubts that have begun, or ended without an answer, since the last call.
    pub fn take_doubts(&mut self) -> Vec<Doubt> {
        self.registry.doubts.take_events()
    }

    fn publish_with(&mut self, now: Option<Instant>) -> Option<(Arc<MeshView>, ChangeSet)> {
        let decided = self.registry.doubts.begin(now);
        self.registry.dirty.extend(decided.iter().map(service_object));
        self.registry_settle();
        self.registry.doubts.end();
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
        if !self.is_part(&sourced.object) {
            return self.put_away(&key, &sourced.object);
        }
        if !self.registry_apply(&sourced.object, &sourced.origin) {
            self.rules_apply(&key, &sourced.object, &sourced.origin);
        }
    }

    /// Returns whether an object is a part of the mesh: it is in a namespace that is, and of no other revision.
    fn is_part(&self, object: &Object) -> bool {
        self.discovers(&object.key().namespace) && !is_of_another(self.revisions.as_ref(), object)
    }

    /// Returns whether objects of a namespace are a part of the mesh. Those without one, such as namespaces, always are.
    fn discovers(&self, namespace: &str) -> bool {
        self.context.discovery.is_empty()
            || namespace.is_empty()
            || self.context.discovers(&self.namespace_labels(namespace))
    }

    /// Returns the labels of a namespace. Every namespace is labelled with its name, also one that there is no object of.
    fn namespace_labels(&self, name: &str) -> Labels {
        let key = api_key(&ObjectKey::new(Kind::Namespace, "", name));
        let metadata = self.objects.get(&key).and_then(|sourced| sourced.object.metadata());
        let given = metadata.and_then(|metadata| metadata.labels.as_ref()).into_iter().flatten();
        let given = given.map(|(key, value)| (key.as_str(), value.as_str()));
        [(NAMESPACE_NAME, name)].into_iter().chain(given).collect()
    }

    /// Leaves an object out of the mesh that is no part of it.
    fn put_away(&mut self, key: &ObjectKey, object: &Object) {
        self.accepted.remove(&object.key());
        if !self.registry_remove(object) {
            self.rules_remove(key);
        }
        if self.findings.remove(key).is_some() {
            self.fresh_findings.insert(key.clone());
        }
    }

    /// Looks at the objects of a namespace anew if it has joined or left the mesh.
    fn rediscover(&mut self, namespace: &str, was_discovered: bool) {
        if self.discovers(namespace) == was_discovered {
            return;
        }
        let inside: Vec<Sourced> = self
            .objects
            .iter()
            .filter(|(key, _)| key.namespace == namespace)
            .map(|(_, s)| s.clone())
            .collect();
        for sourced in inside {
            self.take_in(&sourced);
        }
    }

    /// Takes in a form of an object that was accepted before, as what to go back to.
    fn take_in_again(&mut self, object: Arc<Object>) {
        if !self.is_part(&object) {
            return;
        }
        if let Object::ServiceEntry(entry) = object.as_ref() {
            // Services are worked out later, from the newest form or, if that is refused, from this one.
            if translate::service_entry(&self.context, entry).value.is_some() {
                self.accepted.insert(object.key(), object);
            }
            return;
        }
        self.take_in(&Sourced { object, origin: Origin::Api, unread: None });
    }

    /// Adds to an object's findings that its newest form cannot be read, or takes that away.
    fn note_unread(&mut self, key: &ObjectKey, sourced: &Sourced) {
        let mut findings = self.findings.get(key).cloned().unwrap_or_default();
        findings.findings.retain(|finding| !finding.is_unread());
        let accepted = self.accepted.get(&sourced.object.key());
        let is_refused = accepted.is_some_and(|last| *last != sourced.object);
        findings.serves_last_good = is_refused || (sourced.unread.is_some() && !is_unknown(&sourced.object));
        findings.origin = sourced.origin.clone();
        if let Some(reason) = &sourced.unread {
            findings.findings.insert(0, Finding::unread(key, reason));
        }
        self.set_findings(key, findings);
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
        let unread = self.unread.get(key);
        let serves_last_good = serves_last_good || unread.is_some();
        let unread = unread.map(|reason| Finding::unread(key, reason));
        let conflicts = self.conflicts.get(key).into_iter().flatten().cloned();
        let findings: Vec<Finding> =
            unread.into_iter().chain(errors).chain(warnings).chain(conflicts).collect();
        self.set_findings(key, Findings { origin: origin.clone(), findings, serves_last_good });
    }

    fn set_findings(&mut self, key: &ObjectKey, new: Findings) {
        let changed = if new.findings.is_empty() {
            self.findings.remove(key).is_some()
        } else {
            let same = self.findings.get(key) == Some(&new);
            self.findings.insert(key.clone(), new);
            !same
        };
        if changed {
            self.fresh_findings.insert(key.clone());
        }
    }
}

/// Puts in what does not change.
fn own(settings: &Settings, config: MeshConfig) -> MeshConfig {
    MeshConfig { domain: settings.domain.clone(), cluster: settings.cluster.clone(), ..config }
}

/// Returns whether an object belongs to another revision than that of `names`. Only configuration can.
fn is_of_another(names: Option<&BTreeSet<String>>, object: &Object) -> bool {
    let Some(names) = names else { return false };
    let is_configuration = matches!(
        object,
        Object::VirtualService(_)
            | Object::DestinationRule(_)
            | Object::Gateway(_)
            | Object::ServiceEntry(_)
            | Object::WorkloadEntry(_)
            | Object::Sidecar(_)
            | Object::PeerAuthentication(_)
            | Object::ReferenceGrant(_)
    );
    let labels = object.metadata().and_then(|metadata| metadata.labels.as_ref());
    let revision = labels.and_then(|labels| labels.get(REVISION));
    is_configuration && revision.is_some_and(|revision| !names.contains(revision))
}

/// Returns whether nothing but its name is known of an object.
fn is_unknown(object: &Object) -> bool {
    matches!(object, Object::Other(_))
}

/// Returns the key of an object of the API.
fn api_key(key: &ObjectKey) -> ApiKey {
    let (group, kind) = match key.kind {
        Kind::Service => ("", "Service"),
        Kind::EndpointSlice => ("discovery.k8s.io", "EndpointSlice"),
        Kind::Pod => ("", "Pod"),
        Kind::Node => ("", "Node"),
        Kind::Namespace => ("", "Namespace"),
        Kind::Secret => ("", "Secret"),
        Kind::ConfigMap => ("", "ConfigMap"),
        Kind::VirtualService => ("networking.istio.io", "VirtualService"),
        Kind::DestinationRule => ("networking.istio.io", "DestinationRule"),
        Kind::Gateway => ("networking.istio.io", "Gateway"),
        Kind::ServiceEntry => ("networking.istio.io", "ServiceEntry"),
        Kind::WorkloadEntry => ("networking.istio.io", "WorkloadEntry"),
        Kind::Sidecar => ("networking.istio.io", "Sidecar"),
        Kind::PeerAuthentication => ("security.istio.io", "PeerAuthentication"),
        Kind::ReferenceGrant => ("gateway.networking.k8s.io", "ReferenceGrant"),
        Kind::AuthorizationPolicy => ("security.istio.io", "AuthorizationPolicy"),
        Kind::RequestAuthentication => ("security.istio.io", "RequestAuthentication"),
        Kind::Telemetry => ("telemetry.istio.io", "Telemetry"),
        Kind::EnvoyFilter => ("networking.istio.io", "EnvoyFilter"),
        Kind::WorkloadGroup => ("networking.istio.io", "WorkloadGroup"),
        Kind::ProxyConfig => ("networking.istio.io", "ProxyConfig"),
        Kind::WasmPlugin => ("extensions.istio.io", "WasmPlugin"),
        Kind::TrafficExtension => ("extensions.istio.io", "TrafficExtension"),
    };
    ApiKey {
        group: group.into(),
        kind: kind.into(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
    }
}

/// Returns the key under which the mesh knows an object, or nothing for kinds that it does not.
pub fn model_key(key: &ApiKey) -> Option<ObjectKey> {
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
        ("gateway.networking.k8s.io", "ReferenceGrant") => Kind::ReferenceGrant,
        _ => return None,
    };
    Some(ObjectKey::new(kind, key.namespace.as_str(), key.name.as_str()))
}
