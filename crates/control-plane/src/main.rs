//! weftd, the control plane.

use clap::Parser as _;
use control_plane::{Args, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Also when nothing can be logged.
            eprintln!("weftd: {error:#}");
            ExitCode::FAILURE
        }
    }
}
