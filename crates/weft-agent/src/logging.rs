//! Logs.

use crate::args::LogArgs;
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// Starts to log.
///
/// # Errors
/// If the level is not understood.
pub(crate) fn start(args: &LogArgs) -> anyhow::Result<()> {
    let level = level(&args.log_output_level).map_err(anyhow::Error::msg)?;
    let builder = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(level));
    let builder = builder.with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let started = if args.log_as_json { builder.json().try_init() } else { builder.try_init() };
    started.map_err(|error| anyhow::anyhow!("cannot start to log: {error}"))
}

/// Parses Istio's `scope:level,…`, of which the level of `default` or `all` counts, or one level.
fn level(text: &str) -> Result<&'static str, String> {
    let parts = text.split(',').map(|part| part.split_once(':').unwrap_or(("default", part)));
    let mut chosen = "info";
    for (scope, level) in parts {
        let level = match level {
            // Of the libraries nothing that might show what is sent.
            "debug" | "trace" => "info,agent=debug",
            "info" => "info",
            "warn" | "warning" => "warn",
            "error" | "fatal" => "error",
            "none" => "off",
            _ => return Err(format!("log_output_level: {level:?} is no level, such as default:info")),
        };
        if matches!(scope, "default" | "all") {
            chosen = level;
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istios_levels_are_understood() {
        for (text, expected) in [
            ("default:info", "info"),
            ("default:debug,ads:error", "info,agent=debug"),
            ("all:none", "off"),
            ("warning", "warn"),
            ("ads:debug", "info"),
        ] {
            assert_eq!(level(text), Ok(expected), "{text}");
        }
        assert!(level("default:loud").is_err());
    }
}
