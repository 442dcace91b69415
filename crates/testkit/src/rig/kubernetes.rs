//! A real Kubernetes without nodes: etcd, kube-apiserver and kube-controller-manager on loopback.
//!
//! Ready in about two seconds, some 530 MB together. Deployments make Pods and Services make EndpointSlices; a Pod
//! runs only as far as the test says so in its status.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use super::http::{Request, Response};
use super::pki::{Authority, Keys};
use super::process::{Process, Scratch};
use super::{RigError, loopback, write_file};
use crate::tools;

/// A slow machine that is busy with other tests.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const ADMIN_TOKEN: &str = "admin-token";
/// The issuer of service-account tokens.
pub const TOKEN_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// A running etcd with one member; its data is gone on drop.
#[derive(Debug)]
pub struct Etcd {
    process: Process,
    client: SocketAddr,
    scratch: Scratch,
}

impl Etcd {
    /// Starts etcd and waits until it is healthy.
    pub fn start() -> Result<Self, RigError> {
        let scratch = Scratch::new("etcd")?;
        let client = loopback::socket()?;
        let peer = loopback::socket()?;
        let mut command = Command::new(tools::etcd()?);
        command.arg("--data-dir").arg(scratch.path().join("data"));
        // Tests do not survive a power failure, so nothing has to reach the disk.
        command
            .args(["--unsafe-no-fsync", "--log-level=warn"])
            .arg(format!("--listen-peer-urls=http://{peer}"));
        for flag in ["listen-client-urls", "advertise-client-urls"] {
            command.arg(format!("--{flag}=http://{client}"));
        }
        let process = Process::spawn("etcd", command, scratch.path().join("etcd.log"))?;
        process.wait_until("etcd", START_LIMIT, || {
            let answer = Request::get("/health").limit(Duration::from_secs(2)).send(client).ok()?;
            (answer.status == 200).then_some(())
        })?;
        Ok(Self { process, client, scratch })
    }

    /// Returns the address that clients connect to, in plaintext.
    pub fn address(&self) -> SocketAddr {
        self.client
    }

    /// Returns the folder of the data and the log.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(self) -> Result<(), RigError> {
        self.process.terminate(STOP_LIMIT)
    }
}

/// How to start an API server.
#[derive(Clone, Debug)]
pub struct ApiServerOptions {
    /// Whether RBAC is enforced. The admin may do everything either way; without it, so may everybody else.
    pub rbac: bool,
    /// Whether every Pod needs a ServiceAccount. The accounts are made by the [`ControllerManager`], so without one
    /// no Pod could be created.
    pub service_account_admission: bool,
    /// Audiences of tokens that the API server accepts besides its own.
    pub api_audiences: Vec<String>,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl Default for ApiServerOptions {
    /// RBAC, no ServiceAccount admission, and the audience `istio-ca` that proxies ask for.
    fn default() -> Self {
        Self {
            rbac: true,
            service_account_admission: false,
            api_audiences: vec!["istio-ca".to_owned()],
            arguments: Vec::new(),
        }
    }
}

/// A kube-apiserver that can be stopped and started on the same address with the same data; killed on drop.
#[derive(Debug)]
pub struct ApiServer {
    /// `None` while it is stopped.
    process: Option<Process>,
    address: SocketAddr,
    etcd: SocketAddr,
    options: ApiServerOptions,
    authority: Authority,
    client: Arc<ClientConfig>,
    files: Files,
    scratch: Scratch,
}

/// What the API server, the controller manager and clients read.
#[derive(Debug)]
struct Files {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    token_key: PathBuf,
    token_public_key: PathBuf,
    tokens: PathBuf,
    kubeconfig: PathBuf,
}

impl ApiServer {
    /// Starts an API server on `etcd` and waits until it is ready.
    pub fn start(etcd: &Etcd) -> Result<Self, RigError> {
        Self::start_with(etcd, ApiServerOptions::default())
    }

