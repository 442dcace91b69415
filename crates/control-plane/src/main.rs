//! weftd, the control plane.

use clap::Parser as _;
use control_plane::{Args, run};
use model::cause::one_line;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Also when nothing can be logged.
            eprintln!("weftd: {}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
