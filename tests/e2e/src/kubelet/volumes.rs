//! A pod's volumes, as folders.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::api::Api;
use super::{environment, text};

/// The folders of a pod's volumes.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    folders: BTreeMap<String, PathBuf>,
}

impl Volumes {
    /// Makes all volumes of a pod below `folder`.
    ///
    /// # Errors
    ///
    /// If one cannot be made, for example because a ConfigMap is not there yet: the kubelet would try again.
    pub(super) fn make(api: &Api<'_>, pod: &Value, folder: &Path) -> anyhow::Result<Self> {
        let mut volumes = Self::default();
        let group = pod["spec"]["securityContext"]["fsGroup"].as_u64();
        let group = group.and_then(|group| u32::try_from(group).ok());
        for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
            let name = text(&volume["name"]);
            let path = folder.join("volumes").join(name);
            fs::create_dir_all(&path)?;
            let maker = Maker { api, pod, path: &path, group };
            maker.fill(volume).with_context(|| format!("the volume {name}"))?;
            volumes.folders.insert(name.to_owned(), path);
        }
        Ok(volumes)
    }

    /// Returns what is mounted where.
    pub(super) fn mounts(&self, mounts: &Value) -> anyhow::Result<Vec<Value>> {
        let mount = |mount: &Value| {
            let name = text(&mount["name"]);
            let folder = self.folders.get(name).with_context(|| format!("there is no volume {name}"))?;
            let source = folder.join(text(&mount["subPath"]));
            let read_only = mount["readOnly"].as_bool().unwrap_or_default();
            Ok(json!({ "source": source, "target": mount["mountPath"], "read_only": read_only }))
        };
        mounts.as_array().into_iter().flatten().map(mount).collect()
    }
}

struct Maker<'a> {
    api: &'a Api<'a>,
    pod: &'a Value,
    path: &'a Path,
    group: Option<u32>,
}

impl Maker<'_> {
    fn fill(&self, volume: &Value) -> anyhow::Result<()> {
        let is = |kind: &str| volume[kind].is_object();
        if is("emptyDir") {
            fs::set_permissions(self.path, fs::Permissions::from_mode(0o2777))?;
            return Ok(chown(self.path, None, self.group)?);
        }
        if is("projected") {
            let mode = &volume["projected"]["defaultMode"];
            let sources = volume["projected"]["sources"].as_array().into_iter().flatten();
            return sources.into_iter().try_for_each(|source| self.project(source, mode));
        }
        if is("downwardAPI") {
            return self.downward(&volume["downwardAPI"], &volume["downwardAPI"]["defaultMode"]);
        }
        for (field, kind, name) in [("configMap", "configmaps", "name"), ("secret", "secrets", "secretName")]
        {
            if is(field) {
                let source = &volume[field];
                return self.data(kind, text(&source[name]), source, &source["defaultMode"]);
            }
        }
        bail!("{volume} is not understood here")
    }

    fn project(&self, source: &Value, mode: &Value) -> anyhow::Result<()> {
        if source["serviceAccountToken"].is_object() {
            return self.token(&source["serviceAccountToken"]);
        }
        if source["downwardAPI"].is_object() {
            return self.downward(&source["downwardAPI"], mode);
        }
        for (field, kind) in [("configMap", "configmaps"), ("secret", "secrets")] {
            if source[field].is_object() {
                return self.data(kind, text(&source[field]["name"]), &source[field], mode);
            }
        }
        bail!("{source} is not understood here")
    }

    /// Asks for a token of the pod's service account that is bound to the pod.
    fn token(&self, source: &Value) -> anyhow::Result<()> {
        let metadata = &self.pod["metadata"];
        let account = text(&self.pod["spec"]["serviceAccountName"]);
        let path =
            format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", text(&metadata["namespace"]));
        let audiences = source["audience"].as_str().map(|audience| [audience]);
        let bound =
            json!({ "apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"] });
        let answer = self.api.send(
            "POST",
            &path,
            &json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                "spec": {
                    "audiences": audiences, "expirationSeconds": source["expirationSeconds"], "boundObjectRef": bound,
                },
            }),
        )?;
        // As the kubelet does where users differ from container to container.
        let mode = if self.group.is_some() { 0o640 } else { 0o644 };
        self.write(text(&source["path"]), text(&answer["status"]["token"]).as_bytes(), mode)
    }

    fn downward(&self, source: &Value, mode: &Value) -> anyhow::Result<()> {
        for item in source["items"].as_array().into_iter().flatten() {
            let value = environment::field(self.pod, text(&item["fieldRef"]["fieldPath"]))?;
            self.write(text(&item["path"]), value.as_bytes(), bits(mode))?;
        }
        Ok(())
    }

    fn data(&self, kind: &str, name: &str, source: &Value, mode: &Value) -> anyhow::Result<()> {
        let namespace = text(&self.pod["metadata"]["namespace"]);
        let Some(data) = self.api.data(kind, namespace, name)? else {
            if source["optional"] == Value::Bool(true) {
                return Ok(());
            }
            bail!("there is no {name} in {kind} of {namespace}");
        };
        let Some(items) = source["items"].as_array() else {
            return data.iter().try_for_each(|(key, bytes)| self.write(key, bytes, bits(mode)));
        };
        for item in items {
            let key = text(&item["key"]);
            let bytes = data.get(key).with_context(|| format!("{name} has no {key}"))?;
            self.write(text(&item["path"]), bytes, bits(mode))?;
        }
        Ok(())
    }

    fn write(&self, path: &str, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
        let path = self.path.join(path);
        fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
        fs::write(&path, bytes)?;
        chown(&path, None, self.group)?;
        // Who is in the group may read.
        let mode = if self.group.is_some() { mode | 0o040 } else { mode };
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(mode))?)
    }
}

fn bits(mode: &Value) -> u32 {
    mode.as_u64().and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644)
}
