//! Compilation as questions and answers: what a memo must know to compile no more than it has to.
//!
//! A [`Query`] holds everything that a computation depends on besides the mesh, so equal queries have equal
//! answers in equal meshes. [`evaluate`] answers one; it asks further queries and reads the mesh through a
//! recording [`Mesh`], so whoever calls it knows all that the answer rests on. The push engine remembers answers;
//! [`snapshot`] answers from scratch, which is what the engine's result must equal byte for byte.
//!
//! ```text
//! Select(proxy) ─▶ Snapshot(selection) ─┬▶ OutboundAssignmentSet ─▶ AssignmentKey(cluster) ─▶ Assignment(key)
//!                                       └▶ AllButEndpoints ─┬▶ OutboundClusterSet ──▶ OutboundClusters(service) ─▶ Scope
//!                                                           ├▶ OutboundListenerSet ─▶ OutboundListener(key)
//!                                                           ├▶ OutboundRouteSet ────▶ Route(name)
//!                                                           └▶ OutboundSecretSet ───▶ Secret(name)
//! ```
//!
//! There are many selections, one for almost every workload, and few outbound audiences. So what goes through all
//! services is asked of an audience, and a snapshot adds the little that is a workload's own. Endpoints change far more often
//! than all else, so what a change of endpoints leaves alone is put together apart from them. Only endpoints and names
//! to be resolved depend on where a client is; all else is asked for a client that is
//! [anywhere](OutboundAudience::anywhere), so that zones share it.

use crate::audience::{GatewayAudience, InboundAudience, OutboundAudience, Selection};
use crate::endpoint::AssignmentKey;
use crate::listener::ListenerKey;
use crate::scope::{Scope, ScopeKey};
use crate::shared::Shared;
use crate::{cluster, endpoint, grpc, listener, route, scope, secret, select};
use imbl::ordmap::DiffItem;
use model::proxy::ProxyRole;
use model::service::Resolution;
use model::{Key, Mesh, MeshView, Proxy, ServiceKey, Str};
use proto::resource::{Needs, Resource, ResourceSet, ResourceType, Snapshot};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

/// A question to the compiler.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// What is decided about a proxy. Answered by [`Answer::Selection`].
    Select(Shared<Proxy>),
    /// Everything that proxies with this selection are sent. Answered by [`Answer::Snapshot`].
    Snapshot(Selection),
    /// The same without the assignments of clusters that others share. Answered by [`Answer::Snapshot`].
    AllButEndpoints(Selection),
    /// What a scope lets through. Answered by [`Answer::Scope`].
    Scope(ScopeKey),
    /// The clusters that proxies with the same outbound audience share. Answered by [`Answer::Set`], as are all sets.
    OutboundClusterSet(Shared<OutboundAudience>),
    /// The clusters of one service. Answered by [`Answer::Resources`], as are all that return several.
    OutboundClusters(Shared<OutboundAudience>, ServiceKey),
    /// The clusters that are not made from services.
    FixedClusters(Shared<OutboundAudience>),
    /// The clusters behind inbound listeners.
    InboundClusters(Shared<InboundAudience>),
    /// The clusters of gateways that pass TLS on by its server name.
    GatewayClusters(Shared<OutboundAudience>, Shared<GatewayAudience>),
    /// The assignments of the clusters that proxies with the same outbound audience share.
    OutboundAssignmentSet(Shared<OutboundAudience>),
    /// What the assignment of a cluster depends on. Answered by [`Answer::AssignmentKey`].
    AssignmentKey(Shared<OutboundAudience>, Str),
    /// An assignment. Answered by [`Answer::Resource`], as are all that return one.
    Assignment(Shared<AssignmentKey>),
    /// The listeners that proxies with the same outbound audience share.
    OutboundListenerSet(Shared<OutboundAudience>),
    /// One of them.
    OutboundListener(Shared<OutboundAudience>, ListenerKey),
    /// The listeners that are not made from services.
    FixedListeners(Shared<OutboundAudience>),
    /// The inbound listeners.
    InboundListeners(Shared<InboundAudience>, Shared<OutboundAudience>),
    /// The listeners of a gateway.
    GatewayListeners(Shared<OutboundAudience>, Shared<GatewayAudience>),
    /// The route configurations that shared listeners ask for.
    OutboundRouteSet(Shared<OutboundAudience>),
    /// One of them.
    Route(Shared<OutboundAudience>, Option<Shared<GatewayAudience>>, Str),
    /// The secrets that shared listeners and clusters ask for.
    OutboundSecretSet(Shared<OutboundAudience>),
    /// One of them.
    Secret(Shared<OutboundAudience>, Str),
}

