//! What single steps cost, cold: from objects to a view of the mesh, and from a view to encoded resources.
//!
//! Inputs are the manifests of other people's benchmarks, where they are beside the clone, and meshes of our own.

use crate::mesh::Mesh;
use anyhow::Context;
use compile::Shared;
use compile::audience::Selection;
use compile::query::{self, Answer, Query};
use index::{Index, Reset, Settings, Sourced};
use k8s_api::object::Object;
use k8s_api::yaml;
use model::{MeshView, Proxy};
use proto::envoy::config::core::v3::Node;
use proto::google::protobuf::value::Kind;
use proto::google::protobuf::{Struct, Value};
use proto::resource::{Resource, ResourceSet, ResourceType, Snapshot};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use xds::encode::{Encoder, Head};
use xds::session::Protocol;

/// The cluster's DNS domain.
const DOMAIN: &str = "cluster.local";

/// The address of the workload that is an instance of the first service of others' benchmarks.
const ADDRESS: &str = "1.1.1.1";

/// Something to be measured.
pub struct Case {
    /// Its name.
    pub name: String,
    /// The kinds in it that Weft does not read, so that its figures are of less work than they seem to be.
    pub ignored: BTreeSet<String>,
    /// The manifests.
    pub text: String,
    objects: Vec<Sourced>,
    view: Arc<MeshView>,
    proxy: Shared<Proxy>,
    selection: Selection,
    snapshot: Arc<Snapshot>,
    /// What is known before a generator runs: scopes, and for routes the listeners that ask for them.
    known: HashMap<Query, Answer>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// How many resources.
    pub resources: usize,
    /// Their bytes, encoded.
    pub bytes: usize,
}

impl Case {
    /// Makes a case of manifests, seen by the proxy that `node` describes.
    ///
    /// # Errors
    ///
    /// If the manifests are broken.
    pub fn new(name: &str, text: String, node: &Node) -> anyhow::Result<Self> {
        let (mut objects, mut ignored) = (Vec::new(), BTreeSet::new());
        for document in yaml::parse_documents(&text, name) {
            let document = document.with_context(|| format!("{name} is broken"))?;
            match document.object {
                Object::Other(_) => drop(ignored.insert(document.kind)),
                object => objects.push(Sourced::from_api(object)),
            }
        }
        let view = index(&objects);
        let proxy = Shared::new(compile::node::parse(node, DOMAIN).context("the node cannot be used")?);
        let (selection, snapshot) = query::snapshot(&view, &proxy);
        let mut case = Self {
            name: name.to_owned(),
            ignored,
            text,
            objects,
            view,
            proxy,
            selection,
            snapshot,
            known: HashMap::new(),
        };
        let scope = Query::Scope(case.selection.outbound.scope.clone());
        let answer = case.ask(&RefCell::default(), &scope);
        case.known.insert(scope, answer);
        Ok(case)
    }

    /// Reads the manifests and returns how many objects there are.
    pub fn parse(&self) -> usize {
        yaml::parse_documents(&self.text, &self.name).into_iter().filter(Result::is_ok).count()
    }

    /// Translates all objects and makes a view of them.
    pub fn index(&self) -> Arc<MeshView> {
        index(&self.objects)
    }

    /// Decides everything about the proxy.
    pub fn select(&self) -> Answer {
        self.ask(&RefCell::default(), &Query::Select(self.proxy.clone()))
    }

    /// Compiles and encodes all clusters.
    pub fn clusters(&self) -> Made {
        let Selection { outbound, inbound, gateway } = self.selection.clone();
        let shared = Query::OutboundClusterSet(outbound.clone());
        let inbound = inbound.map(Query::InboundClusters);
        let gateway = gateway.map(|gateway| Query::GatewayClusters(outbound, gateway));
        self.made(std::iter::once(shared).chain(inbound).chain(gateway))
    }

    /// Compiles and encodes all listeners.
    pub fn listeners(&self) -> Made {
        let Selection { outbound, inbound, gateway } = self.selection.clone();
        let anywhere = outbound.anywhere();
        let shared = Query::OutboundListenerSet(anywhere.clone());
        let inbound = inbound.map(|inbound| Query::InboundListeners(inbound, anywhere.clone()));
        let gateway = gateway.map(|gateway| Query::GatewayListeners(anywhere.clone(), gateway));
        self.made(std::iter::once(shared).chain(inbound).chain(gateway))
    }

    /// Compiles and encodes all route configurations that the listeners ask for.
    pub fn routes(&self) -> Made {
        let Selection { outbound, gateway, .. } = &self.selection;
        let anywhere = outbound.anywhere();
        let names = self.snapshot.routes.keys();
        self.made(names.map(|name| Query::Route(anywhere.clone(), gateway.clone(), name.clone())))
    }

    /// Answers queries, each that they rest on once.
    fn made(&self, queries: impl Iterator<Item = Query>) -> Made {
        let done = RefCell::default();
        queries.map(|query| made_of(&self.ask(&done, &query))).fold(Made::default(), |sum, one| Made {
            resources: sum.resources + one.resources,
            bytes: sum.bytes + one.bytes,
        })
    }

    /// Compiles and encodes all assignments, the clusters being known.
    pub fn endpoints(&self) -> Made {
        let outbound = &self.selection.outbound;
        let clusters = Answer::Set(self.snapshot.clusters.clone());
        let done = RefCell::new(HashMap::from([(Query::OutboundClusterSet(outbound.clone()), clusters)]));
        made_of(&self.ask(&done, &Query::OutboundAssignmentSet(outbound.clone())))
    }

