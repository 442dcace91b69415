//! What a proxy sees: the services and rules that its Sidecar (or the absence of one) leaves visible.

use model::service::Registry;
use model::sidecar::{
    CaptureMode, EgressHost, EgressListener, EgressNamespace, OutboundMode, OutboundTrafficPolicy,
    SidecarPort,
};
use model::view::{ServiceRow, VirtualServiceRow};
use model::virtual_service::GatewayRef;
use model::{ExportTo, Hostname, Labels, Mesh, Namespace, ObjectKey, Protocol, ServiceKey, Sidecar, Str};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Identifies a scope: proxies with equal keys see the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeKey {
    /// The proxies' namespace.
    pub namespace: Namespace,
    /// The Sidecar that applies to them; none for the default scope (everything exported to the namespace).
    pub sidecar: Option<ObjectKey>,
    /// Whether they are gateways, which take no Sidecar.
    pub gateway: bool,
}

/// What is visible in a scope. Holds identities only: whoever wants contents reads them from the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The scope's key.
    pub key: ScopeKey,
    /// The outbound listeners, in the Sidecar's order with the one without a port last. A default scope has a
    /// single one without a port. VirtualServices that gateways use are in a gateway's scope as well.
    pub egress: Vec<EgressScope>,
    /// Every visible service by host, over all listeners, those pulled in by VirtualServices included.
    pub services: BTreeMap<Hostname, ScopedService>,
    /// The services of `services`, in order of age (the order in which conflicts are settled).
    pub service_order: Vec<ServiceKey>,
    /// What happens to traffic that no service claims.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
}

impl Scope {
    /// Returns a scope in which nothing is visible.
    pub(crate) fn nothing(key: &ScopeKey) -> Self {
        Self {
            key: key.clone(),
            egress: Vec::new(),
            services: BTreeMap::new(),
            service_order: Vec::new(),
            outbound_traffic_policy: OutboundTrafficPolicy {
                mode: OutboundMode::RegistryOnly,
                egress_proxy: None,
            },
        }
    }

    /// Returns the service that `host` stands for in this scope.
    pub fn service(&self, host: &Hostname) -> Option<&ServiceKey> {
        self.services.get(host).map(|service| &service.key)
    }
}

/// A visible service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopedService {
    /// Which one: the same host may exist in several namespaces.
    pub key: ServiceKey,
    /// The only ports that are visible; none for all.
    pub ports: Option<Vec<u16>>,
}

/// An outbound listener of a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressScope {
    /// Its port; none for all ports.
    pub port: Option<SidecarPort>,
    /// The address it binds.
    pub bind: Option<Str>,
    /// How traffic reaches it.
    pub capture_mode: CaptureMode,
    /// The services behind it, oldest first.
    pub services: Vec<ScopedService>,
    /// The VirtualServices that apply behind it, in order of precedence: the proxies' own namespace's first
    /// where Istio says so, then by age.
    pub virtual_services: Vec<ObjectKey>,
}

/// Returns the key of the scope of a proxy in `namespace` whose workload has `labels`.
///
/// A Sidecar of the namespace that selects the workload comes first, then one without selector, then the root
/// namespace's without selector; the oldest wins at each step. Gateways take none.
pub fn select(mesh: &Mesh<'_>, namespace: &Namespace, labels: &Labels, gateway: bool) -> ScopeKey {
    let key = |sidecar| ScopeKey { namespace: namespace.clone(), sidecar, gateway };
    if gateway {
        return key(None);
    }
    let oldest = |namespace: &Namespace, applies: &dyn Fn(&Sidecar) -> bool| {
        mesh.sidecars(namespace)
            .filter(|sidecar| applies(sidecar))
            .min_by(|a, b| a.meta.by_age(&b.meta))
            .map(|sidecar| sidecar.meta.key.clone())
    };
    let selected =
        |sidecar: &Sidecar| sidecar.selector.as_ref().is_some_and(|selector| selector.selects(labels));
    let general = |sidecar: &Sidecar| sidecar.selector.is_none();
    let root = &mesh.config().root_namespace;
    key(oldest(namespace, &selected)
        .or_else(|| oldest(namespace, &general))
        .or_else(|| oldest(root, &general)))
}

