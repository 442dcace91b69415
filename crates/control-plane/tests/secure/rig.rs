//! weftd in a process of its own, and whoever talks to it.

use anyhow::{Context as _, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use proto::istio::v1::auth::IstioCertificateRequest;
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use std::io::{self, BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http as http_uri;
use tonic::transport::{Channel, Endpoint};

pub(crate) const ISSUER: &str = "https://tokens.example";
const SERVICE: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: api, namespace: shop }
spec:
  hosts: [api.example.com]
  ports: [{ number: 80, name: http, protocol: HTTP }]
  resolution: STATIC
  endpoints: [{ address: 10.0.0.1 }]
";

/// A weftd that serves `SERVICE`, with an authority of its own making.
pub(crate) struct Weftd {
    pub(crate) process: Child,
    address: SocketAddr,
    scratch: tempfile::TempDir,
    key: EcdsaKeyPair,
}

impl Drop for Weftd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Weftd {
    pub(crate) fn start() -> Result<Self> {
        Self::start_with(&[("service.yaml".to_owned(), SERVICE.to_owned())])
    }

    /// Starts it on these files.
    pub(crate) fn start_with(files: &[(String, String)]) -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let at = |name: &str| scratch.path().join(name);
        std::fs::create_dir(at("config"))?;
        for (name, content) in files {
            std::fs::write(at("config").join(name), content)?;
        }
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        std::fs::write(at("keys.json"), jwks(&key).to_string())?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_weftd"));
        command.arg("--config").arg(at("config")).arg("--ca-dir").arg(at("ca"));
        command.arg("--token-keys").arg(at("keys.json")).args(["--token-issuer", ISSUER]);
        for flag in ["--grpc-addr", "--http-addr", "--monitoring-addr", "--secure-grpc-addr", "--https-addr"]
        {
            command.args([flag, "127.0.0.1:0"]);
        }
        command.args(["--log-format", "json", "--shutdown-duration", "1s"]);
        let mut process = command.stderr(Stdio::piped()).spawn()?;
        let log = process.stderr.take().context("its log")?;
        let mut lines = BufReader::new(log).lines();
        let address = loop {
            let line = lines.next().context("weftd ended")??;
            let line: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            let fields = &line["fields"];
            if fields["message"] == "encrypted xDS and certificates are served" {
                break fields["address"].as_str().context("an address")?.parse()?;
            }
        };
        // Somebody has to read the rest, or weftd would wait.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { process, address, scratch, key })
    }

    /// The folder of manifests.
    pub(crate) fn config(&self) -> std::path::PathBuf {
        self.scratch.path().join("config")
    }

    pub(crate) fn ca(&self) -> std::path::PathBuf {
        self.scratch.path().join("ca")
    }

    /// A token of the service account `cart` in `shop`.
    pub(crate) fn token(&self) -> Result<String> {
        self.token_for(600)
    }

    /// As [`Weftd::token`], good for so many seconds.
    pub(crate) fn token_for(&self, seconds: u64) -> Result<String> {
        self.token_at(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + seconds)
    }

    /// As [`Weftd::token`], good until then.
    pub(crate) fn token_at(&self, expires: u64) -> Result<String> {
        self.token_of("shop", "cart", expires)
    }

    /// A token of any service account.
    pub(crate) fn token_of(&self, namespace: &str, account: &str, expires: u64) -> Result<String> {
        let header = json!({ "alg": "ES256", "kid": "test" });
        let claims = json!({
            "iss": ISSUER, "aud": "istio-ca", "exp": expires,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes())?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    pub(crate) async fn connect(&self, identity: Option<&Identity>) -> Result<Channel> {
        let config = Arc::new(client_config(&self.ca(), identity)?);
        let address = self.address;
        let connector = tower::service_fn(move |_: http_uri::Uri| {
            let config = config.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("istiod.istio-system.svc").map_err(io::Error::other)?;
                let stream = TlsConnector::from(config).connect(name, stream).await?;
                io::Result::Ok(TokioIo::new(stream))
            }
        });
        Ok(Endpoint::from_static("http://istiod").connect_with_connector(connector).await?)
    }

    /// Buys a certificate with a token.
    pub(crate) async fn identity(&self) -> Result<Identity> {
        let key = rcgen::KeyPair::generate()?;
        let csr = rcgen::CertificateParams::default().serialize_request(&key)?.pem()?;
        let request = IstioCertificateRequest { csr, validity_duration: 600, metadata: None };
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token()?).parse()?);
        let mut client = IstioCertificateServiceClient::new(self.connect(None).await?);
        let response = client.create_certificate(request).await?.into_inner();
        Ok(Identity { chain: response.cert_chain, key: key.serialize_pem() })
    }
}

/// A certificate as the service answers it, and its key.
pub(crate) struct Identity {
    pub(crate) chain: Vec<String>,
    pub(crate) key: String,
}

fn jwks(key: &EcdsaKeyPair) -> Value {
    let point = key.public_key().as_ref();
    let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
    json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "test", "x": x, "y": y }] })
}

fn client_config(ca: &Path, identity: Option<&Identity>) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca.join("root-cert.pem"))?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => {
            let leaf = CertificateDer::from_pem_slice(identity.chain[0].as_bytes())?;
            let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
            builder.with_client_auth_cert(vec![leaf], key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
