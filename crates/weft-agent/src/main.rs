//! weft-agent, beside an Envoy.

use agent::{Args, run};
use clap::Parser as _;
use model::cause::one_line;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Also when nothing can be logged.
            eprintln!("weft-agent: {}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