/// Returns what proxies with this key see.
pub fn scope(mesh: &Mesh<'_>, key: &ScopeKey) -> Scope {
    let visible = Visible::new(mesh, &key.namespace);
    let sidecar = key.sidecar.as_ref().and_then(|sidecar| {
        mesh.sidecars(&sidecar.namespace).find(|candidate| candidate.meta.key == *sidecar)
    });
    let egress: Vec<EgressScope> = match sidecar {
        Some(sidecar) if !sidecar.egress.is_empty() => {
            sidecar.egress.iter().map(|listener| visible.behind(listener, &key.namespace)).collect()
        }
        _ => vec![visible.everything(key.gateway, &key.namespace)],
    };
    let (services, service_order) = union(&visible, &egress, &key.namespace);
    let outbound_traffic_policy = sidecar
        .and_then(|sidecar| sidecar.outbound_traffic_policy.clone())
        .unwrap_or_else(|| mesh.config().outbound_traffic_policy.clone());
    Scope { key: key.clone(), egress, services, service_order, outbound_traffic_policy }
}

/// What is exported to a namespace, in order of precedence.
struct Visible<'a> {
    /// Those exported to this namespace by name first, then the public ones; by age in each group.
    services: Vec<&'a ServiceRow>,
    /// The namespace's own private ones, those exported to it by name, the public ones; by age in each group.
    rules: Vec<&'a VirtualServiceRow>,
}

impl<'a> Visible<'a> {
    fn new(mesh: &Mesh<'a>, namespace: &Namespace) -> Self {
        let public = |export_to: &ExportTo| matches!(export_to, ExportTo::All);
        let mut services: Vec<&ServiceRow> =
            mesh.services().map(AsRef::as_ref).filter(|row| row.export_to.includes(namespace)).collect();
        services
            .sort_by(|a, b| public(&a.export_to).cmp(&public(&b.export_to)).then_with(|| service_age(a, b)));
        let mut rules: Vec<&VirtualServiceRow> = mesh
            .virtual_services()
            .map(AsRef::as_ref)
            .filter(|row| row.export_to.includes(namespace))
            .collect();
        let rank = |row: &VirtualServiceRow| match public(&row.export_to) {
            true => 2,
            false => u8::from(row.key.namespace != *namespace),
        };
        rules.sort_by(|a, b| {
            rank(a)
                .cmp(&rank(b))
                .then_with(|| a.created.cmp(&b.created))
                .then_with(|| a.key.name.cmp(&b.key.name))
                .then_with(|| a.key.namespace.cmp(&b.key.namespace))
        });
        Self { services, rules }
    }

    /// The listener of a scope without Sidecar.
    fn everything(&self, gateway: bool, namespace: &Namespace) -> EgressScope {
        let best = best_by_host(self.services.iter().copied(), namespace);
        let services = self.services.iter().filter(|row| best.get(&row.key.host) == Some(&&row.key));
        let rules = self.rules.iter().filter(|row| gateway || row.gateways.contains(&GatewayRef::Mesh));
        EgressScope {
            port: None,
            bind: None,
            capture_mode: CaptureMode::Default,
            services: services.map(|row| whole(row)).collect(),
            virtual_services: rules.map(|row| row.key.clone()).collect(),
        }
    }