impl Query {
    /// Returns whether a new answer to `below` changes nothing about this one's answer but what [`Answer::patched`] does.
    pub fn is_patched_by(&self, below: &Self) -> bool {
        // Which assignments there are, and whose they are, is asked separately.
        matches!((self, below), (Self::OutboundAssignmentSet(_), Self::Assignment(_)))
    }

    /// Returns an answer that holds nothing, of the variant that answers this query.
    fn empty_answer(&self) -> Answer {
        match self {
            Self::Select(proxy) => Answer::Selection(select::nothing(proxy)),
            Self::Snapshot(_) | Self::AllButEndpoints(_) => Answer::Snapshot(Arc::default()),
            Self::Scope(key) => Answer::Scope(Arc::new(Scope::nothing(key))),
            Self::OutboundClusterSet(_)
            | Self::OutboundAssignmentSet(_)
            | Self::OutboundListenerSet(_)
            | Self::OutboundRouteSet(_)
            | Self::OutboundSecretSet(_) => Answer::Set(ResourceSet::new()),
            Self::OutboundClusters(..)
            | Self::FixedClusters(_)
            | Self::InboundClusters(_)
            | Self::GatewayClusters(..)
            | Self::FixedListeners(_)
            | Self::InboundListeners(..)
            | Self::GatewayListeners(..) => Answer::Resources(Arc::from([])),
            Self::AssignmentKey(..) => Answer::AssignmentKey(None),
            Self::Assignment(_) | Self::OutboundListener(..) | Self::Route(..) | Self::Secret(..) => {
                Answer::Resource(None)
            }
        }
    }
}

/// Names the question for logs, without the audience.
impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Select(proxy) => write!(f, "selection of {}", proxy.node_id),
            Self::Snapshot(_) => f.write_str("snapshot"),
            Self::AllButEndpoints(_) => f.write_str("snapshot without endpoints"),
            Self::Scope(key) => match &key.sidecar {
                Some(sidecar) => write!(f, "scope of {sidecar}"),
                None => write!(f, "scope of namespace {}", key.namespace),
            },
            Self::OutboundClusterSet(_) => f.write_str("set of clusters"),
            Self::OutboundClusters(_, service) => write!(f, "clusters of {service}"),
            Self::FixedClusters(_) => f.write_str("fixed clusters"),
            Self::InboundClusters(_) => f.write_str("inbound clusters"),
            Self::GatewayClusters(..) => f.write_str("clusters of a gateway"),
            Self::OutboundAssignmentSet(_) => f.write_str("set of assignments"),
            Self::AssignmentKey(_, name) => write!(f, "choice of endpoints for {name}"),
            Self::Assignment(key) => write!(f, "assignment {}", key.cluster()),
            Self::OutboundListenerSet(_) => f.write_str("set of listeners"),
            Self::OutboundListener(_, key) => write!(f, "listener {}", key.name()),
            Self::FixedListeners(_) => f.write_str("fixed listeners"),
            Self::InboundListeners(..) => f.write_str("inbound listeners"),
            Self::GatewayListeners(..) => f.write_str("listeners of a gateway"),
            Self::OutboundRouteSet(_) => f.write_str("set of routes"),
            Self::Route(_, _, name) => write!(f, "route {name}"),
            Self::OutboundSecretSet(_) => f.write_str("set of secrets"),
            Self::Secret(_, name) => write!(f, "secret {name}"),
        }
    }
}

