//! `weftctl translate`.

use crate::{case, mesh};
use anyhow::{Context as _, Result};
use compile::query;
use proto::json;
use proto::resource::{ResourceSet, ResourceType};
use serde_json::{Map, Value, json};
use std::io::Write as _;
use std::path::PathBuf;

/// What to compile, and for whom.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The manifests: a file, or a directory that is read with all below it
    #[arg(long, value_name = "FILE_OR_DIR")]
    objects: PathBuf,
    /// The proxies (`proxies`: name, type, ip, namespace, id, labels, locality, metadata) and the mesh configuration
    /// (`meshConfig`), as YAML
    #[arg(long, value_name = "FILE")]
    case: PathBuf,
}

/// Prints what each proxy gets.
pub(crate) fn run(args: &Args) -> Result<()> {
    let case = case::Case::read(&args.case)?;
    let view = mesh::load(&args.objects, &case.mesh_config, case::DOMAIN, false)?;
    let mut output = Map::new();
    for proxy in case.proxies.iter().chain(&case.proxy) {
        let (_, snapshot) = query::snapshot(&view, &proxy.parse()?);
        let list = |kind| list(snapshot.of(kind), kind);
        let resources = json!({
            "clusters": list(ResourceType::Cluster)?,
            "listeners": list(ResourceType::Listener)?,
            "routes": list(ResourceType::RouteConfiguration)?,
            "endpoints": list(ResourceType::ClusterLoadAssignment)?,
        });
        output.insert(proxy.name.clone(), resources);
    }
    let text = serde_json::to_string_pretty(&output)?;
    writeln!(std::io::stdout().lock(), "{text}").context("cannot write the result")
}

fn list(set: &ResourceSet, kind: ResourceType) -> Result<Vec<Value>> {
    let resources = set.values();
    resources.map(|resource| Ok(json::to_json(kind.type_url(), resource.bytes())?)).collect()
}
