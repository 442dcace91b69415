//! `cargo xtask deny`: licences, bans and sources of all dependencies, by cargo-deny with `deny.toml`.

use std::time::Duration;

use toolbox::Tool;

use crate::{process, workspace};

/// What `cargo xtask deny` takes.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Checks everything that needs no network; advisories are a database of their own, fetched from elsewhere.
pub(crate) fn run(_args: &Args) -> anyhow::Result<()> {
    let mut deny = process::command(Tool::CargoDeny.find()?);
    deny.current_dir(workspace::root()).args(["check", "licenses", "bans", "sources"]);
    process::run(&mut deny, Duration::from_secs(300))?;
    println!(
        "advisories are not checked: their database needs a host of its own (`cargo deny check advisories`)"
    );
    Ok(())
}