/// An answer of the compiler.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the queries say what is in them")]
pub enum Answer {
    Selection(Selection),
    Scope(Arc<Scope>),
    AssignmentKey(Option<Shared<AssignmentKey>>),
    Resource(Option<Arc<Resource>>),
    Resources(Arc<[Arc<Resource>]>),
    Set(ResourceSet),
    Snapshot(Arc<Snapshot>),
}

impl Answer {
    /// Returns this set with new forms of some of its resources. Nothing if that is not what it takes.
    pub fn patched(&self, changed: &[Self]) -> Option<Self> {
        let Self::Set(set) = self else { return None };
        let mut set = set.clone();
        for answer in changed {
            let Self::Resource(Some(resource)) = answer else { return None };
            set.insert(resource.name().clone(), resource.clone())?;
        }
        Some(Self::Set(set))
    }

    /// Returns whether nobody could tell the answers apart. Resources are compared by their versions, which are
    /// hashes of their bytes.
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Selection(a), Self::Selection(b)) => a == b,
            (Self::Scope(a), Self::Scope(b)) => a == b,
            (Self::AssignmentKey(a), Self::AssignmentKey(b)) => a == b,
            (Self::Resource(Some(a)), Self::Resource(Some(b))) => same_resource(a, b),
            (Self::Resource(a), Self::Resource(b)) => a.is_none() && b.is_none(),
            (Self::Resources(a), Self::Resources(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| same_resource(a, b))
            }
            (Self::Set(a), Self::Set(b)) => same_set(a, b),
            (Self::Snapshot(a), Self::Snapshot(b)) => same_snapshot(a, b),
            _ => false,
        }
    }
}

/// Returns whether a client could not tell the snapshots apart.
pub fn same_snapshot(a: &Arc<Snapshot>, b: &Arc<Snapshot>) -> bool {
    Arc::ptr_eq(a, b) || ResourceType::ALL.into_iter().all(|kind| same_set(a.of(kind), b.of(kind)))
}

fn same_resource(a: &Arc<Resource>, b: &Arc<Resource>) -> bool {
    Arc::ptr_eq(a, b) || (a.name() == b.name() && a.version() == b.version())
}

fn same_set(a: &ResourceSet, b: &ResourceSet) -> bool {
    // What the sets share is not looked at.
    let same = |difference| match difference {
        DiffItem::Update { old: (_, old), new: (_, new) } => same_resource(old, new),
        DiffItem::Add(..) | DiffItem::Remove(..) => false,
    };
    a.ptr_eq(b) || (a.len() == b.len() && a.diff(b).all(same))
}

/// An answer with all that it rests on, besides the queries that were asked.
#[derive(Debug)]
pub struct Evaluated {
    /// The answer.
    pub answer: Answer,
    /// Every key that was read.
    pub reads: BTreeSet<Key>,
    /// Why there is no proper answer: a defect of the compiler met an input that nobody thought of. The answer
    /// is then the previous one, or else empty, so that the defect harms nothing but this one answer.
    pub failure: Option<String>,
}

/// Answers `query` in `view`. `previous` is an earlier answer to the same query, if there is one, with which
/// the new one shares what is the same. `ask` answers further queries.
pub fn evaluate(
    view: &MeshView,
    query: &Query,
    previous: Option<&Answer>,
    ask: &mut dyn FnMut(&Query) -> Answer,
) -> Evaluated {
    let mesh = Mesh::new(view);
    // Nothing that a panic could leave half done outlives it: the evaluation is given up as a whole.
    let result =
        panic::catch_unwind(AssertUnwindSafe(|| Evaluation { mesh: &mesh, previous, ask }.answer(query)));
    let (answer, failure) = match result {
        Ok(answer) => (answer, None),
        Err(payload) => {
            let reason = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("panicked");
            (previous.cloned().unwrap_or_else(|| query.empty_answer()), Some(reason.to_owned()))
        }
    };
    Evaluated { answer, reads: mesh.into_reads(), failure }
}

