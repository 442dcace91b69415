//! Envoy's life: its start, its signals, and a good end.
//!
//! ```text
//! running ── SIGTERM, /quitquitquit ─▶ draining ── time is over, or no connection is left ─▶ SIGTERM to Envoy ─▶ end
//!    │                                    │ a second signal ──────────────────────────────▶ SIGTERM to Envoy
//!    └──────────── Envoy ends by itself ──┴───────────────────────────────────────────────▶ end, with its reason
//! ```

mod drain;
mod process;
mod reaper;

pub use drain::{Drain, Step};
pub use process::{bootstrap_path, command};

use crate::config::{Config, Ports};
use crate::envoy_admin::EnvoyAdmin;
use anyhow::Context as _;
use rustix::process::{Pid, kill_process};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::Child;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

/// How long Envoy may take to end once it is told to.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What others may ask of the supervisor, and see of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Envoy runs.
    Running,
    /// Listeners drain, and nothing ends.
    DrainOnly,
    /// Listeners drain, then Envoy ends.
    Ending,
}

/// Runs Envoy to its end.
///
/// # Errors
/// If it cannot be started, or ended by itself with an error.
pub async fn run(config: &Config, phase: &watch::Sender<Phase>) -> anyhow::Result<()> {
    let mut ends = Ends::new().context("cannot wait for signals")?;
    // Asks Envoy to open its logs anew.
    let mut reopen = signal(SignalKind::user_defined1()).context("cannot wait for signals")?;
    let mut envoy = command(config)
        .spawn()
        .with_context(|| format!("cannot start Envoy, {}", config.envoy.binary.display()))?;
    tracing::info!(pid = envoy.id(), binary = %config.envoy.binary.display(), "Envoy runs");
    let _reaper = reaper::start(envoy.id());
    let address = (config.node.families.loopback(), config.ports.admin).into();
    let admin = EnvoyAdmin::new(address);
    let mut requested = phase.subscribe();
    let mut drains = false;
    loop {
        tokio::select! {
            status = envoy.wait() => return ended(status.context("cannot wait for Envoy")?),
            name = ends.next() => {
                tracing::info!(signal = name, "told to end");
                break;
            }
            _ = reopen.recv() => send(&envoy, rustix::process::Signal::USR1),
            _ = requested.changed() => match *requested.borrow_and_update() {
                Phase::Running => {}
                Phase::DrainOnly => {
                    start_drain(config, &admin).await;
                    drains = true;
                }
                Phase::Ending => break,
            }
        }
    }
    phase.send_replace(Phase::Ending);
    if !drains {
        start_drain(config, &admin).await;
    }
    tokio::select! {
        status = envoy.wait() => return ended(status.context("cannot wait for Envoy")?),
        () = wait_for_drain(config, &admin) => {}
        name = ends.next() => tracing::info!(signal = name, "told again to end: no more waiting"),
    }
    stop(&mut envoy).await
}

async fn start_drain(config: &Config, admin: &EnvoyAdmin) {
    // A sidecar's application may still have calls to make for what it is asked.
    let inbound_only = config.role == crate::args::Role::Sidecar;
    match admin.drain(inbound_only).await {
        Ok(()) => tracing::info!(inbound_only, "Envoy drains its listeners"),
        Err(error) => tracing::warn!(%error, "Envoy does not drain its listeners"),
    }
}

async fn wait_for_drain(config: &Config, admin: &EnvoyAdmin) {
    let drain = Drain::new(config.drain);
    let started = Instant::now();
    let Ports { envoy_status, envoy_prometheus, .. } = config.ports;
    let mut connections = None;
    loop {
        match drain.step(started.elapsed(), connections) {
            Step::Wait(time) => tokio::time::sleep(time).await,
            Step::Ask => {
                connections = admin.connections(&[envoy_status, envoy_prometheus]).await;
                tracing::info!(?connections, "connections are left");
                if connections != Some(0) {
                    tokio::time::sleep(drain::ASK_INTERVAL).await;
                }
            }
            Step::Stop(reason) => {
                tracing::info!(reason, "the drain is over");
                return;
            }
        }
    }
}

async fn stop(envoy: &mut Child) -> anyhow::Result<()> {
    send(envoy, rustix::process::Signal::TERM);
    let status = match tokio::time::timeout(END_TIMEOUT, envoy.wait()).await {
        Ok(status) => status.context("cannot wait for Envoy")?,
        Err(_) => {
            tracing::warn!("Envoy does not end within {END_TIMEOUT:?}: killing it");
            envoy.kill().await.context("cannot kill Envoy")?;
            return Ok(());
        }
    };
    tracing::info!(%status, "Envoy has ended");
    Ok(())
}

fn send(envoy: &Child, signal: rustix::process::Signal) {
    let pid = envoy.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::debug!(%error, "Envoy cannot be sent a signal");
    }
}

/// Envoy has ended by itself: well, if it was asked to over its administration.
fn ended(status: ExitStatus) -> anyhow::Result<()> {
    if status.success() {
        tracing::info!("Envoy has ended by itself");
        return Ok(());
    }
    match status.signal() {
        Some(9) => anyhow::bail!("Envoy was killed: perhaps it used more memory than it may"),
        Some(number) => anyhow::bail!("Envoy has crashed: signal {number}"),
        None => anyhow::bail!("Envoy has ended with {status}"),
    }
}

/// The signals that tell us to end.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
