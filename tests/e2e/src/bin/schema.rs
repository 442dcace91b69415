//! What a real API server with our definitions says of objects: `schema FILE` reads a JSON list of them, and prints one of
//! verdicts.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::rig::http::Request;
use testkit::rig::{ApiServer, Etcd};

fn main() -> ExitCode {
    e2e::exit(judge())
}

fn judge() -> anyhow::Result<()> {
    let file = std::env::args().nth(1).context("a file is expected")?;
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let objects: Vec<Value> = serde_json::from_str(&text).context("a JSON list of objects is expected")?;
    let etcd = Etcd::start()?;
    let server = ApiServer::start(&etcd)?;
    server.install_definitions()?;
    let namespaces: BTreeSet<&str> = objects.iter().map(namespace_of).collect();
    for namespace in namespaces.into_iter().filter(|name| *name != "default") {
        server.kubectl(&["create", "namespace", namespace])?;
    }
    let verdicts = objects.iter().map(|object| verdict(&server, object));
    println!("{}", Value::Array(verdicts.collect::<anyhow::Result<_>>()?));
    Ok(())
}

fn namespace_of(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or("default")
}

/// Creates an object as if, with unknown fields refused, as `kubectl create --dry-run=server --validate=strict` does.
fn verdict(server: &ApiServer, object: &Value) -> anyhow::Result<Value> {
    let (api, kind) = (text(object, "apiVersion")?, text(object, "kind")?.to_lowercase());
    let plural = match kind.strip_suffix('y').filter(|stem| !stem.ends_with('a')) {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    };
    let path =
        format!("/apis/{api}/namespaces/{}/{plural}?dryRun=All&fieldValidation=Strict", namespace_of(object));
    let request = Request::new("POST", &path).header("content-type", "application/json");
    let answer = server.request(&request.body(object.to_string()))?;
    let said = answer.json().unwrap_or_default();
    let is_verdict = matches!(answer.status, 201 | 400 | 422);
    ensure!(is_verdict, "{kind}: status {}: {}", answer.status, answer.text());
    Ok(json!({ "accepted": answer.status == 201, "message": said["message"] }))
}

fn text<'a>(object: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    object[field].as_str().with_context(|| format!("an object without {field}"))
}