/// Compiles everything for `proxy` from scratch.
pub fn snapshot(view: &MeshView, proxy: &Shared<Proxy>) -> (Selection, Arc<Snapshot>) {
    let mut answers = HashMap::new();
    let selection = match recompute(view, &mut answers, &Query::Select(proxy.clone())) {
        Answer::Selection(selection) => selection,
        other => mismatch(&other),
    };
    match recompute(view, &mut answers, &Query::Snapshot(selection.clone())) {
        Answer::Snapshot(snapshot) => (selection, snapshot),
        other => mismatch(&other),
    }
}

fn recompute(view: &MeshView, answers: &mut HashMap<Query, Answer>, query: &Query) -> Answer {
    if let Some(answer) = answers.get(query) {
        return answer.clone();
    }
    let Evaluated { answer, .. } = evaluate(view, query, None, &mut |below| recompute(view, answers, below));
    answers.insert(query.clone(), answer.clone());
    answer
}

/// Each query documents the variant that answers it, and [`Evaluation::answer`] is the only source of answers.
fn mismatch(answer: &Answer) -> ! {
    unreachable!("an answer of another query: {answer:?}")
}

struct Evaluation<'a, 'm> {
    mesh: &'m Mesh<'a>,
    previous: Option<&'m Answer>,
    ask: &'m mut dyn FnMut(&Query) -> Answer,
}

impl Evaluation<'_, '_> {
    fn answer(&mut self, query: &Query) -> Answer {
        match query {
            Query::Select(proxy) => Answer::Selection(select::select(self.mesh, proxy)),
            Query::Snapshot(selection) => self.snapshot(selection),
            Query::AllButEndpoints(selection) => self.all_but_endpoints(selection),
            Query::Scope(key) => Answer::Scope(Arc::new(scope::scope(self.mesh, key))),
            Query::OutboundClusterSet(audience) => self.outbound_cluster_set(audience),
            Query::OutboundClusters(audience, service) => {
                let scope = self.scope(&audience.scope);
                several(cluster::outbound(self.mesh, &scope, audience, service))
            }
            Query::FixedClusters(audience) => {
                let scope = self.scope(&audience.scope);
                several(cluster::fixed(self.mesh, &scope, audience))
            }
            Query::InboundClusters(audience) => {
                let scope = self.scope(&audience.scope);
                several(cluster::inbound(self.mesh, &scope, audience))
            }
            Query::GatewayClusters(audience, gateway) => {
                let scope = self.scope(&audience.scope);
                several(cluster::gateway(self.mesh, &scope, audience, gateway))
            }
            Query::OutboundAssignmentSet(audience) => self.outbound_assignment_set(audience),
            Query::AssignmentKey(audience, name) => {
                let scope = self.scope(&audience.scope);
                Answer::AssignmentKey(endpoint::select(self.mesh, &scope, audience, name).map(Shared::new))
            }
            Query::Assignment(key) => Answer::Resource(Some(Arc::new(endpoint::assignment(self.mesh, key)))),
            Query::OutboundListenerSet(audience) => self.outbound_listener_set(audience),
            Query::OutboundListener(audience, key) => {
                let scope = self.scope(&audience.scope);
                Answer::Resource(listener::outbound(self.mesh, &scope, audience, key).map(Arc::new))
            }
            Query::FixedListeners(audience) => {
                let scope = self.scope(&audience.scope);
                several(listener::fixed(self.mesh, &scope, audience))
            }
            Query::InboundListeners(audience, outbound) => {
                let scope = self.scope(&audience.scope);
                several(listener::inbound(self.mesh, &scope, audience, outbound))
            }
            Query::GatewayListeners(audience, gateway) => {
                let scope = self.scope(&audience.scope);
                several(listener::gateway(self.mesh, &scope, audience, gateway))
            }
            Query::OutboundRouteSet(audience) => self.outbound_route_set(audience),
            Query::Route(audience, gateway, name) => {
                let scope = self.scope(&audience.scope);
                let route = match (audience.role, gateway) {
                    (ProxyRole::Grpc, _) => route::grpc(self.mesh, &scope, audience, name),
                    (_, Some(gateway)) => route::gateway(self.mesh, &scope, audience, gateway, name),
                    (_, None) => route::outbound(self.mesh, &scope, audience, name),
                };
                Answer::Resource(route.map(Arc::new))
            }
            Query::OutboundSecretSet(audience) => self.outbound_secret_set(audience),
            Query::Secret(audience, name) => {
                Answer::Resource(secret::secret(self.mesh, audience, name).map(Arc::new))
            }
        }
    }

