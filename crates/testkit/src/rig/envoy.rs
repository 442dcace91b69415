//! A real Envoy.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::http::{Request, Response};
use super::process::{Process, Scratch};
use super::{RigError, loopback, write_file};
use crate::tools;

/// How to start an Envoy.
#[derive(Clone, Debug)]
pub struct EnvoyOptions {
    /// The bootstrap, as YAML or JSON. Its admin address, if it has one, is replaced.
    pub bootstrap: String,
    /// Such as `info`, or `debug`.
    pub log_level: String,
    /// Worker threads.
    pub concurrency: u32,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl EnvoyOptions {
    /// Returns the options for a bootstrap: two workers, log level `info`.
    pub fn new(bootstrap: impl Into<String>) -> Self {
        Self {
            bootstrap: bootstrap.into(),
            log_level: "info".to_owned(),
            concurrency: 2,
            arguments: Vec::new(),
        }
    }
}

/// A running Envoy; killed on drop.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    admin: SocketAddr,
    scratch: Scratch,
}

impl Envoy {
    /// Starts Envoy with a bootstrap (YAML or JSON) and returns once its admin interface answers. It may still be
    /// waiting for its configuration: see [`Envoy::wait_ready`].
    pub fn start(bootstrap: &str) -> Result<Self, RigError> {
        Self::start_with(&EnvoyOptions::new(bootstrap))
    }

    /// As [`Envoy::start`], with options.
    pub fn start_with(options: &EnvoyOptions) -> Result<Self, RigError> {
        let scratch = Scratch::new("envoy")?;
        let config = write_bootstrap(&scratch, &options.bootstrap)?;
        let admin_file = scratch.path().join("admin-address");
        // Envoy merges this over the file: whatever port a bootstrap names, ours is free.
        let address = json!({ "address": loopback::address().to_string(), "port_value": 0 });
        let admin = json!({ "admin": { "address": { "socket_address": address } } });

        let mut command = Command::new(tools::envoy()?);
        command.arg("--config-path").arg(config).arg("--config-yaml").arg(admin.to_string());
        command.arg("--admin-address-path").arg(&admin_file);
        // No hot restart: then no base id has to be unique, and nothing is left in shared memory.
        command.arg("--disable-hot-restart").args(["--log-level", &options.log_level]);
        command.args(["--concurrency", &options.concurrency.to_string()]).args(&options.arguments);
        let process = Process::spawn("envoy", command, scratch.path().join("envoy.log"))?;

        let admin = process.wait_until("Envoy's admin interface", Duration::from_secs(30), || {
            // The file is made before it is filled.
            let admin: SocketAddr = fs::read_to_string(&admin_file).ok()?.trim().parse().ok()?;
            Request::get("/ready").limit(Duration::from_secs(1)).send(admin).ok().map(|_| admin)
        })?;
        Ok(Self { process, admin, scratch })
    }

    /// Asks Envoy whether it accepts a bootstrap, without running it; the error is Envoy's own.
    pub fn validate(bootstrap: &str) -> Result<(), RigError> {
        let scratch = Scratch::new("envoy")?;
        let config = write_bootstrap(&scratch, bootstrap)?;
        let mut command = Command::new(tools::envoy()?);
        command.args([
            "--mode",
            "validate",
            "--disable-hot-restart",
            "--log-level",
            "error",
            "--config-path",
        ]);
        let output = command.arg(config).output().map_err(RigError::io("could not start envoy"))?;
        if output.status.success() {
            return Ok(());
        }
        let text = [output.stdout, output.stderr].concat();
        Err(RigError::Command {
            command: "envoy --mode validate".to_owned(),
            output: String::from_utf8_lossy(&text).into_owned(),
        })
    }

    /// Returns the address of the admin interface.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Returns the file that Envoy's log is written to.
    pub fn log_path(&self) -> PathBuf {
        self.scratch.path().join("envoy.log")
    }

    /// Returns what the admin interface has at `path`, such as `/clusters`.
    pub fn admin_get(&self, path: &str) -> Result<Response, RigError> {
        Request::get(path).send(self.admin)
    }

    /// Posts to the admin interface, such as `/drain_listeners?graceful`.
    pub fn admin_post(&self, path: &str) -> Result<Response, RigError> {
        Request::new("POST", path).send(self.admin)
    }

