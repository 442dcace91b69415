//! Comparisons with the reference material beside the clone. What passes may only grow: each comparison fails if it
//! falls below what is written down here or in the list that it reads.

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::bail;
use toolbox::Tool;

use super::outcome::Tests;
use crate::{process, workspace};

const LIMIT: Duration = Duration::from_secs(15 * 60);

/// The kinds whose schema has every field of Istio's.
const COMPLETE_KINDS: [&str; 15] = [
    "AuthorizationPolicy",
    "DestinationRule",
    "EnvoyFilter",
    "Gateway",
    "PeerAuthentication",
    "ProxyConfig",
    "RequestAuthentication",
    "ServiceEntry",
    "Sidecar",
    "Telemetry",
    "TrafficExtension",
    "VirtualService",
    "WasmPlugin",
    "WorkloadEntry",
    "WorkloadGroup",
];

/// A comparison that runs when it is called.
type Comparison = Box<dyn FnOnce() -> Tests>;

/// Returns the comparisons by name. Where the material is absent there are none, which one line says; in CI that is
/// an error.
pub(super) fn comparisons() -> anyhow::Result<Vec<(&'static str, Comparison)>> {
    let shared = workspace::root().join("../shared");
    if !shared.is_dir() {
        if env::var_os("CI").is_some_and(|ci| ci == "true") {
            bail!("CI=true, but the reference material is not at {}", shared.display());
        }
        println!("\nskipped: comparisons with the reference material, which is not at {}", shared.display());
        return Ok(Vec::new());
    }
    let (xds, simulation, inject) = (shared.clone(), shared.clone(), shared.clone());
    let validation = shared.clone();
    let envoys = shared.join("conformance/xds");
    Ok(vec![
        ("crd parity", Box::new(move || crd_parity(&shared))),
        ("conformance xds", Box::new(move || conformance("xds", &xds))),
        ("conformance simulation", Box::new(move || conformance("simulation", &simulation))),
        ("conformance inject", Box::new(move || conformance("inject", &inject))),
        ("conformance validation", Box::new(move || conformance("validation", &validation))),
        ("conformance envoy", Box::new(move || verdict(crate::conformance::slice_in_envoys(&envoys)))),
    ])
}

/// Runs a corpus: what is in its checked-in list must pass.
fn conformance(corpus: &str, shared: &Path) -> Tests {
    verdict(crate::conformance::ratchet(corpus, &shared.join("conformance").join(corpus)))
}

fn crd_parity(shared: &Path) -> Tests {
    let python = match Tool::Python.find() {
        Ok(python) => python,
        Err(error) => return Tests::broken(&error.into()),
    };
    let mut parity = process::command(python);
    parity.current_dir(workspace::root()).arg(shared.join("tools/crd-parity.py"));
    parity.arg(shared.join("conformance/crds/istio-crds.yaml")).args(["crds", "--min", "100"]);
    for kind in COMPLETE_KINDS {
        parity.args(["--kind", kind]);
    }
    one(&mut parity)
}

/// Runs a command whose status is the verdict.
fn one(command: &mut Command) -> Tests {
    verdict(process::run(command, LIMIT))
}

fn verdict(result: anyhow::Result<()>) -> Tests {
    match result {
        Ok(()) => Tests::one("", true),
        Err(error) => Tests::broken(&error),
    }
}
