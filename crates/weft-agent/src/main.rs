//! weft-agent, beside an Envoy.

use agent::capture::{NOT_CAPTURED_STATUS, NotCaptured};
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
            match error.downcast_ref::<NotCaptured>() {
                Some(_) => ExitCode::from(NOT_CAPTURED_STATUS),
                None => ExitCode::FAILURE,
            }
        }
    }
}
