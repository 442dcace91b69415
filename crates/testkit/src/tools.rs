//! Where the real parts are. What is missing is an error that names the command which installs it; a test must fail
//! with it, never skip.

use std::path::PathBuf;

pub use toolbox::{MissingTool, Tool};

/// Returns the stock Envoy.
pub fn envoy() -> Result<PathBuf, MissingTool> {
    Tool::Envoy.find()
}

/// Returns a Python that has `grpc` and `yaml`.
pub fn python() -> Result<PathBuf, MissingTool> {
    Tool::Python.find()
}

/// Returns etcd.
pub fn etcd() -> Result<PathBuf, MissingTool> {
    Tool::Etcd.find()
}

/// Returns the Kubernetes API server.
pub fn kube_apiserver() -> Result<PathBuf, MissingTool> {
    Tool::KubeApiserver.find()
}

/// Returns the Kubernetes controller manager.
pub fn kube_controller_manager() -> Result<PathBuf, MissingTool> {
    Tool::KubeControllerManager.find()
}

/// Returns kubectl.
pub fn kubectl() -> Result<PathBuf, MissingTool> {
    Tool::Kubectl.find()
}

/// Returns helm.
pub fn helm() -> Result<PathBuf, MissingTool> {
    Tool::Helm.find()
}
