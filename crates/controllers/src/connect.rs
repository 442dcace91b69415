//! From a kubeconfig to a client.

use crate::trouble::reason;
use k8s_api::mesh_config::MeshConfig;
use kube::Client;
use kube::config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What the sources need to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The kubeconfig. Without one, it is looked for as kubectl does it, and then where a pod has its credentials.
    pub kubeconfig: Option<PathBuf>,
    /// The namespace of the control plane, where its ConfigMaps are.
    pub namespace: String,
    /// The revision that objects with the label `istio.io/rev` must belong to, by its name or a tag.
    pub revision: String,
    /// The name of the ConfigMap with the mesh configuration, such as `istio`.
    pub mesh_config_map: String,
    /// The mesh configuration that the ConfigMap is merged over, as an object of MeshConfig's fields; `null` for none.
    pub base_mesh_config: serde_json::Value,
    /// The mesh configuration that was in use before a restart, for a ConfigMap that cannot be read.
    pub last_good_mesh_config: Option<Arc<MeshConfig>>,
}

impl Config {
    /// For clients that follow no mesh.
    pub fn questions(kubeconfig: Option<PathBuf>, namespace: &str) -> Self {
        Self {
            kubeconfig,
            namespace: namespace.to_owned(),
            revision: String::new(),
            mesh_config_map: String::new(),
            base_mesh_config: serde_json::Value::Null,
            last_good_mesh_config: None,
        }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig that was named cannot be used.
    #[error("cannot use kubeconfig {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KubeconfigError,
    },
    /// No kubeconfig was named, and none was found.
    #[error("found no kubeconfig, and not in a pod either")]
    NoKubeconfig(#[source] Box<InferConfigError>),
    /// What the kubeconfig says cannot be used, such as certificates.
    #[error("cannot make a client for the API server at {url}")]
    Client {
        /// The API server.
        url: String,
        /// What is wrong.
        source: Box<kube::Error>,
    },
    /// Nobody answers.
    #[error("cannot reach the API server at {url}: {reason}")]
    Unreachable {
        /// The API server.
        url: String,
        /// What happened.
        reason: String,
    },
    /// Somebody answers, but with an error.
    #[error("the API server at {url} refuses to serve: {reason}")]
    Refused {
        /// The API server.
        url: String,
        /// What it says.
        reason: String,
    },
}

/// How long the client waits for the other side.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    /// For a connection.
    connect: Duration,
    /// For the next byte of an answer. Watches are ended by the server before that, see [`crate::source`].
    read: Duration,
    /// For the first answer of all.
    hello: Duration,
}

const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(10),
    read: Duration::from_secs(40),
    hello: Duration::from_secs(10),
};

/// Makes a client and asks the API server for its version, so that a wrong address is noticed here. The caller has
/// installed rustls' crypto provider.
///
/// # Errors
/// If there is no usable kubeconfig (the error names the file), or no API server that answers within ten seconds (the
/// error names its address).
pub async fn connect(config: &Config) -> Result<Client, ConnectError> {
    connect_within(client_config(config).await?, TIMEOUTS).await
}

async fn client_config(config: &Config) -> Result<kube::Config, ConnectError> {
    let Some(path) = &config.kubeconfig else {
        return kube::Config::infer().await.map_err(|error| ConnectError::NoKubeconfig(Box::new(error)));
    };
    let because = |source| ConnectError::Kubeconfig { path: path.clone(), source };
    let kubeconfig = Kubeconfig::read_from(path).map_err(because)?;
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(because)
}