    /// As [`ApiServer::start`], with options.
    pub fn start_with(etcd: &Etcd, options: ApiServerOptions) -> Result<Self, RigError> {
        let scratch = Scratch::new("apiserver")?;
        let address = loopback::socket()?;
        let authority = Authority::new("rig");
        let files = Files::write(scratch.path(), address, &authority)?;
        let client = authority.client_config();
        let etcd = etcd.address();
        let mut server = Self { process: None, address, etcd, options, authority, client, files, scratch };
        server.resume()?;
        Ok(server)
    }

    /// Starts it again on the same address and data. Does nothing if it runs.
    pub fn resume(&mut self) -> Result<(), RigError> {
        if self.process.is_some() {
            return Ok(());
        }
        let command = self.command()?;
        let process = Process::spawn("kube-apiserver", command, self.scratch.path().join("apiserver.log"))?;
        process.wait_until("the API server", START_LIMIT, || {
            let answer = self.request(&Request::get("/readyz").limit(Duration::from_secs(2))).ok()?;
            (answer.status == 200).then_some(())
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it, as a crash would: watches and connections break without a word.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Sends SIGTERM and waits for the end. Does nothing if it is stopped.
    pub fn stop(&mut self) -> Result<(), RigError> {
        self.process.take().map_or(Ok(()), |process| process.terminate(STOP_LIMIT))
    }

    /// Kills it and starts it again.
    pub fn restart(&mut self) -> Result<(), RigError> {
        self.kill();
        self.resume()
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL, whose certificate [`ApiServer::authority_pem`] has issued.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Returns the bearer token of an administrator.
    pub fn admin_token(&self) -> &'static str {
        ADMIN_TOKEN
    }

    /// Returns a kubeconfig file for the administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.files.kubeconfig
    }

    /// Returns the certificate to verify the API server with.
    pub fn authority_pem(&self) -> String {
        self.authority.certificate_pem()
    }

    /// Returns the file with the public key that verifies service-account tokens.
    pub fn token_public_key(&self) -> &Path {
        &self.files.token_public_key
    }

    /// Returns the file with the private key that signs service-account tokens.
    pub fn token_key(&self) -> &Path {
        &self.files.token_key
    }

    /// Sends a request as the administrator.
    pub fn request(&self, request: &Request) -> Result<Response, RigError> {
        let authorization = format!("Bearer {ADMIN_TOKEN}");
        let request = request.clone().header("authorization", &authorization);
        request.send_tls(self.address, &self.address.ip().to_string(), Arc::clone(&self.client))
    }

    /// Runs kubectl as the administrator and returns what it prints; an error holds what it says.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, RigError> {
        self.kubectl_of_admin().run(arguments)
    }

    /// Installs the definitions of the mesh's kinds, and waits until they are served.
    pub fn install_definitions(&self) -> Result<(), RigError> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds");
        self.kubectl(&["apply", "--server-side", "-f", &folder.display().to_string()])?;
        self.wait_for_definitions()
    }

    /// Waits until all definitions that there are are served. `kubectl wait` fails for one that is so new that it has no
    /// conditions yet.
    pub fn wait_for_definitions(&self) -> Result<(), RigError> {
        let established =
            "jsonpath={range .items[*]}{.status.conditions[?(@.type=='Established')].status};{end}";
        let all = || {
            let printed =
                self.kubectl(&["get", "customresourcedefinitions", "--output", established]).ok()?;
            printed.split_terminator(';').all(|status| status == "True").then_some(())
        };
        match &self.process {
            Some(process) => process.wait_until("definitions to be established", START_LIMIT, all),
            None => all().ok_or_else(|| RigError::Answer {
                what: "definitions to be established".to_owned(),
                answer: "the API server is stopped".to_owned(),
            }),
        }
    }

