//! `cargo xtask codegen`: writes the generated files that are checked in, or checks that they are up to date.

use std::path::{Path, PathBuf};

mod crds;
mod proto;

/// What `cargo xtask codegen` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to generate; everything by default
    #[command(subcommand)]
    target: Option<Target>,
    /// Write nothing and fail if a generated file is stale
    #[arg(long, global = true)]
    check: bool,
}

#[derive(clap::Subcommand)]
enum Target {
    /// crds/, from the types of crates/k8s-api
    Crds,
    /// crates/proto/src/generated, from proto/
    Proto {
        /// First replace proto/third_party, from the `proto` directory of an unpacked `envoy-types` crate
        #[arg(long, value_name = "DIR", conflicts_with = "check")]
        vendor_from: Option<PathBuf>,
    },
}

/// Generates one target, or all of them.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.target {
        Some(Target::Proto { vendor_from }) => proto::run(args.check, vendor_from.as_deref()),
        Some(Target::Crds) => crds::run(args.check),
        None => {
            proto::run(args.check, None::<&Path>)?;
            crds::run(args.check)
        }
    }
}