async fn connect_within(mut config: kube::Config, timeouts: Timeouts) -> Result<Client, ConnectError> {
    let url = config.cluster_url.to_string();
    config.connect_timeout = Some(timeouts.connect);
    config.read_timeout = Some(timeouts.read);
    config.write_timeout = Some(timeouts.read);
    // Else the time that a pooled connection was idle counts.
    config.reset_reader_on_write = true;
    // The sources wait by themselves, and tell why; the client would hide the errors from them.
    config.default_retry = false;
    let client = Client::try_from(config)
        .map_err(|source| ConnectError::Client { url: url.clone(), source: Box::new(source) })?;

    let answer = tokio::time::timeout(timeouts.hello, client.apiserver_version()).await;
    match answer {
        Ok(Ok(version)) => {
            tracing::info!(url, version = version.git_version, "connected to the API server");
            Ok(client)
        }
        // Whoever may not know the version may still be allowed to list.
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Ok(client),
        Ok(Err(error @ (kube::Error::Api(_) | kube::Error::SerdeError(_)))) => {
            Err(ConnectError::Refused { url, reason: reason(&error) })
        }
        Ok(Err(error)) => Err(ConnectError::Unreachable { url, reason: reason(&error) }),
        Err(_) => {
            Err(ConnectError::Unreachable { url, reason: format!("no answer within {:?}", timeouts.hello) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Config, ConnectError, Timeouts, connect, connect_within};
    use k8s_api::core::Service;
    use kube::Api;
    use kube::api::ListParams;
    use serde_json::Value;
    use std::error::Error as _;
    use std::io::Write as _;
    use std::time::{Duration, Instant};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const SHORT: Timeouts = Timeouts {
        connect: Duration::from_millis(500),
        read: Duration::from_millis(500),
        hello: Duration::from_millis(2000),
    };

    fn with_provider() {
        // Another test may have installed it already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }

    fn kubeconfig(text: &str) -> (tempfile::NamedTempFile, Config) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let config = Config {
            kubeconfig: Some(file.path().to_owned()),
            namespace: "istio-system".to_owned(),
            revision: String::new(),
            mesh_config_map: "istio".to_owned(),
            base_mesh_config: Value::Null,
            last_good_mesh_config: None,
        };
        (file, config)
    }

    fn kubeconfig_of(server: &str) -> String {
        format!(
            "{{clusters: [{{name: c, cluster: {{server: '{server}'}}}}], users: [{{name: u, user: {{}}}}], \
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}], current-context: x}}"
        )
    }

    #[tokio::test]
    async fn missing_or_bad_kubeconfig_is_named() {
        with_provider();
        let (file, config) = kubeconfig("clusters: 5");
        let path = file.path().display().to_string();
        let error = connect(&config).await.err().unwrap();
        assert!(matches!(error, ConnectError::Kubeconfig { .. }), "{error:?}");
        assert!(error.to_string().contains(&path), "{error}");
        drop(file);
        let error = connect(&config).await.err().unwrap();
        assert!(error.to_string().contains(&path), "{error}");
        assert!(error.source().unwrap().to_string().contains("No such file"), "{:?}", error.source());
    }

    #[tokio::test]
    async fn unreachable_server_is_named() {
        with_provider();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", free.local_addr().unwrap());
        drop(free);
        let (_file, config) = kubeconfig(&kubeconfig_of(&url));
        let error = connect(&config).await.err().unwrap().to_string();
        assert!(error.contains(&url) && error.contains("Connection refused"), "{error}");
    }

    /// A server that answers the first request of the first connection, and then never again.
    async fn answers_once(status: &'static str, body: &'static str) -> kube::Config {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = socket.read(&mut request).await.unwrap();
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            socket.write_all(answer.as_bytes()).await.unwrap();
            let mut silent = Vec::new();
            loop {
                silent.push(listener.accept().await.unwrap());
            }
        });
        kube::Config::new(url.parse().unwrap())
    }

    #[tokio::test]
    async fn server_that_answers_with_an_error_is_named() {
        with_provider();
        let config = answers_once("401 Unauthorized", "").await;
        let url = config.cluster_url.to_string();
        let error = connect_within(config, SHORT).await.err().unwrap();
        assert!(matches!(&error, ConnectError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(&url) && error.to_string().contains("401"), "{error}");
    }

    #[tokio::test]
    async fn list_on_a_dead_connection_fails_in_time() {
        with_provider();
        let version = r#"{"major":"1","minor":"33","gitVersion":"v1","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":"linux"} "#;
        let config = answers_once("200 OK", version).await;
        let client = connect_within(config, SHORT).await.unwrap();
        let services: Api<Service> = Api::all(client);
        let begin = Instant::now();
        for _ in 0..2 {
            services.list(&ListParams::default()).await.err().unwrap();
        }
        assert!(begin.elapsed() < 2 * (SHORT.connect + SHORT.read), "{:?}", begin.elapsed());
    }
}
