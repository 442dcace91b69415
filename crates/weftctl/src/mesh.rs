//! A mesh made from manifests, as `weftd --config` would make it.

use anyhow::{Context as _, Result, bail};
use index::{Index, Reset, Settings};
use k8s_api::mesh_config::MeshConfig;
use model::MeshView;
use source_dir::Scanner;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

/// Reads the manifests at `objects`, a file or a directory. What is wrong with them goes to standard error; the
/// rest is used, as in production.
///
/// With `bare_short_names`, names without dots are completed by their namespace only.
pub(crate) fn load(
    objects: &Path,
    mesh_config: &serde_json::Value,
    domain: &str,
    bare_short_names: bool,
) -> Result<Arc<MeshView>> {
    // Nothing is in force here: what is not enforced yet is only worth a warning.
    let mut scanner = Scanner::new(objects).allow_unenforced_policies(true);
    let scan = scanner.scan(&HashSet::new()).context("cannot read the objects")?;
    for problem in &scan.problems {
        let severity = if problem.is_error { "error" } else { "warning" };
        eprintln!("{severity}: {}:{}: {}", problem.path.display(), problem.line, problem.message);
    }
    let mut index = Index::new(Settings { domain: domain.into(), cluster: "Kubernetes".into() });
    let merged = MeshConfig::merge([mesh_config]).context("the mesh configuration cannot be used")?;
    for path in k8s_api::mesh_config::fields_not_read(mesh_config) {
        eprintln!("warning: meshConfig.{path}: Weft does not act on this field yet");
    }
    let (domain, cluster) = (domain.into(), "Kubernetes".into());
    let translated = translate::mesh_config(&domain, &cluster, &merged);
    for warning in &translated.warnings {
        eprintln!("warning: {warning}");
    }
    let Some(mut mesh) = translated.value else {
        let reasons: Vec<String> = translated.rejections.iter().map(ToString::to_string).collect();
        bail!("the mesh configuration cannot be used: {}", reasons.join("; "));
    };
    if bare_short_names {
        mesh.context.short_name_suffix = "".into();
    }
    index.set_mesh_config(mesh.config, mesh.context);
    index.reset(&Reset::Everything, scan.objects);
    let view = index.publish().map_or_else(|| index.view(), |(view, _)| view);
    for findings in index.findings().values() {
        for finding in &findings.findings {
            let severity = if finding.is_error { "error" } else { "warning" };
            eprintln!("{severity}: {}: {}", findings.origin, finding.rejection);
        }
    }
    Ok(view)
}