    /// Returns all of the configuration that Envoy has, with endpoints.
    pub fn config_dump(&self) -> Result<Value, RigError> {
        self.admin_get("/config_dump?include_eds")?.json()
    }

    /// Returns a counter or gauge by its full name; `None` if Envoy does not have it (yet).
    pub fn stat(&self, name: &str) -> Result<Option<u64>, RigError> {
        Ok(self.stats(name)?.remove(name))
    }

    /// Returns all counters and gauges whose name starts with `prefix`.
    pub fn stats(&self, prefix: &str) -> Result<BTreeMap<String, u64>, RigError> {
        let text = self.admin_get("/stats")?.text();
        let pairs = text.lines().filter_map(|line| line.rsplit_once(": "));
        let chosen = pairs.filter(|(name, _)| name.starts_with(prefix));
        // Histograms and text have no single number.
        Ok(chosen.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    /// Waits until Envoy has got and applied its first configuration.
    pub fn wait_ready(&self, limit: Duration) -> Result<(), RigError> {
        self.wait_until("Envoy to be LIVE", limit, |envoy| {
            envoy.admin_get("/ready").ok().filter(|answer| answer.status == 200).map(|_| ())
        })
    }

    /// Asks `probe` until it gives a value; fails early if Envoy ends, and shows the end of its log.
    pub fn wait_until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut probe: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T, RigError> {
        self.process.wait_until(what, limit, || probe(self))
    }

    /// Sends SIGTERM, waits for the end, and kills Envoy after `limit`.
    pub fn stop(self, limit: Duration) -> Result<(), RigError> {
        self.process.terminate(limit)
    }
}

fn write_bootstrap(scratch: &Scratch, bootstrap: &str) -> Result<PathBuf, RigError> {
    let name = if bootstrap.trim_start().starts_with('{') { "bootstrap.json" } else { "bootstrap.yaml" };
    write_file(scratch.path(), name, bootstrap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::HttpEcho;

    /// One listener that sends everything to `upstream`.
    fn proxy(listen: SocketAddr, upstream: SocketAddr) -> String {
        format!(
            r#"
static_resources:
  listeners:
  - name: main
    address: {{ socket_address: {{ address: {}, port_value: {} }} }}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{ match: {{ prefix: / }}, route: {{ cluster: app }} }}]
          http_filters:
          - name: router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: app
    type: STATIC
    load_assignment:
      cluster_name: app
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }}
"#,
            listen.ip(),
            listen.port(),
            upstream.ip(),
            upstream.port()
        )
    }

    #[test]
    fn a_real_envoy_proxies_to_a_stand_in_app() {
        let app = HttpEcho::start("reviews", "v2", loopback::socket().unwrap()).unwrap();
        let listen = loopback::socket().unwrap();
        let envoy = Envoy::start(&proxy(listen, app.address())).unwrap();
        envoy.wait_ready(Duration::from_secs(10)).unwrap();

        let answer = Request::get("/a?b=c").header("x-user", "jason").send(listen).unwrap();

        assert_eq!(answer.status, 200);
        let seen = answer.json().unwrap();
        assert_eq!(seen["name"], "reviews");
        assert_eq!(seen["version"], "v2");
        assert_eq!(seen["path"], "/a");
        assert_eq!(seen["headers"]["x-user"][0], "jason");
        assert_eq!(envoy.stat("http.main.downstream_rq_total").unwrap(), Some(1));
        assert_eq!(envoy.stat("http.main.no_such_stat").unwrap(), None);
        assert!(envoy.config_dump().unwrap()["configs"].is_array());
        envoy.stop(Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn envoys_run_side_by_side_with_the_same_bootstrap() {
        let bootstrap = "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 15000 } } }";
        let one = Envoy::start(bootstrap).unwrap();
        let other = Envoy::start(bootstrap).unwrap();
        assert_ne!(one.admin(), other.admin());
    }

    #[test]
    fn a_bad_bootstrap_is_an_error_with_envoys_own_words() {
        let bad = "static_resources: { clusters: [{ name: a, no_such_field: 1 }] }";
        assert!(Envoy::start(bad).unwrap_err().to_string().contains("no_such_field"));
        assert!(Envoy::validate(bad).unwrap_err().to_string().contains("no_such_field"));
        Envoy::validate("static_resources: { clusters: [{ name: a }] }").unwrap();
    }
}
