//! Flags. Names are those of Istio's agent where it has the same flag, so that pod templates work as they are.

use clap::{Args as Group, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Runs beside Envoy: gets the workload's certificate, serves it over SDS, writes the bootstrap, starts Envoy and
/// ends it gracefully.
///
/// Most settings come from the environment, as the injector sets it. docs/agent.md lists them.
#[derive(Clone, Debug, Parser)]
#[command(name = "weft-agent", version)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Gets a certificate, starts Envoy, and stays with it until it ends
    Proxy(ProxyArgs),
    /// Prints the bootstrap that `proxy` would start Envoy with
    Bootstrap(ProxyArgs),
    /// Waits until the proxy is ready; for a container's postStart hook
    Wait(WaitArgs),
    /// Sends a request to Envoy's administration, such as `request GET stats`
    Request(RequestArgs),
}

/// How the proxy is run.
#[derive(Clone, Debug, Group)]
pub struct ProxyArgs {
    /// What the proxy is
    #[arg(value_enum, default_value = "sidecar")]
    pub role: Role,
    /// The DNS domain of the workload [default: <namespace>.svc.cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub domain: Option<String>,
    /// Worker threads of Envoy; 0 means one for each processor [default: the proxy configuration's]
    #[arg(long, value_name = "COUNT")]
    pub concurrency: Option<u32>,
    /// A file with a MeshConfig, whose `defaultConfig` is used
    #[arg(long = "meshConfig", visible_alias = "mesh-config", default_value = "./etc/istio/config/mesh")]
    pub mesh_config: PathBuf,
    /// What Envoy logs: trace, debug, info, warning, error, critical or off
    #[arg(long = "proxyLogLevel", visible_alias = "proxy-log-level", default_value = "warning,misc:error")]
    pub proxy_log_level: String,
    /// What parts of Envoy log, such as misc:error,rbac:debug
    #[arg(long = "proxyComponentLogLevel", visible_alias = "proxy-component-log-level", default_value = "")]
    pub proxy_component_log_level: String,
    /// Where Envoy logs outlier detection
    #[arg(long = "outlierLogPath", visible_alias = "outlier-log-path", default_value = "")]
    pub outlier_log_path: String,
    /// Logs of the agent itself
    #[command(flatten)]
    pub log: LogArgs,
}

/// Logs of the agent itself.
#[derive(Clone, Debug, Group)]
pub struct LogArgs {
    /// What the agent logs, such as default:info or default:debug
    #[arg(long = "log_output_level", visible_alias = "log-output-level", default_value = "default:info")]
    pub log_output_level: String,
    /// Logs JSON
    #[arg(long = "log_as_json", visible_alias = "log-as-json")]
    pub log_as_json: bool,
}

/// What a proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Beside an application.
    Sidecar,
    /// A gateway.
    Router,
}

impl Role {
    /// Returns the name in node ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
        }
    }
}

/// How long to wait.
#[derive(Clone, Debug, Group)]
pub struct WaitArgs {
    /// Where the proxy says whether it is ready
    #[arg(long, default_value = "http://localhost:15021/healthz/ready")]
    pub url: String,
    /// How long to wait in all, in seconds
    #[arg(long = "timeoutSeconds", visible_alias = "timeout-seconds", default_value_t = 60)]
    pub timeout_seconds: u64,
    /// How long one answer may take, in milliseconds
    #[arg(long = "requestTimeoutMillis", visible_alias = "request-timeout-millis", default_value_t = 500)]
    pub request_timeout_millis: u64,
    /// How often to ask, in milliseconds
    #[arg(long = "periodMillis", visible_alias = "period-millis", default_value_t = 500)]
    pub period_millis: u64,
}

/// A request to Envoy's administration.
#[derive(Clone, Debug, Group)]
pub struct RequestArgs {
    /// GET or POST
    pub method: String,
    /// The path, such as stats/prometheus or config_dump
    pub path: String,
    /// The port of Envoy's administration
    #[arg(long, env = "ENVOY_ADMIN_PORT", default_value_t = 15000)]
    pub port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_flags_are_consistent_and_explained() {
        let command = Args::command();
        command.clone().debug_assert();
        for part in command.get_subcommands() {
            for flag in part.get_arguments() {
                assert!(flag.get_help().is_some(), "{} is not explained", flag.get_id());
            }
        }
    }

    #[test]
    fn the_arguments_of_istios_pod_templates_are_understood() {
        let words = "weft-agent proxy router --domain app.svc.cluster.local --proxyLogLevel=warning \
                     --proxyComponentLogLevel=misc:error --log_output_level=default:info --concurrency 2";
        let args = Args::try_parse_from(words.split_whitespace()).unwrap();
        let Command::Proxy(proxy) = args.command else { panic!("another command") };
        assert_eq!(proxy.role, Role::Router);
        assert_eq!(proxy.domain.as_deref(), Some("app.svc.cluster.local"));
        assert_eq!(proxy.concurrency, Some(2));
    }
}