    fn snapshot(&mut self, selection: &Selection) -> Answer {
        let shared = self.set(&Query::OutboundAssignmentSet(selection.outbound.clone()));
        let rest = match (self.ask)(&Query::AllButEndpoints(selection.clone())) {
            Answer::Snapshot(rest) => rest,
            other => mismatch(&other),
        };
        let mut assignments = with(shared, rest.assignments.values().cloned());
        // The other sets are those of the previous answer already, as far as they are the same.
        if let Some(Answer::Snapshot(previous)) = self.previous
            && !rest.assignments.is_empty()
            && same_set(&previous.assignments, &assignments)
        {
            assignments.clone_from(&previous.assignments);
        }
        Answer::Snapshot(Arc::new(Snapshot { assignments, ..(*rest).clone() }))
    }

    fn all_but_endpoints(&mut self, selection: &Selection) -> Answer {
        let outbound = &selection.outbound;
        let anywhere = outbound.anywhere();
        let own_clusters = self.own_clusters(selection);
        let own_listeners = self.own_listeners(selection, &anywhere);
        let shared_clusters = self.set(&Query::OutboundClusterSet(outbound.clone()));
        let clusters = with(shared_clusters, own_clusters.iter().cloned());
        let shared_listeners = self.set(&Query::OutboundListenerSet(anywhere.clone()));
        let listeners = with(shared_listeners, own_listeners.iter().cloned());

        let mut assignments = ResourceSet::new();
        for name in names(&own_clusters, |needs| &needs.assignments) {
            let assignment = self.assignment_of(outbound, &name);
            add(&mut assignments, assignment);
        }
        // A gateway has its own form of every route.
        let gateway = selection.gateway.clone();
        let (mut routes, asking): (_, Vec<Arc<Resource>>) = match gateway {
            Some(_) => (ResourceSet::new(), listeners.values().cloned().collect()),
            None => (self.set(&Query::OutboundRouteSet(anywhere.clone())), own_listeners.clone()),
        };
        for name in names(&asking, |needs| &needs.routes) {
            let route = self.resource(&Query::Route(anywhere.clone(), gateway.clone(), name));
            add(&mut routes, route);
        }
        let mut secrets = self.set(&Query::OutboundSecretSet(outbound.clone()));
        let own = [own_clusters, own_listeners].concat();
        for name in names(&own, |needs| &needs.secrets) {
            let secret = self.resource(&Query::Secret(anywhere.clone(), name));
            add(&mut secrets, secret);
        }
        let all = Snapshot { clusters, assignments, listeners, routes, secrets, ..Snapshot::default() };
        Answer::Snapshot(Arc::new(self.sharing(all)))
    }

    /// Returns the snapshot with the sets of the previous answer where they are the same.
    fn sharing(&self, mut snapshot: Snapshot) -> Snapshot {
        if let Some(Answer::Snapshot(previous)) = self.previous {
            for kind in ResourceType::ALL {
                if same_set(previous.of(kind), snapshot.of(kind)) {
                    snapshot.of_mut(kind).clone_from(previous.of(kind));
                }
            }
        }
        snapshot
    }