    /// Frames a response with all resources of type `kind`, which are encoded already, for the first of many clients.
    pub fn frame(&self, kind: ResourceType) -> usize {
        let resources: Vec<&Resource> = self.snapshot.of(kind).values().map(Arc::as_ref).collect();
        let head = Head { protocol: Protocol::Delta, kind, version: "1", nonce: "1" };
        Encoder::new("bench", 64 << 20).frame(head, &resources, &[]).message_len()
    }

    /// Compiles everything for the proxy.
    pub fn everything(&self) -> Arc<Snapshot> {
        query::snapshot(&self.view, &self.proxy).1
    }

    /// Answers a query, and once each query that it rests on, unless the answer is known beforehand.
    fn ask(&self, done: &RefCell<HashMap<Query, Answer>>, query: &Query) -> Answer {
        if let Some(answer) = self.known.get(query) {
            return answer.clone();
        }
        if let Some(answer) = done.borrow().get(query) {
            return answer.clone();
        }
        let answer = query::evaluate(&self.view, query, None, &mut |below| self.ask(done, below)).answer;
        done.borrow_mut().insert(query.clone(), answer.clone());
        answer
    }
}

fn index(objects: &[Sourced]) -> Arc<MeshView> {
    let mut index = Index::new(Settings { domain: DOMAIN.into(), cluster: "Kubernetes".into() });
    index.reset(&Reset::Everything, objects.to_vec());
    index.publish().map_or_else(|| index.view(), |(view, _)| view)
}

fn made_of(answer: &Answer) -> Made {
    let of_set = |set: &ResourceSet| Made {
        resources: set.len(),
        bytes: set.values().map(|resource| resource.bytes().len()).sum(),
    };
    match answer {
        Answer::Set(set) => of_set(set),
        Answer::Resources(all) => {
            Made { resources: all.len(), bytes: all.iter().map(|resource| resource.bytes().len()).sum() }
        }
        Answer::Resource(Some(resource)) => Made { resources: 1, bytes: resource.bytes().len() },
        _ => Made::default(),
    }
}

/// Returns cases of our own, which are always there.
///
/// # Errors
///
/// If one is broken.
pub fn own_cases() -> anyhow::Result<Vec<Case>> {
    let mesh = Mesh { services: 100, endpoints: 10, namespaces: 5, zones: 3 };
    let text =
        |mesh: &Mesh| mesh.files().into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("\n---\n");
    let huge = Mesh { services: 1, endpoints: 1000, namespaces: 1, zones: 3 };
    Ok(vec![
        Case::new("own-sidecar", text(&mesh), &mesh.node(0))?,
        Case::new("own-huge-service", text(&huge), &huge.node(0))?,
    ])
}

/// Returns the cases in `directory`, called `NAME-SERVICES-INSTANCES.yaml`, by name.
///
/// # Errors
///
/// If one cannot be read.
pub fn cases_in(directory: &Path) -> anyhow::Result<Vec<Case>> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        let Some(stem) = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()) else { continue };
        let name = stem.rsplitn(3, '-').last().unwrap_or(&stem).to_owned();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // Waypoints belong to ambient mode, which is not there yet.
        if name != "waypoint" {
            let role = if name.contains("gateway") { "router" } else { "sidecar" };
            cases.push(Case::new(&name, text, &node(role))?);
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

/// The proxy of those cases.
fn node(role: &str) -> Node {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let labels = Struct { fields: [("istio.io/benchmark".to_owned(), text("true"))].into() };
    let labels = Value { kind: Some(Kind::StructValue(labels)) };
    let fields = [("LABELS", labels), ("NAMESPACE", text("default")), ("ISTIO_VERSION", text("1.32.0"))];
    Node {
        id: format!("{role}~{ADDRESS}~test.default~default.svc.{DOMAIN}"),
        metadata: Some(Struct { fields: fields.map(|(name, value)| (name.to_owned(), value)).into() }),
        ..Node::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_cases_make_what_a_proxy_gets() {
        for case in own_cases().unwrap() {
            let snapshot = case.everything();
            assert!(case.parse() > 0);
            assert_eq!(case.clusters().resources, snapshot.clusters.len(), "{case:?}");
            assert_eq!(case.listeners().resources, snapshot.listeners.len(), "{case:?}");
            assert_eq!(case.routes().resources, snapshot.routes.len(), "{case:?}");
            assert_eq!(case.endpoints().resources, snapshot.assignments.len(), "{case:?}");
            assert!(case.frame(ResourceType::Cluster) > case.clusters().bytes, "{case:?}");
            assert!(case.routes().bytes > 0 && case.endpoints().bytes > 0, "{case:?}");
        }
    }

    #[test]
    fn other_peoples_cases_make_something_too() {
        let Some(directory) = testkit::shared::path("bench") else { return };
        let cases = cases_in(&directory).unwrap();
        assert!(cases.len() >= 14);
        for case in cases {
            assert!(case.clusters().resources >= 3, "{case:?}");
            assert!(case.listeners().resources >= 1, "{case:?}");
            let has_routes = !matches!(case.name.as_str(), "tcp" | "tls");
            assert_eq!(case.routes().resources > 0, has_routes, "{case:?}");
        }
    }
}
