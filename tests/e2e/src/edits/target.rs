//! Where edits are made.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use super::{Pod, Random, all_pods};
use crate::config::Config;
use crate::network::Network;

/// A change of one object.
#[derive(Clone, Debug)]
pub struct Change {
    /// The name of its manifest.
    pub name: String,
    /// Its new form, or the last one if it is to be deleted.
    pub manifest: String,
    /// Whether it is to be deleted.
    pub delete: bool,
}

/// What keeps objects, and what weftd reads them from.
pub trait Target {
    /// Returns the network of the gateway and of weftd.
    fn network(&self) -> &Network;

    /// Returns where a pod listens, by the number of its port.
    fn address(&self, pod: Pod, port: u16) -> SocketAddr;

    /// Returns the name of the EndpointSlice that a pod is in. Pods of one slice have the same ports.
    fn slice(&self, pod: Pod) -> String;

    /// Returns the arguments that make weftd read from here.
    fn weftd_arguments(&self) -> Vec<OsString>;

    /// Makes changes one after the other.
    ///
    /// # Errors
    ///
    /// If one cannot be made.
    fn change(&self, changes: &[Change], random: &mut Random) -> anyhow::Result<()>;
}

/// A directory of manifests, one object a file.
#[derive(Debug)]
pub struct Directory {
    network: Network,
    config: Config,
}

impl Directory {
    /// Makes a directory with nothing but pods.
    ///
    /// # Errors
    ///
    /// If the system lets us not.
    pub fn new() -> anyhow::Result<Self> {
        let (network, config) = (Network::claim()?, Config::new()?);
        config.write("pods.yaml", &all_pods())?;
        Ok(Self { network, config })
    }
}

impl Target for Directory {
    fn network(&self) -> &Network {
        &self.network
    }

    /// Each pod has an address of its own.
    fn address(&self, pod: Pod, port: u16) -> SocketAddr {
        self.network.socket(20 + pod.service, 1 + pod.index(), 8080 + port)
    }

    fn slice(&self, pod: Pod) -> String {
        format!("s{}-1", pod.service)
    }

    fn weftd_arguments(&self) -> Vec<OsString> {
        vec![OsString::from("--config"), self.config.path().into()]
    }

    /// Three times out of four all at once, as `git checkout` does, else with pauses, as people do.
    fn change(&self, changes: &[Change], random: &mut Random) -> anyhow::Result<()> {
        let files: Vec<(String, Option<String>)> = changes
            .iter()
            .map(|change| {
                (format!("{}.yaml", change.name), (!change.delete).then(|| change.manifest.clone()))
            })
            .collect();
        let files: Vec<(&str, Option<String>)> =
            files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
        if !random.one_in(4) {
            return self.config.change(&files);
        }
        for file in files {
            self.config.change(&[file])?;
            thread::sleep(Duration::from_millis(random.below(100)));
        }
        Ok(())
    }
}
