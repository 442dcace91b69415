//! `weftctl nodes`.

use crate::case;
use anyhow::{Context as _, Result};
use prost::{Message as _, Name as _};
use proto::envoy::config::core::v3::Node;
use proto::json;
use serde_json::{Map, Value, json};
use std::io::Write as _;
use std::path::PathBuf;

/// Whose nodes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The proxies (`proxies`: name, type, ip, namespace, id, labels, locality, metadata) and the mesh configuration
    /// (`meshConfig`), as YAML
    #[arg(long, value_name = "FILE")]
    case: PathBuf,
}

/// Prints the node of each proxy, for a bootstrap of Envoy, and the mesh configuration, for `weftd --mesh-config`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let case = case::Case::read(&args.case)?;
    let mut nodes = Map::new();
    for proxy in case.proxies.iter().chain(&case.proxy) {
        nodes.insert(proxy.name.clone(), node(&proxy.node())?);
    }
    let text = serde_json::to_string_pretty(&json!({ "meshConfig": case.mesh_config, "nodes": nodes }))?;
    writeln!(std::io::stdout().lock(), "{text}").context("cannot write the result")
}

fn node(node: &Node) -> Result<Value> {
    Ok(json::to_json(&Node::type_url(), &node.encode_to_vec())?)
}
