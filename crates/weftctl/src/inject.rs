//! `weftctl inject`.

use anyhow::{Context as _, Result, bail, ensure};
use inject::{Injected, NativeSidecars, Platform, Request, SkipReason, Workload, overlay};
use k8s_api::mesh_config::MeshConfig;
use k8s_api::yaml;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What to inject, and how.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The manifests
    #[arg(long, value_name = "FILE", required_unless_present = "decision")]
    objects: Option<PathBuf>,
    /// Settings (`values` of the chart, `meshConfig`, `revision`, `nodes`: versions of kubelets), as YAML; a later file is
    /// merged over an earlier one
    #[arg(long = "case", value_name = "FILE")]
    cases: Vec<PathBuf>,
    /// Inject the pods that the workloads would create, as the webhook would, instead of the workloads
    #[arg(long)]
    admission: bool,
    /// Print what was done to which pod, with the patch, instead of manifests, and check that doing it twice is the same
    #[arg(long)]
    report: bool,
    /// Only decide: whether a `pod` gets a proxy, or whether `kubeletVersions` allow a native sidecar
    #[arg(long, value_name = "FILE", conflicts_with_all = ["objects", "admission", "report"])]
    decision: Option<PathBuf>,
}

/// The settings of a run.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Settings {
    values: Value,
    components: Value,
    mesh_config: Value,
    revision: Option<String>,
    cluster_id: Option<String>,
    injection_policy: Option<String>,
    nodes: Vec<String>,
    platform: Option<String>,
    features: Features,
    namespaces: BTreeMap<String, Namespace>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Features {
    native_sidecars: Option<String>,
    compliance_policy: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    annotations: BTreeMap<String, String>,
}

/// Prints manifests with proxies.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(path) = &args.decision {
        return print(&decision(&read(path)?)?);
    }
    let mut written = json!({});
    for path in &args.cases {
        overlay(&mut written, read(path)?);
    }
    let run: Settings = serde_json::from_value(written).context("the settings are not understood")?;
    let injector = Injector::new(run, args.report)?;
    let path = args.objects.as_deref().context("no manifests")?;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut documents = yaml::parse_values(&text, &path.display().to_string())?;
    let mut report = Vec::new();
    for (index, document) in documents.iter_mut().enumerate() {
        injector.document(document, index, args.admission, &mut report)?;
    }
    for note in report.iter().flat_map(|entry| entry.notes()) {
        eprintln!("{note}");
    }
    if args.report {
        let entries: Vec<Value> = report.iter().map(Done::to_json).collect();
        return print(&Value::Array(entries));
    }
    ensure!(!args.admission, "--admission makes no manifests: it needs --report");
    documents.iter().try_for_each(print)
}

fn print(value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    writeln!(std::io::stdout().lock(), "{text}").context("cannot write the result")
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(yaml::parse_value::<Value>(&text, &path.display().to_string())?.json)
}

/// What was done to one object.
struct Done {
    document: usize,
    item: Option<usize>,
    kind: String,
    name: String,
    namespace: Option<String>,
    outcome: Outcome,
}

enum Outcome {
    /// It has no pod.
    NoPod,
    Skipped(SkipReason),
    Injected {
        before: Value,
        after: Value,
        patch: Value,
        warnings: Vec<String>,
    },
}

impl Done {
    fn notes(&self) -> Vec<String> {
        let Self { kind, name, .. } = self;
        let name = match &self.namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.clone(),
        };
        match &self.outcome {
            Outcome::NoPod => Vec::new(),
            Outcome::Skipped(SkipReason::HostNetwork) => {
                vec![format!("===> Skipping injection because {kind} {name:?} has host networking enabled")]
            }
            Outcome::Skipped(reason) => vec![format!("{kind} {name} is left as it is: {reason}")],
            Outcome::Injected { warnings, .. } => {
                warnings.iter().map(|warning| format!("{kind} {name}: {warning}")).collect()
            }
        }
    }

    fn to_json(&self) -> Value {
        let mut entry = json!({
            "document": self.document, "item": self.item, "kind": self.kind, "name": self.name,
            "namespace": self.namespace, "injected": matches!(self.outcome, Outcome::Injected { .. }),
            "hasPod": !matches!(self.outcome, Outcome::NoPod), "notes": self.notes(),
        });
        if let Outcome::Injected { before, after, patch, .. } = &self.outcome {
            entry["before"] = before.clone();
            entry["after"] = after.clone();
            entry["patch"] = patch.clone();
        }
        entry
    }
}

