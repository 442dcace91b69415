//! The server that is measured.

use crate::cluster::Cluster;
use crate::mesh::File;
use crate::push::{Plan, Server};
use crate::usage::{Memory, Meter};
use anyhow::Context;
use e2e::config::Config;
use e2e::network::Network;
use e2e::weftd::Weftd;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The server that is measured, and the manifests that it serves.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    meter: Option<Meter>,
    edits: Edits,
    /// Ours, if it is ours; it ends with this.
    _weftd: Option<(Weftd, Network)>,
}

/// How manifests are changed.
enum Edits {
    /// By writing files that the server watches.
    Files(Config),
    /// By requests to the API server that the server watches.
    Cluster(Box<Cluster>),
    /// By a command that is given files.
    Command(Config, String),
    /// Not at all.
    None,
}

impl Target {
    pub(crate) async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let files = plan.mesh.files();
        match &plan.server {
            Server::Weftd => {
                let cluster = Cluster::start(files).await?;
                let flags = [OsString::from("--kubeconfig"), cluster.kubeconfig().into()];
                Self::weftd(&flags, Edits::Cluster(Box::new(cluster)))
            }
            Server::WeftdOnFiles => {
                let config = Config::new()?;
                write(&config, files)?;
                let flags = [OsString::from("--config"), config.path().into()];
                Self::weftd(&flags, Edits::Files(config))
            }
            Server::Address { address, pid, edit } => {
                let edits = match edit {
                    Some(command) => Edits::Command(Config::new()?, command.clone()),
                    None => Edits::None,
                };
                Ok(Self { address: *address, meter: pid.map(Meter::new), edits, _weftd: None })
            }
        }
    }

    fn weftd(flags: &[OsString], edits: Edits) -> anyhow::Result<Self> {
        let network = Network::claim()?;
        let weftd = Weftd::start_with(&network, flags)?;
        let meter = Some(Meter::new(weftd.id()));
        Ok(Self { address: weftd.grpc(), meter, edits, _weftd: Some((weftd, network)) })
    }

    pub(crate) fn can_edit(&self) -> bool {
        !matches!(self.edits, Edits::None)
    }

    pub(crate) async fn edit(&self, files: Vec<File>) -> anyhow::Result<()> {
        match &self.edits {
            Edits::None => Ok(()),
            Edits::Cluster(cluster) => cluster.write(&files).await,
            Edits::Files(config) => write(config, files),
            Edits::Command(config, command) => {
                let paths: Vec<PathBuf> = files.iter().map(|(name, _)| config.file(name)).collect();
                write(config, files)?;
                call(command, &paths)
            }
        }
    }

    pub(crate) fn cpu(&mut self) -> anyhow::Result<Option<Duration>> {
        self.meter.as_mut().map(Meter::cpu).transpose()
    }

    pub(crate) fn cpu_since(&mut self, before: Option<Duration>) -> anyhow::Result<Option<Duration>> {
        let now = self.cpu()?;
        Ok(now.zip(before).map(|(now, before)| now.saturating_sub(before)))
    }

    pub(crate) fn memory(&self) -> anyhow::Result<Option<Memory>> {
        self.meter.as_ref().map(Meter::memory).transpose()
    }
}

fn write(config: &Config, files: Vec<File>) -> anyhow::Result<()> {
    let files: Vec<(String, Option<String>)> =
        files.into_iter().map(|(name, text)| (name, Some(text))).collect();
    config.change(&files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect::<Vec<_>>())
}

/// Runs a shell command with paths added to it.
fn call(command: &str, paths: &[impl AsRef<Path>]) -> anyhow::Result<()> {
    let paths = paths.iter().map(AsRef::as_ref);
    // The names are arguments of the shell, so that nothing in them is taken for code.
    let status =
        Command::new("sh").arg("-c").arg(format!("{command} \"$@\"")).arg("edit").args(paths).status();
    let status = status.with_context(|| format!("cannot run {command:?}"))?;
    anyhow::ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
