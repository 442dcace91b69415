//! `cargo xtask tidy`: the workspace's own rules, those that neither the compiler nor clippy knows.

use anyhow::{Context, bail};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::workspace;

mod crates;
mod files;
mod layers;

/// What `cargo xtask tidy` takes.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Checks every rule and prints everything that breaks one.
pub(crate) fn run(_args: &Args) -> anyhow::Result<()> {
    let metadata = metadata()?;
    let files = files::tracked(workspace::root())?;

    let mut problems = layers::check(&metadata);
    problems.extend(crates::check(&metadata));
    problems.extend(files::check(workspace::root(), &files));

    for problem in &problems {
        println!("{problem}");
    }
    if problems.is_empty() {
        println!("tidy: {} crates and {} files are in order", metadata.packages.len(), files.len());
        return Ok(());
    }
    bail!("{} rules broken; see the lines above", problems.len())
}

/// Returns the workspace's own packages, without their external dependencies.
pub(crate) fn metadata() -> anyhow::Result<Metadata> {
    let mut command = MetadataCommand::new();
    command.manifest_path(workspace::root().join("Cargo.toml")).no_deps();
    command.exec().context("could not read the workspace")
}