    /// Returns the administrator's kubectl, which can be used while the API server is killed and started.
    pub fn kubectl_of_admin(&self) -> Kubectl {
        // What it has discovered of another API server on this address must not be believed.
        Kubectl { kubeconfig: self.kubeconfig().to_owned(), cache: self.scratch.path().join("kubectl") }
    }

    fn command(&self) -> Result<Command, RigError> {
        let mut command = Command::new(tools::kube_apiserver()?);
        let audiences = [&[TOKEN_ISSUER.to_owned()], &*self.options.api_audiences].concat().join(",");
        command
            .arg(format!("--etcd-servers=http://{}", self.etcd))
            .arg(format!("--bind-address={}", self.address.ip()))
            .arg(format!("--secure-port={}", self.address.port()))
            // What it would tell others to reach it by; loopback is refused, and nobody asks.
            .arg("--advertise-address=192.0.2.1")
            .arg("--endpoint-reconciler-type=none")
            .arg(format!("--service-account-issuer={TOKEN_ISSUER}"))
            .arg(format!("--api-audiences={audiences}"))
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged=true"])
            .arg(format!("--authorization-mode={}", if self.options.rbac { "RBAC" } else { "AlwaysAllow" }));
        for (flag, file) in [
            ("--cert-dir", &self.scratch.path().join("certs")),
            ("--tls-cert-file", &self.files.certificate),
            ("--tls-private-key-file", &self.files.key),
            ("--service-account-key-file", &self.files.token_public_key),
            ("--service-account-signing-key-file", &self.files.token_key),
            ("--token-auth-file", &self.files.tokens),
        ] {
            command.arg(flag).arg(file);
        }
        if !self.options.service_account_admission {
            command.arg("--disable-admission-plugins=ServiceAccount");
        }
        command.args(&self.options.arguments);
        Ok(command)
    }
}

/// A kubectl and whom it speaks for. Its files live as long as the [`ApiServer`].
#[derive(Clone, Debug)]
pub struct Kubectl {
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    /// Runs it and returns what it prints; an error holds what it says.
    pub fn run(&self, arguments: &[&str]) -> Result<String, RigError> {
        self.said(arguments).map(|(printed, _)| printed)
    }

    /// As [`Kubectl::run`], and also returns what it warns of, which API servers and webhooks tell it.
    pub fn run_with_warnings(&self, arguments: &[&str]) -> Result<String, RigError> {
        self.said(arguments).map(|(printed, errors)| printed + &errors)
    }

    fn said(&self, arguments: &[&str]) -> Result<(String, String), RigError> {
        let mut kubectl = Command::new(tools::kubectl()?);
        kubectl.arg("--cache-dir").arg(&self.cache);
        kubectl.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        let output = kubectl.output().map_err(RigError::io("could not start kubectl"))?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            return Ok((printed, errors));
        }
        Err(RigError::Command {
            command: format!("kubectl {}", arguments.join(" ")),
            output: printed + &errors,
        })
    }
}

impl Files {
    fn write(folder: &Path, address: SocketAddr, authority: &Authority) -> Result<Self, RigError> {
        let ip = address.ip().to_string();
        let names =
            [&ip, "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "10.96.0.1"];
        let keys = Keys::generate();
        let identity = authority.issue("kube-apiserver", &names);
        let authority = write_file(folder, "ca.crt", &authority.certificate_pem())?;
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "rig", "cluster": {
                "server": format!("https://{address}"), "certificate-authority": authority } }],
            "users": [{ "name": "admin", "user": { "token": ADMIN_TOKEN } }],
            "contexts": [{ "name": "rig", "context": { "cluster": "rig", "user": "admin" } }],
            "current-context": "rig",
        });
        Ok(Self {
            certificate: write_file(folder, "apiserver.crt", &identity.certificate_pem)?,
            key: write_file(folder, "apiserver.key", &identity.key_pem)?,
            token_key: write_file(folder, "tokens.key", &keys.private_pem)?,
            token_public_key: write_file(folder, "tokens.pub", &keys.public_pem)?,
            tokens: write_file(
                folder,
                "tokens.csv",
                &format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n"),
            )?,
            kubeconfig: write_file(folder, "kubeconfig", &kubeconfig.to_string())?,
            authority,
        })
    }
}