    fn own_clusters(&mut self, selection: &Selection) -> Vec<Arc<Resource>> {
        let Selection { outbound, inbound, gateway } = selection;
        let mut own = Vec::new();
        if let Some(inbound) = inbound {
            own.extend(self.resources(&Query::InboundClusters(inbound.clone())).iter().cloned());
        }
        if let Some(gateway) = gateway {
            let query = Query::GatewayClusters(outbound.clone(), gateway.clone());
            own.extend(self.resources(&query).iter().cloned());
        }
        own
    }

    fn outbound_cluster_set(&mut self, audience: &Shared<OutboundAudience>) -> Answer {
        let scope = self.scope(&audience.scope);
        let anywhere = audience.anywhere();
        let mut all = self.resources(&Query::FixedClusters(anywhere.clone())).to_vec();
        for service in cluster::outbound_services(self.mesh, &scope, audience) {
            // Endpoints of a name are part of the cluster, and ranked by their distance.
            let resolves = self
                .mesh
                .service_row(&service)
                .is_some_and(|row| matches!(row.resolution, Resolution::Dns | Resolution::DnsRoundRobin));
            let audience = if resolves { audience } else { &anywhere };
            all.extend(self.resources(&Query::OutboundClusters(audience.clone(), service)).iter().cloned());
        }
        self.reconciled(all)
    }

    fn outbound_assignment_set(&mut self, audience: &Shared<OutboundAudience>) -> Answer {
        let clusters = self.set(&Query::OutboundClusterSet(audience.clone()));
        let mut all = Vec::new();
        for name in clusters.values().flat_map(|cluster| &cluster.needs().assignments) {
            all.extend(self.assignment_of(audience, name));
        }
        self.reconciled(all)
    }

    fn assignment_of(&mut self, audience: &Shared<OutboundAudience>, name: &Str) -> Option<Arc<Resource>> {
        let key = match (self.ask)(&Query::AssignmentKey(audience.clone(), name.clone())) {
            Answer::AssignmentKey(key) => key,
            other => mismatch(&other),
        };
        self.resource(&Query::Assignment(key?))
    }

    fn own_listeners(
        &mut self,
        selection: &Selection,
        anywhere: &Shared<OutboundAudience>,
    ) -> Vec<Arc<Resource>> {
        let mut own = Vec::new();
        if let Some(inbound) = &selection.inbound {
            let query = Query::InboundListeners(inbound.clone(), anywhere.clone());
            own.extend(self.resources(&query).iter().cloned());
        }
        if let Some(gateway) = &selection.gateway {
            let query = Query::GatewayListeners(anywhere.clone(), gateway.clone());
            own.extend(self.resources(&query).iter().cloned());
        }
        own
    }

    fn outbound_listener_set(&mut self, audience: &Shared<OutboundAudience>) -> Answer {
        let scope = self.scope(&audience.scope);
        if audience.role == ProxyRole::Grpc {
            let all = grpc::listeners(self.mesh, &scope, audience);
            return self.reconciled(all.into_iter().map(Arc::new).collect());
        }
        let mut all = self.resources(&Query::FixedListeners(audience.clone())).to_vec();
        for key in listener::outbound_plan(self.mesh, &scope, audience) {
            all.extend(self.resource(&Query::OutboundListener(audience.clone(), key)));
        }
        self.reconciled(all)
    }

    fn outbound_route_set(&mut self, audience: &Shared<OutboundAudience>) -> Answer {
        let names = self.needed(&[Query::OutboundListenerSet(audience.clone())], |needs| &needs.routes);
        let queries = names.into_iter().map(|name| Query::Route(audience.clone(), None, name));
        let all = queries.filter_map(|query| self.resource(&query)).collect();
        self.reconciled(all)
    }

