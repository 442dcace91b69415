//! How Envoy is started.

use crate::config::{Config, Families};
use std::path::PathBuf;
use tokio::process::Command;

/// Returns where the bootstrap is written: under the name that Istio's tools look for.
pub fn bootstrap_path(config: &Config) -> PathBuf {
    config.envoy.config_dir.join("envoy-rev.json")
}

/// Returns the command that starts Envoy. It dies with the agent's process, as far as that ends by itself.
pub fn command(config: &Config) -> Command {
    let mut command = Command::new(&config.envoy.binary);
    command.args(arguments(config)).kill_on_drop(true);
    command
}

fn arguments(config: &Config) -> Vec<String> {
    let envoy = &config.envoy;
    let family = match config.node.families {
        Families::V4 | Families::V4AndV6 => "v4",
        Families::V6 | Families::V6AndV4 => "v6",
    };
    let mut arguments: Vec<String> = [
        "--config-path",
        &bootstrap_path(config).display().to_string(),
        "--drain-time-s",
        &envoy.drain.as_secs().to_string(),
        "--drain-strategy",
        "immediate",
        "--local-address-ip-version",
        family,
        "--file-flush-interval-msec",
        &envoy.file_flush_interval.as_millis().to_string(),
        // One Envoy at a time: nothing has to be shared, and no base id be unique.
        "--disable-hot-restart",
        "--allow-unknown-static-fields",
        "--log-level",
        &envoy.log_level,
    ]
    .map(str::to_owned)
    .to_vec();
    let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    if !envoy.component_log_level.is_empty() {
        option("--component-log-level", envoy.component_log_level.clone());
    }
    if let Some(count) = envoy.concurrency {
        option("--concurrency", count.to_string());
    }
    if let Some(size) = envoy.file_flush_min_size_kb {
        option("--file-flush-min-size-kb", size.to_string());
    }
    if envoy.log_as_json {
        let format = r#"{"level":"%l","time":"%Y-%m-%dT%T.%fZ","scope":"envoy %n","msg":"%j","caller":"%g:%#","thread":"%t"}"#;
        option("--log-format", format.to_owned());
    } else {
        option("--log-format", "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t".to_owned());
    }
    if envoy.skip_deprecated_logs {
        arguments.push("--skip-deprecated-logs".to_owned());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::Host;

    #[test]
    fn settings_become_arguments() {
        let host = Host::pod()
            .set("PROXY_CONFIG", r#"{"drainDuration":"20s","concurrency":3,"fileFlushMinSizeKb":32}"#)
            .file(
                "./etc/istio/pod/annotations",
                "sidecar.istio.io/logLevel=\"debug\"\nsidecar.istio.io/componentLogLevel=\"rbac:trace\"\n",
            );
        let text = arguments(&host.load().unwrap()).join(" ");
        for expected in [
            "--config-path ./etc/istio/proxy/envoy-rev.json",
            "--drain-time-s 20",
            "--concurrency 3",
            "--log-level debug",
            "--component-log-level rbac:trace",
            "--file-flush-min-size-kb 32",
            "--disable-hot-restart",
            "--skip-deprecated-logs",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }

    #[test]
    fn concurrency_of_zero_means_all_processors() {
        let host = Host::pod().set("PROXY_CONFIG", "concurrency: 0");
        assert!(!arguments(&host.load().unwrap()).contains(&"--concurrency".to_owned()));
    }
}