/// Where a workload has its pod; `None` for kinds without one.
fn pod_path(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "Pod" => &[],
        "CronJob" => &["spec", "jobTemplate", "spec", "template"],
        "DaemonSet"
        | "Deployment"
        | "DeploymentConfig"
        | "Job"
        | "ReplicaSet"
        | "ReplicationController"
        | "Rollout"
        | "StatefulSet" => &["spec", "template"],
        _ => return None,
    })
}

struct Injector {
    settings: inject::Settings,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    native: bool,
    /// Whether every pod is injected twice, to see that the second time changes nothing.
    checks: bool,
}

impl Injector {
    fn new(run: Settings, checks: bool) -> Result<Self> {
        let mut values = run.values;
        // The operator's form of the same setting.
        if let Some(enabled) = run.components["cni"]["enabled"].as_bool() {
            overlay(&mut values, json!({ "cni": { "enabled": enabled } }));
        }
        if let Some(cluster) = run.cluster_id {
            let named = values["global"]["multiCluster"]["clusterName"].as_str().unwrap_or_default();
            if named.is_empty() {
                overlay(&mut values, json!({ "global": { "multiCluster": { "clusterName": cluster } } }));
            }
        }
        let mesh = MeshConfig::merge([&run.mesh_config]).context("meshConfig")?;
        for path in inject::Values::unknown(&values) {
            eprintln!("values: {path} has no effect on injection");
        }
        let mut settings = inject::Settings::new(values, mesh)?;
        if let Some(revision) = run.revision.filter(|revision| !revision.is_empty()) {
            settings.control_plane.revision = revision;
        }
        if let Some(policy) = run.injection_policy {
            settings.policy = policy.as_str().into();
        }
        if run.platform.as_deref() == Some("openshift") {
            settings.platform = Platform::OpenShift;
        }
        settings.native_sidecars = native_setting(run.features.native_sidecars.as_deref())?;
        settings.compliance_policy = run.features.compliance_policy;
        let native =
            inject::native_sidecars_supported(settings.native_sidecars, run.nodes.iter().map(String::as_str));
        let namespaces = run.namespaces.into_iter().map(|(name, of)| (name, of.annotations)).collect();
        Ok(Self { settings, namespaces, native, checks })
    }

    fn document(
        &self,
        document: &mut Value,
        index: usize,
        admission: bool,
        report: &mut Vec<Done>,
    ) -> Result<()> {
        if document["kind"] == "List" {
            for (item, object) in document["items"].as_array_mut().into_iter().flatten().enumerate() {
                report.push(self.object(object, index, Some(item), admission)?);
            }
            return Ok(());
        }
        report.push(self.object(document, index, None, admission)?);
        Ok(())
    }