    fn outbound_secret_set(&mut self, audience: &Shared<OutboundAudience>) -> Answer {
        let anywhere = audience.anywhere();
        let sets =
            [Query::OutboundListenerSet(anywhere.clone()), Query::OutboundClusterSet(audience.clone())];
        let names = self.needed(&sets, |needs| &needs.secrets);
        let queries = names.into_iter().map(|name| Query::Secret(anywhere.clone(), name));
        let all = queries.filter_map(|query| self.resource(&query)).collect();
        self.reconciled(all)
    }

    /// Returns the names of one kind that the resources of these sets need.
    fn needed(&mut self, sets: &[Query], of: impl Fn(&Needs) -> &BTreeSet<Str>) -> BTreeSet<Str> {
        let mut names = BTreeSet::new();
        for query in sets {
            let set = self.set(query);
            names.extend(set.values().flat_map(|resource| of(resource.needs()).iter().cloned()));
        }
        names
    }

    /// Makes a set of `resources`, the first of each name, sharing structure with the previous answer.
    fn reconciled(&self, resources: Vec<Arc<Resource>>) -> Answer {
        if let Some(Answer::Set(previous)) = self.previous
            && previous.len() == resources.len()
            && previous.keys().zip(&resources).all(|(name, resource)| name == resource.name())
        {
            let mut set = previous.clone();
            for (old, resource) in previous.values().zip(resources) {
                if !same_resource(old, &resource) {
                    set.insert(resource.name().clone(), resource);
                }
            }
            return Answer::Set(set);
        }
        let mut wanted: BTreeMap<Str, Arc<Resource>> = BTreeMap::new();
        for resource in resources {
            wanted.entry(resource.name().clone()).or_insert(resource);
        }
        let Some(Answer::Set(previous)) = self.previous else {
            return Answer::Set(wanted.into_iter().collect());
        };
        let mut set = previous.clone();
        for name in previous.keys().filter(|name| !wanted.contains_key(*name)) {
            set.remove(name);
        }
        for (name, resource) in wanted {
            if previous.get(&name).is_none_or(|old| !same_resource(old, &resource)) {
                set.insert(name, resource);
            }
        }
        Answer::Set(set)
    }

    fn scope(&mut self, key: &ScopeKey) -> Arc<Scope> {
        match (self.ask)(&Query::Scope(key.clone())) {
            Answer::Scope(scope) => scope,
            other => mismatch(&other),
        }
    }

    fn set(&mut self, query: &Query) -> ResourceSet {
        match (self.ask)(query) {
            Answer::Set(set) => set,
            other => mismatch(&other),
        }
    }

    fn resource(&mut self, query: &Query) -> Option<Arc<Resource>> {
        match (self.ask)(query) {
            Answer::Resource(resource) => resource,
            other => mismatch(&other),
        }
    }

    fn resources(&mut self, query: &Query) -> Arc<[Arc<Resource>]> {
        match (self.ask)(query) {
            Answer::Resources(resources) => resources,
            other => mismatch(&other),
        }
    }
}

fn several(resources: Vec<Resource>) -> Answer {
    Answer::Resources(resources.into_iter().map(Arc::new).collect())
}

/// Returns the names of one kind that `resources` need.
fn names(resources: &[Arc<Resource>], of: impl Fn(&Needs) -> &BTreeSet<Str>) -> BTreeSet<Str> {
    resources.iter().flat_map(|resource| of(resource.needs()).iter().cloned()).collect()
}

/// Adds a resource unless there is one of its name.
fn add(set: &mut ResourceSet, resource: Option<Arc<Resource>>) {
    if let Some(resource) = resource {
        set.entry(resource.name().clone()).or_insert(resource);
    }
}

/// Adds the few resources that are a proxy's own to a set that it shares with others.
fn with(mut shared: ResourceSet, own: impl Iterator<Item = Arc<Resource>>) -> ResourceSet {
    for resource in own {
        shared.entry(resource.name().clone()).or_insert(resource);
    }
    shared
}