    /// What an egress listener of a Sidecar lets through for workloads of `namespace`.
    fn behind(&self, listener: &EgressListener, namespace: &Namespace) -> EgressScope {
        let hosts = Imports::new(listener, namespace);
        let imported: Vec<(&ServiceRow, ScopedService)> = self
            .services
            .iter()
            .filter(|row| hosts.import(&row.key.namespace, |host| row.key.host.is_within(host)))
            .filter_map(|row| Some((*row, at_listener_port(row, listener.port.as_ref())?)))
            .collect();
        let best = best_by_host(imported.iter().map(|(row, _)| *row), namespace);
        let services = imported
            .iter()
            .filter(|(row, _)| best.get(&row.key.host) == Some(&&row.key))
            .map(|(_, service)| service.clone())
            .collect();
        let virtual_services = self
            .rules
            .iter()
            .filter(|row| row.gateways.contains(&GatewayRef::Mesh))
            .filter(|row| {
                row.hosts.iter().any(|name| hosts.import(&row.key.namespace, |host| name.overlaps(host)))
            })
            .map(|row| row.key.clone())
            .collect();
        EgressScope {
            port: listener.port.clone(),
            bind: listener.bind.clone(),
            capture_mode: listener.capture_mode,
            services,
            virtual_services,
        }
    }

    /// The service that a rule's destination stands for: the own namespace's, else Kubernetes', else the first by
    /// namespace.
    fn destination(&self, host: &Hostname, namespace: &Namespace) -> Option<&'a ServiceRow> {
        self.services.iter().copied().filter(|row| row.key.host == *host).min_by_key(|row| {
            let foreign = row.key.namespace != *namespace;
            (foreign, row.registry != Registry::Kubernetes, &row.key.namespace)
        })
    }
}

/// The hosts of an egress listener, with `.` resolved.
struct Imports<'a>(Vec<(Option<&'a Namespace>, &'a Hostname)>);

impl<'a> Imports<'a> {
    fn new(listener: &'a EgressListener, own: &'a Namespace) -> Self {
        let resolve = |host: &'a EgressHost| match &host.namespace {
            EgressNamespace::Any => Some((None, &host.host)),
            EgressNamespace::Own => Some((Some(own), &host.host)),
            EgressNamespace::Only(namespace) => Some((Some(namespace), &host.host)),
            EgressNamespace::Nobody => None,
        };
        Self(listener.hosts.iter().filter_map(resolve).collect())
    }

    /// Returns whether a host of these that covers `namespace` satisfies `matches`.
    fn import(&self, namespace: &Namespace, matches: impl Fn(&Hostname) -> bool) -> bool {
        self.0.iter().any(|(only, host)| only.is_none_or(|only| only == namespace) && matches(host))
    }
}

/// Returns the service to be used for each host.
fn best_by_host<'a>(
    rows: impl Iterator<Item = &'a ServiceRow>,
    namespace: &Namespace,
) -> HashMap<&'a Hostname, &'a ServiceKey> {
    let mut best: HashMap<&Hostname, &ServiceRow> = HashMap::new();
    for row in rows {
        if best.get(&row.key.host).is_none_or(|held| is_better(row, held, namespace)) {
            best.insert(&row.key.host, row);
        }
    }
    best.into_iter().map(|(host, row)| (host, &row.key)).collect()
}

/// Returns whether `candidate` is to be used for its host rather than `held`, which came first: the proxies' own
/// namespace's service wins, then Kubernetes' (nobody may take over a Service's name), then the first.
fn is_better(candidate: &ServiceRow, held: &ServiceRow, namespace: &Namespace) -> bool {
    let rank = |row: &ServiceRow| (row.key.namespace != *namespace, row.registry != Registry::Kubernetes);
    rank(candidate) < rank(held)
}

fn whole(row: &ServiceRow) -> ScopedService {
    ScopedService { key: row.key.clone(), ports: None }
}

/// Returns the number of a listener's port if only services with that port belong behind it: a Unix socket has
/// none, and a listener that is an HTTP proxy serves every port.
fn only_port(port: Option<&SidecarPort>) -> Option<u16> {
    port.filter(|port| port.number != 0 && port.protocol != Protocol::HttpProxy).map(|port| port.number)
}

/// Returns the service as a listener sees it.
fn at_listener_port(row: &ServiceRow, port: Option<&SidecarPort>) -> Option<ScopedService> {
    match only_port(port) {
        Some(number) => row
            .ports
            .iter()
            .any(|candidate| candidate.port == number)
            .then(|| ScopedService { key: row.key.clone(), ports: Some(vec![number]) }),
        None => Some(whole(row)),
    }
}