    fn object(
        &self,
        object: &mut Value,
        document: usize,
        item: Option<usize>,
        admission: bool,
    ) -> Result<Done> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
        let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
        let outcome = self.outcome(object, namespace.as_deref(), admission);
        let outcome = outcome.with_context(|| format!("{kind} {name}"))?;
        Ok(Done { document, item, kind, name, namespace, outcome })
    }

    fn outcome(&self, object: &mut Value, namespace: Option<&str>, admission: bool) -> Result<Outcome> {
        let Some(path) = pod_path(object["kind"].as_str().unwrap_or_default()) else {
            return Ok(Outcome::NoPod);
        };
        let mut template = &*object;
        for step in path {
            template = &template[*step];
        }
        let namespace = namespace.unwrap_or(yaml::DEFAULT_NAMESPACE);
        let is_pod = path.is_empty();
        let pod = match (is_pod, admission) {
            (true, _) => template.clone(),
            (false, true) => created(object, template, namespace),
            (false, false) => json!({ "metadata": template["metadata"], "spec": template["spec"] }),
        };
        if let inject::Decision::Skip(reason) = inject::decide_pod(&self.settings, namespace, &pod) {
            return Ok(Outcome::Skipped(reason));
        }
        let workload = Workload {
            api_version: object["apiVersion"].as_str().unwrap_or_default().to_owned(),
            kind: object["kind"].as_str().unwrap_or_default().to_owned(),
            name: object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        };
        let none = BTreeMap::new();
        let request = Request {
            pod: &pod,
            namespace,
            namespace_annotations: self.namespaces.get(namespace).unwrap_or(&none),
            workload: (!is_pod && !admission).then_some(&workload),
            proxy_config: &[],
            native_sidecar: self.native,
            environment: &none,
        };
        let injected = inject::inject(&self.settings, &request)?;
        let patch = serde_json::to_value(&injected.patch)?;
        let mut patched = pod.clone();
        json_patch::patch(&mut patched, &injected.patch).context("the patch cannot be applied")?;
        ensure!(patched == injected.pod, "the patch makes another pod");
        if self.checks {
            let mut once = injected.pod.clone();
            if !pod["metadata"]["annotations"]["sidecar.istio.io/status"].is_null() {
                // What somebody else injected may take one more step to our form.
                once = self.again(&once, &request)?.pod;
            }
            let again = self.again(&once, &request)?;
            let changes = again.patch.0.len();
            ensure!(changes == 0, "a second injection would change the pod again: {}", again.patch);
        }
        if !admission {
            let mut place = object;
            for step in path {
                place = &mut place[*step];
            }
            for part in ["metadata", "spec"] {
                place[part] = injected.pod[part].clone();
            }
        }
        Ok(Outcome::Injected { before: pod, after: injected.pod, patch, warnings: injected.warnings })
    }
}

impl Injector {
    /// Injects a pod that was injected before.
    fn again(&self, pod: &Value, request: &Request<'_>) -> Result<Injected> {
        Ok(inject::inject(&self.settings, &Request { pod, ..*request })?)
    }
}

/// Returns the pod that a workload creates, as far as injection looks at it.
fn created(workload: &Value, template: &Value, namespace: &str) -> Value {
    let name = workload["metadata"]["name"].as_str().unwrap_or_default();
    let mut metadata = template["metadata"].clone();
    if !metadata.is_object() {
        metadata = json!({});
    }
    let mut owner = json!({
        "apiVersion": workload["apiVersion"], "kind": workload["kind"], "name": name, "controller": true,
    });
    let mut generate = format!("{name}-");
    if workload["kind"] == "Deployment" {
        owner["kind"] = "ReplicaSet".into();
        owner["name"] = format!("{name}-fake").into();
        generate = format!("{name}-fake-");
        metadata["labels"]["pod-template-hash"] = "fake".into();
    }
    metadata["generateName"] = generate.into();
    metadata["namespace"] = namespace.into();
    metadata["ownerReferences"] = json!([owner]);
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"] })
}

fn native_setting(setting: Option<&str>) -> Result<NativeSidecars> {
    Ok(match setting {
        None | Some("auto") => NativeSidecars::Auto,
        Some("enabled" | "true") => NativeSidecars::Enabled,
        Some("disabled" | "false") => NativeSidecars::Disabled,
        Some(other) => bail!("nativeSidecars: {other:?} is none of auto, enabled and disabled"),
    })
}

/// Decides without injecting.
fn decision(written: &Value) -> Result<Value> {
    if let Some(versions) = written["kubeletVersions"].as_array() {
        let setting = native_setting(written["setting"].as_str())?;
        let versions = versions.iter().filter_map(Value::as_str);
        return Ok(json!({ "native": inject::native_sidecars_supported(setting, versions) }));
    }
    let injector = json!({
        "alwaysInjectSelector": written["alwaysInjectSelector"],
        "neverInjectSelector": written["neverInjectSelector"],
    });
    let values = json!({ "sidecarInjectorWebhook": injector });
    let mut settings = inject::Settings::new(values, MeshConfig::default())?;
    if let Some(policy) = written["policy"].as_str() {
        settings.policy = policy.into();
    }
    let pod = &written["pod"];
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or(yaml::DEFAULT_NAMESPACE);
    Ok(json!({ "injected": inject::decide_pod(&settings, namespace, pod).injects() }))
}
