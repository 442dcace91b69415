//! weftd as its users run it.

use std::env;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use testkit::rig::http::Request;
use testkit::rig::process::{Process, Scratch};

use crate::network::Network;
use crate::repository;

/// Builds weftd, once, in the profile that this program was built in, and returns the executable. `WEFTD` names
/// another one instead.
///
/// # Errors
///
/// If it does not build.
pub fn executable() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    built(&BUILT, "WEFTD", "weftd")
}

/// As [`executable`], for weftctl and `WEFTCTL`.
///
/// # Errors
///
/// If it does not build.
pub fn weftctl() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    built(&BUILT, "WEFTCTL", "weftctl")
}

/// As [`executable`], for weft-agent and `WEFT_AGENT`.
///
/// # Errors
///
/// If it does not build.
pub fn agent() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    built(&BUILT, "WEFT_AGENT", "weft-agent")
}

fn built(once: &OnceLock<Result<PathBuf, String>>, variable: &str, program: &str) -> anyhow::Result<PathBuf> {
    if let Some(given) = env::var_os(variable).filter(|value| !value.is_empty()) {
        return Ok(given.into());
    }
    let built = once.get_or_init(|| build(program).map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn build(program: &str) -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("where is this program?")?;
    let profiles = ["debug", "release"];
    let profile =
        own.ancestors().find(|path| path.file_name().is_some_and(|name| profiles.iter().any(|p| name == *p)));
    let profile = profile.with_context(|| format!("{} lies in no target folder", own.display()))?;

    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    // Of the whole workspace, so that dependencies are those of every other build.
    command.current_dir(repository()).args(["build", "--quiet", "--workspace", "--bin", program]);
    command.arg("--target-dir").arg(profile.parent().unwrap_or(profile));
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let status = command.stdin(Stdio::null()).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("{program} does not build: {status}");
    }
    Ok(profile.join(program))
}

/// Runs weftd with these arguments to its end and returns what it said; `None` if it has not ended within `limit`.
///
/// # Errors
///
/// If it cannot be run.
pub fn run(arguments: &[String], limit: Duration) -> anyhow::Result<Option<Output>> {
    let mut command = Command::new(executable()?);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run weftd")?;
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(Some(child.wait_with_output()?))
}

/// A running weftd; killed on drop.
#[derive(Debug)]
pub struct Weftd {
    process: Process,
    grpc: SocketAddr,
    http: SocketAddr,
    monitoring: SocketAddr,
    scratch: Scratch,
}

impl Weftd {
    /// Starts weftd on a directory of manifests and waits until it is ready.
    ///
    /// # Errors
    ///
    /// If it does not become ready; the error has the end of its log.
    pub fn start(config: &Path, network: &Network) -> anyhow::Result<Self> {
        Self::start_with(network, &[OsString::from("--config"), config.into()])
    }

    /// Starts weftd with a source of configuration of the caller's choice and waits until it is ready.
    ///
    /// # Errors
    ///
    /// As [`Weftd::start`].
    pub fn start_with(network: &Network, arguments: &[OsString]) -> anyhow::Result<Self> {
        let ports = [15010, 8080, 15014].map(|port| network.socket(255, 1, port));
        Self::start_at(ports, arguments)
    }

    /// Starts weftd on these addresses for xDS, readiness, and debug pages.
    ///
    /// # Errors
    ///
    /// As [`Weftd::start`].
    pub fn start_at(
        [grpc, http, monitoring]: [SocketAddr; 3],
        arguments: &[OsString],
    ) -> anyhow::Result<Self> {
        let scratch = Scratch::new("weftd")?;
        let mut command = Command::new(executable()?);
        command.args(arguments).args(["--shutdown-duration", "1s"]);
        command.args(["--grpc-addr", &grpc.to_string(), "--http-addr", &http.to_string()]);
        command.args(["--monitoring-addr", &monitoring.to_string()]);
        for flag in ["--secure-grpc-addr", "--https-addr"] {
            if !arguments.iter().any(|argument| argument == flag) {
                // Any free port, for those who have no use for it.
                command.args([flag, &SocketAddr::new(grpc.ip(), 0).to_string()]);
            }
        }
        command.args(["--log-level", &env::var("WEFTD_LOG").unwrap_or_else(|_| "info".to_owned())]);
        let process = Process::spawn("weftd", command, scratch.path().join("weftd.log"))?;
        let weftd = Self { process, grpc, http, monitoring, scratch };
        weftd.process.wait_until("weftd to be ready", Duration::from_secs(30), || {
            Request::get("/ready").send(http).ok().filter(|answer| answer.status == 200)
        })?;
        Ok(weftd)
    }

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Returns where it serves xDS.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Returns where it tells whether it is ready.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Returns where it serves metrics and debug pages.
    pub fn monitoring(&self) -> SocketAddr {
        self.monitoring
    }

    /// Returns what it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("weftd.log")).unwrap_or_default()
    }

    /// Kills it, without a word, and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to end, as Kubernetes does, and waits.
    ///
    /// # Errors
    ///
    /// If it cannot be asked.
    pub fn stop(self) -> anyhow::Result<()> {
        Ok(self.process.terminate(Duration::from_secs(15))?)
    }
}