/// A running kube-controller-manager; killed on drop. It outlives restarts of its API server.
#[derive(Debug)]
pub struct ControllerManager {
    process: Process,
    scratch: Scratch,
}

impl ControllerManager {
    /// Starts it on an API server and waits until it is at work: the default namespace has its ServiceAccount.
    pub fn start(server: &ApiServer) -> Result<Self, RigError> {
        Self::start_with(server, &[])
    }

    /// As [`ControllerManager::start`], with further arguments.
    pub fn start_with(server: &ApiServer, arguments: &[&str]) -> Result<Self, RigError> {
        let scratch = Scratch::new("controller-manager")?;
        let mut command = Command::new(tools::kube_controller_manager()?);
        command.arg("--kubeconfig").arg(server.kubeconfig());
        command.arg("--service-account-private-key-file").arg(server.token_key());
        command.arg("--root-ca-file").arg(&server.files.authority);
        command.args(["--use-service-account-credentials=true", "--leader-elect=false", "--secure-port=0"]);
        command.args(arguments);
        let log = scratch.path().join("controller-manager.log");
        let process = Process::spawn("kube-controller-manager", command, log)?;
        let account = Request::get("/api/v1/namespaces/default/serviceaccounts/default");
        process.wait_until("the first ServiceAccount", START_LIMIT, || {
            (server.request(&account).ok()?.status == 200).then_some(())
        })?;
        Ok(Self { process, scratch })
    }

    /// Returns the folder of the log.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(self) -> Result<(), RigError> {
        self.process.terminate(STOP_LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::rig::poll;

    const MANIFEST: &str = r#"{
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": { "replicas": 2, "selector": { "matchLabels": { "app": "web" } }, "template": {
            "metadata": { "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "web", "image": "none" }] } } } }"#;

    #[test]
    fn deployments_become_pods_and_survive_a_restart_of_the_api_server() {
        let etcd = Etcd::start().unwrap();
        let options = ApiServerOptions { service_account_admission: true, ..ApiServerOptions::default() };
        let mut server = ApiServer::start_with(&etcd, options).unwrap();
        let _controllers = ControllerManager::start(&server).unwrap();

        let manifest = server.scratch.path().join("web.json");
        fs::write(&manifest, MANIFEST).unwrap();
        server.kubectl(&["apply", "-f", manifest.to_str().unwrap()]).unwrap();
        let pods = |server: &ApiServer| {
            let names = server.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"]).unwrap();
            names.lines().count()
        };
        poll("two pods", Duration::from_secs(30), || (pods(&server) == 2).then_some(())).unwrap();

        let address = server.address();
        server.restart().unwrap();
        assert_eq!(server.address(), address);
        assert_eq!(pods(&server), 2);

        // The controller manager has found the API server again: it acts.
        server.kubectl(&["scale", "deployment/web", "--replicas=1"]).unwrap();
        poll("one pod", Duration::from_secs(60), || (pods(&server) == 1).then_some(())).unwrap();

        server.stop().unwrap();
        server.request(&Request::get("/readyz")).unwrap_err();
    }

    #[test]
    fn tokens_are_issued_and_rbac_limits_them() {
        let etcd = Etcd::start().unwrap();
        let server = ApiServer::start(&etcd).unwrap();
        server.kubectl(&["create", "serviceaccount", "reviews"]).unwrap();
        let token = server.kubectl(&["create", "token", "reviews", "--audience", "istio-ca"]).unwrap();
        assert_eq!(token.trim().split('.').count(), 3, "{token}");
        let denied =
            server.kubectl(&["get", "pods", "--as", "system:serviceaccount:default:reviews"]).unwrap_err();
        assert!(denied.to_string().contains("Forbidden"), "{denied}");
    }
}