/// Returns the service as a rule's destinations need it: only the ports that they name, if they all name one.
fn at_destination_ports(row: &ServiceRow, ports: &BTreeSet<Option<u16>>) -> Option<ScopedService> {
    if ports.contains(&None) {
        return Some(whole(row));
    }
    let named: Vec<u16> =
        row.ports.iter().map(|port| port.port).filter(|port| ports.contains(&Some(*port))).collect();
    (!named.is_empty()).then(|| ScopedService { key: row.key.clone(), ports: Some(named) })
}

/// Joins the services of all listeners, then adds those that only rules lead to.
fn union(
    visible: &Visible<'_>,
    egress: &[EgressScope],
    namespace: &Namespace,
) -> (BTreeMap<Hostname, ScopedService>, Vec<ServiceKey>) {
    let rows: HashMap<&ServiceKey, &ServiceRow> =
        visible.services.iter().map(|row| (&row.key, *row)).collect();
    let rules: HashMap<&ObjectKey, &VirtualServiceRow> =
        visible.rules.iter().map(|row| (&row.key, *row)).collect();
    let mut services: BTreeMap<Hostname, ScopedService> = BTreeMap::new();
    for listener in egress {
        for service in &listener.services {
            add(&mut services, service.clone(), &rows, namespace);
        }
        for rule in listener.virtual_services.iter().filter_map(|key| rules.get(key)) {
            let mut ports_of: BTreeMap<&Hostname, BTreeSet<Option<u16>>> = BTreeMap::new();
            for (host, port) in &rule.destinations {
                ports_of.entry(host).or_default().insert(*port);
            }
            for (host, ports) in ports_of {
                if services.contains_key(host) && listener.port.is_none() {
                    continue;
                }
                let Some(row) = visible.destination(host, namespace) else { continue };
                let scoped = match only_port(listener.port.as_ref()) {
                    Some(_) => at_listener_port(row, listener.port.as_ref()),
                    None => at_destination_ports(row, &ports),
                };
                if let Some(scoped) = scoped {
                    add(&mut services, scoped, &rows, namespace);
                }
            }
        }
    }
    let mut order: Vec<&ServiceRow> =
        services.values().filter_map(|service| rows.get(&service.key).copied()).collect();
    order.sort_by(|a, b| service_age(a, b));
    let order = order.into_iter().map(|row| row.key.clone()).collect();
    (services, order)
}

/// Adds a service unless its host is taken by another; the ports of the same one are joined.
fn add(
    services: &mut BTreeMap<Hostname, ScopedService>,
    service: ScopedService,
    rows: &HashMap<&ServiceKey, &ServiceRow>,
    namespace: &Namespace,
) {
    let Some(held) = services.get_mut(&service.key.host) else {
        services.insert(service.key.host.clone(), service);
        return;
    };
    if held.key == service.key {
        held.ports = match (held.ports.take(), service.ports) {
            (Some(mut ports), Some(more)) => {
                for port in more {
                    if !ports.contains(&port) {
                        ports.push(port);
                    }
                }
                Some(ports)
            }
            _ => None,
        };
    } else if let (Some(new), Some(old)) = (rows.get(&service.key), rows.get(&held.key))
        && is_better(new, old, namespace)
        && new.registry == Registry::Kubernetes
        && old.registry != Registry::Kubernetes
    {
        *held = service;
    }
}

/// Orders the older service first; ties go by name and namespace.
fn service_age(a: &ServiceRow, b: &ServiceRow) -> Ordering {
    let name = |row: &ServiceRow| match row.registry {
        Registry::Kubernetes => row.object.name.clone(),
        Registry::External => row.key.host.shared(),
    };
    a.created
        .cmp(&b.created)
        .then_with(|| name(a).cmp(&name(b)))
        .then_with(|| a.key.namespace.cmp(&b.key.namespace))
}
