//! weftd's webhooks over HTTPS, without a cluster: settings and facts come from files, and are followed.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use testkit::rig::http::{Request, Response};
use testkit::rig::poll;

const NAME: &str = "istiod-canary.istio-system.svc";
const VALUES: &str = "global: {hub: registry.example/weft, tag: 1.2.3}\n";

/// A weftd; killed on drop.
struct Weftd {
    process: Child,
    address: SocketAddr,
    scratch: tempfile::TempDir,
}

impl Drop for Weftd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn node(version: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: n}}, status: {{nodeInfo: {{kubeletVersion: {version}}}}}}}\n"
    )
}

impl Weftd {
    fn start() -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let at = |name: &str| scratch.path().join(name);
        std::fs::create_dir(at("config"))?;
        std::fs::write(at("config").join("node.yaml"), node("v1.33.0"))?;
        std::fs::write(at("values.yaml"), VALUES)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_weftd"));
        command.arg("--config").arg(at("config")).arg("--ca-dir").arg(at("ca"));
        command.arg("--injection-values").arg(at("values.yaml"));
        for flag in ["--grpc-addr", "--http-addr", "--monitoring-addr", "--secure-grpc-addr", "--https-addr"]
        {
            command.args([flag, "127.0.0.1:0"]);
        }
        command.args(["--log-format", "json", "--shutdown-duration", "1s", "--revision", "canary"]);
        let mut process = command.stderr(Stdio::piped()).spawn()?;
        let log = process.stderr.take().context("its log")?;
        let mut lines = BufReader::new(log).lines();
        let address = loop {
            let line = lines.next().context("weftd ended")??;
            let line: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            let fields = &line["fields"];
            if fields["message"] == "webhooks are served" {
                break fields["address"].as_str().context("an address")?.parse()?;
            }
        };
        // Somebody has to read the rest, or weftd would wait.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { process, address, scratch })
    }

    fn ask(&self, request: &Request) -> Result<Response> {
        Ok(request.send_tls(self.address, NAME, trusting(&self.scratch.path().join("ca/root-cert.pem"))?)?)
    }

    fn review(&self, path: &str, resource: &str, object: &Value) -> Result<Value> {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "1", "resource": {"group": "", "version": "v1", "resource": resource},
                "namespace": "shop", "operation": "CREATE", "object": object},
        });
        let request = Request::new("POST", path).header("content-type", "application/json");
        Ok(self.ask(&request.body(review.to_string()))?.json()?["response"].clone())
    }
}

fn trusting(root: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&std::fs::read(root)?)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// Returns what was added to a pod, as text.
fn added(response: &Value) -> Result<String> {
    Ok(String::from_utf8(STANDARD.decode(response["patch"].as_str().context("a patch")?)?)?)
}

#[test]
fn pods_are_injected_and_objects_judged_by_what_is_known_now() {
    let weftd = Weftd::start().unwrap();
    assert_eq!(weftd.ask(&Request::get("/ready")).unwrap().status, 200);
    let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "b"}]}});
    let inject = || weftd.review("/inject/cluster/east", "pods", &pod).unwrap();
    let patch = added(&inject()).unwrap();
    for part in ["registry.example/weft/proxyv2:1.2.3", "\"canary\"", "\"restartPolicy\":\"Always\"", "east"]
    {
        assert!(patch.contains(part), "{part} is not in {patch}");
    }
    // A node with an older kubelet joins: proxies are no native sidecars any more.
    std::fs::write(weftd.scratch.path().join("config/node.yaml"), node("v1.30.0")).unwrap();
    poll("the older kubelet", Duration::from_secs(30), || {
        (!added(&inject()).unwrap().contains("\"restartPolicy\":\"Always\"")).then_some(())
    })
    .unwrap();

    let route = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "a", "namespace": "shop"},
        "spec": {"hosts": ["a"], "http": [{"timeout": "soon", "route": [{"destination": {"host": "a"}}]}]},
    });
    let verdict = weftd.review("/validate", "virtualservices", &route).unwrap();
    assert_eq!(verdict["allowed"], false);
    let context = translate::Context::new(&model::MeshConfig::default(), "Kubernetes");
    let [(field, reason)] = &translate::validate(&context, &route.to_string()).rejections[..] else {
        panic!("one thing is wrong")
    };
    assert_eq!(verdict["status"]["message"], format!("{field}: {reason}"));
}
