//! CustomResourceDefinitions. The work is done by `crdgen`, a program of `weft-k8s-api`, built only when it is asked for.

use std::time::Duration;

use crate::{process, workspace};

pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    let mut generator = process::command(env!("CARGO"));
    generator.current_dir(workspace::root()).args([
        "run",
        "--quiet",
        "--package",
        "weft-k8s-api",
        "--bin",
        "crdgen",
        "--",
        "crds",
    ]);
    if check {
        generator.arg("--check");
    }
    process::run(&mut generator, Duration::from_secs(600))
}
