//! Protobuf code. The work is done by the package `xtask-codegen-proto`, built only when it is asked for.

use std::path::Path;
use std::time::Duration;

use crate::{process, workspace};

pub(crate) fn run(check: bool, vendor_from: Option<&Path>) -> anyhow::Result<()> {
    let mut generator = process::command(env!("CARGO"));
    generator.current_dir(workspace::root()).args([
        "run",
        "--quiet",
        "--package",
        "xtask-codegen-proto",
        "--",
    ]);
    if check {
        generator.arg("--check");
    }
    if let Some(upstream) = vendor_from {
        // The generator runs in the workspace's root.
        generator.arg("--vendor-from").arg(std::path::absolute(upstream)?);
    }
    process::run(&mut generator, Duration::from_secs(600))
}
