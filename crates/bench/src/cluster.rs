//! A real API server that holds the manifests of a mesh.

use crate::mesh::File;
use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt, stream};
// The client does not build without it and a version of its own.
use k8s_openapi as _;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use testkit::rig::{ApiServer, Etcd};

/// How many objects are written at a time while the mesh is made.
const AT_ONCE: usize = 32;
/// The owner of the fields that are written.
const MANAGER: &str = "bench";

/// etcd and kube-apiserver, ours and gone on drop, and one connection to them.
pub(crate) struct Cluster {
    client: Client,
    server: ApiServer,
    _etcd: Etcd,
}

impl Cluster {
    /// Starts it with these manifests.
    pub(crate) async fn start(files: Vec<File>) -> anyhow::Result<Self> {
        let etcd = Etcd::start()?;
        let server = ApiServer::start(&etcd)?;
        server.install_definitions()?;

        let kubeconfig = Kubeconfig::read_from(server.kubeconfig())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let cluster = Self { client: Client::try_from(config)?, server, _etcd: etcd };
        let objects = objects(&files)?;
        // weftd keeps its authority in a namespace of its own, and is not ready without.
        let own = std::iter::once("istio-system");
        let namespaces: BTreeSet<&str> = objects.iter().filter_map(namespace).chain(own).collect();
        let namespaces = namespaces
            .into_iter()
            .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        cluster.apply(namespaces.collect()).await?;
        cluster.apply(objects).await?;
        Ok(cluster)
    }

    /// Returns the kubeconfig of an administrator.
    pub(crate) fn kubeconfig(&self) -> &Path {
        self.server.kubeconfig()
    }

    /// Writes the objects of manifests, in this order.
    pub(crate) async fn write(&self, files: &[File]) -> anyhow::Result<()> {
        for object in objects(files)? {
            self.apply_one(&object).await?;
        }
        Ok(())
    }

    async fn apply(&self, objects: Vec<Value>) -> anyhow::Result<()> {
        let each = objects.iter().map(|object| self.apply_one(object));
        stream::iter(each).buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn apply_one(&self, object: &Value) -> anyhow::Result<()> {
        let (version, kind) = (text(object, "apiVersion"), text(object, "kind"));
        let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = match namespace(object) {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let name = text(&object["metadata"], "name");
        let params = PatchParams::apply(MANAGER).force();
        let described = || format!("cannot write {kind} {name}");
        api.patch(name, &params, &Patch::Apply(object)).await.with_context(described)?;
        if object.get("status").is_some() {
            api.patch_status(name, &params, &Patch::Apply(object)).await.with_context(described)?;
        }
        Ok(())
    }
}

fn objects(files: &[File]) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for (name, text) in files {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).with_context(|| format!("cannot read {name}"))?;
        ensure!(!documents.is_empty(), "{name} is empty");
        objects.extend(documents);
    }
    Ok(objects)
}

fn namespace(object: &Value) -> Option<&str> {
    object["metadata"]["namespace"].as_str()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}
