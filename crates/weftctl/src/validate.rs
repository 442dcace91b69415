//! `weftctl validate`.

use anyhow::{Context as _, Result, bail};
use k8s_api::mesh_config::MeshConfig;
use k8s_api::yaml;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::PathBuf;
use translate::Verdict;

/// What to judge.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The manifests
    #[arg(long, value_name = "FILE")]
    objects: PathBuf,
    /// Accept AuthorizationPolicy and RequestAuthentication, which are not enforced yet, with a warning
    #[arg(long)]
    allow_unenforced_policies: bool,
    /// Print a verdict for each object as JSON, and succeed whatever it is
    #[arg(long)]
    report: bool,
}

/// Prints what is wrong with the objects of a file; fails if any must be refused.
pub(crate) fn run(args: &Args) -> Result<()> {
    let path = args.objects.display().to_string();
    let text = std::fs::read_to_string(&args.objects).with_context(|| format!("cannot read {path}"))?;
    let (domain, cluster) = ("cluster.local".into(), "Kubernetes".into());
    let mesh = translate::mesh_config(&domain, &cluster, &MeshConfig::default());
    let context = mesh.value.context("the default mesh configuration cannot be used")?.context;
    let mut verdicts = Vec::new();
    for object in objects(yaml::parse_values(&text, &path)?) {
        let mut verdict = translate::validate(&context, &object.to_string());
        if verdict.is_unenforced && !args.allow_unenforced_policies {
            let reason = "Weft does not enforce this kind yet; --allow-unenforced-policies accepts it";
            verdict.rejections.push(("kind".to_owned(), reason.to_owned()));
        }
        verdicts.push((name(&object), verdict));
    }
    if args.report {
        let entries: Vec<Value> = verdicts.iter().map(|(name, verdict)| to_json(name, verdict)).collect();
        let text = serde_json::to_string_pretty(&entries)?;
        return writeln!(std::io::stdout().lock(), "{text}").context("cannot write the result");
    }
    let mut refused = 0;
    for (name, verdict) in &verdicts {
        for (field, reason) in &verdict.rejections {
            eprintln!("error: {name}: {field}: {reason}");
        }
        for (field, reason) in &verdict.warnings {
            eprintln!("warning: {name}: {field}: {reason}");
        }
        if verdict.has_no_effect {
            eprintln!("warning: {name}: Weft does not act on this kind yet");
        }
        refused += usize::from(!verdict.rejections.is_empty());
    }
    if refused > 0 {
        bail!("{refused} of {} objects are refused", verdicts.len());
    }
    Ok(())
}

/// Takes lists apart.
fn objects(documents: Vec<Value>) -> Vec<Value> {
    let items = |document: Value| match document {
        Value::Object(mut fields) if fields.get("kind").is_some_and(|kind| kind == "List") => {
            match fields.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        }
        document => vec![document],
    };
    documents.into_iter().flat_map(items).collect()
}

fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    let (kind, namespace, name) =
        (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]));
    if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") }
}

fn to_json(name: &str, verdict: &Verdict) -> Value {
    let findings = |findings: &[(String, String)]| -> Vec<Value> {
        findings.iter().map(|(field, reason)| json!({ "field": field, "reason": reason })).collect()
    };
    json!({
        "object": name,
        "accepted": verdict.rejections.is_empty(),
        "rejections": findings(&verdict.rejections),
        "warnings": findings(&verdict.warnings),
        "hasNoEffect": verdict.has_no_effect,
    })
}
