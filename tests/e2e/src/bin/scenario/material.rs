//! What proxies of a scenario find around them: certificates that its gateways ask for, and folders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};
use testkit::rig::pki::{Authority, Identity};

/// Logs to a file.
const FILE_LOG: &str = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";

/// What a proxy is told to read or write on its disk.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Files {
    /// Files to be read: their kind, which is the field of the message that names them, by path.
    read: BTreeMap<PathBuf, String>,
    /// Files and sockets to be made.
    written: BTreeSet<PathBuf>,
}

impl Files {
    /// Collects what compiled resources name.
    pub(crate) fn named_by(compiled: &Value) -> Self {
        let mut files = Self::default();
        files.collect("", compiled);
        files
    }

    fn collect(&mut self, kind: &str, value: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(path) = fields.get("filename").and_then(Value::as_str) {
                    self.read.insert(path.into(), kind.to_owned());
                }
                let is_log = fields.get("@type").is_some_and(|name| name == FILE_LOG);
                if let Some(path) = fields.get("path").and_then(Value::as_str)
                    && (is_log || kind == "pipe")
                {
                    self.written.insert(path.into());
                }
                fields.iter().for_each(|(name, field)| self.collect(name, field));
            }
            Value::Array(items) => items.iter().for_each(|item| self.collect(kind, item)),
            _ => {}
        }
    }

    /// Returns the folders that have to be there and are not.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        let parents = self.read.keys().chain(&self.written).filter_map(|path| path.parent());
        let missing = parents.filter(|parent| parent.is_absolute() && !parent.exists());
        missing.map(Path::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Writes what is to be read, into folders that are there.
    pub(crate) fn write(&self, authority: &Authority, identity: &Identity) -> anyhow::Result<()> {
        for (path, kind) in &self.read {
            let text = match kind.as_str() {
                "certificateChain" => &identity.certificate_pem,
                "privateKey" => &identity.key_pem,
                "trustedCa" => &authority.certificate_pem(),
                "crl" => &authority.revocation_list_pem(),
                // What else there is comes with the system.
                _ => continue,
            };
            if !path.exists() {
                fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Returns manifests of the Secrets that are asked for by `kubernetes://` names in what is compiled for each proxy.
/// Scenarios have none, since none of their outcomes depends on one; a listener that waits for its certificate would
/// not be active.
pub(crate) fn secrets(nodes: &Value, compiled: &Value, authority: &Authority, identity: &Identity) -> String {
    let mut wanted = BTreeSet::new();
    for (proxy, resources) in compiled.as_object().into_iter().flatten() {
        let mut names = BTreeSet::new();
        find_names(resources, &mut names);
        let own = namespace(&nodes[proxy]);
        for name in names {
            let (namespace, name) = name.split_once('/').unwrap_or((&own, &name));
            let name = name.strip_suffix("-cacert").unwrap_or(name);
            wanted.insert((namespace.to_owned(), name.to_owned()));
        }
    }
    let data = BTreeMap::from([("tls.crt", &identity.certificate_pem), ("tls.key", &identity.key_pem)]);
    let roots = authority.certificate_pem();
    let mut text = String::new();
    for (namespace, name) in wanted {
        let mut data: BTreeMap<&str, &str> = data.iter().map(|(key, pem)| (*key, pem.as_str())).collect();
        data.insert("ca.crt", &roots);
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": name, "namespace": namespace },
            "type": "kubernetes.io/tls",
            "stringData": data,
        });
        text.push_str(&format!("---\n{secret}\n"));
    }
    text
}

/// Returns whether a proxy may have a secret: those of other namespaces are nobody's to ask for.
pub(crate) fn may_have(node: &Value, secret: &str) -> bool {
    let path = secret.strip_prefix("kubernetes://").unwrap_or(secret);
    path.split_once('/').is_none_or(|(other, _)| other == namespace(node))
}

/// Collects the names of secrets that are to be asked for over ADS, without their scheme.
fn find_names(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            let name = value["name"].as_str().and_then(|name| name.strip_prefix("kubernetes://"));
            if let Some(name) = name.filter(|_| value["sdsConfig"]["ads"].is_object()) {
                names.insert(name.to_owned());
            }
            fields.values().for_each(|field| find_names(field, names));
        }
        Value::Array(items) => items.iter().for_each(|item| find_names(item, names)),
        _ => {}
    }
}

/// Returns the namespace that a proxy says it is in.
fn namespace(node: &Value) -> String {
    let said = node["metadata"]["NAMESPACE"].as_str();
    said.unwrap_or("default").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_the_field_that_names_them() {
        let files = Files::named_by(&json!({ "clusters": [
            { "crl": { "filename": "/nowhere/certs/a.crl" }, "address": { "pipe": { "path": "/nowhere/run/s" } } },
            { "typedConfig": { "@type": FILE_LOG, "path": "/dev/stdout" }, "match": { "path": "/nowhere/else" } },
        ] }));
        assert_eq!(files.read, BTreeMap::from([(PathBuf::from("/nowhere/certs/a.crl"), "crl".to_owned())]));
        assert_eq!(files.folders(), [PathBuf::from("/nowhere/certs"), PathBuf::from("/nowhere/run")]);
    }

    #[test]
    fn each_credential_becomes_a_secret_where_it_is_looked_for() {
        let ads = json!({ "ads": {} });
        let compiled = json!({ "gw": { "listeners": [{ "a": [
            { "name": "kubernetes://shop", "sdsConfig": ads },
            { "name": "kubernetes://shop-cacert", "sdsConfig": ads },
            { "name": "kubernetes://certs/org", "sdsConfig": ads },
            { "name": "default", "sdsConfig": { "apiConfigSource": {} } },
        ] }] } });
        let nodes = json!({ "gw": { "metadata": { "NAMESPACE": "istio-system" } } });
        let authority = Authority::new("test");
        let text = secrets(&nodes, &compiled, &authority, &authority.issue("a", &["a.example.com"]));
        let documents: Vec<Value> = text
            .split("---\n")
            .filter(|document| !document.is_empty())
            .map(|document| serde_json::from_str(document).unwrap())
            .collect();
        let names: Vec<String> = documents
            .iter()
            .map(|secret| format!("{}/{}", secret["metadata"]["namespace"], secret["metadata"]["name"]))
            .collect();
        assert_eq!(names, ["\"certs\"/\"org\"", "\"istio-system\"/\"shop\""]);
    }
}
