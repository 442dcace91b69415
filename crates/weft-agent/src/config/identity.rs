//! Where the control plane and the certificate authority are, and where certificates come from.

use super::node::NodeSettings;
use super::{ConfigError, Environment, ReadFile};
use k8s_api::mesh_config::ProxyConfig;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the injector mounts the roots of the control plane.
const MOUNTED_ROOTS: &str = "./var/run/secrets/istio/root-cert.pem";
/// Where virtual machines and mounted certificates have them.
const HOST_ROOTS: &str = "./etc/certs/root-cert.pem";
const KUBERNETES_ROOTS: &str = "./var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
const TOKEN: &str = "./var/run/secrets/tokens/istio-token";
/// Certificates that somebody else renews, such as a CSI driver.
const MOUNTED_CREDENTIALS: &str = "./var/run/secrets/workload-spiffe-credentials";

/// A certificate with its key and its roots, in files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain.
    pub certificate: PathBuf,
    /// The private key.
    pub private_key: PathBuf,
    /// The roots.
    pub roots: PathBuf,
}

/// Whom a server's certificate must come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// A file of certificates, watched. With `and_workload_roots` the roots of the workload's own certificate count
    /// too: they arrive earlier when roots are replaced.
    File {
        /// Where it is.
        path: PathBuf,
        /// Whether the roots that the authority sent are trusted besides.
        and_workload_roots: bool,
    },
    /// Those that the operating system trusts.
    System,
}

/// How a server proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTrust {
    /// Whom its certificate must come from.
    pub roots: Roots,
    /// The name that its certificate must have.
    pub name: String,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How it proves who it is; `None` for plain text.
    pub trust: Option<ServerTrust>,
}

/// The kind of keys that are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256.
    EcdsaP256,
    /// ECDSA on P-384.
    EcdsaP384,
    /// RSA of 2048, 3072 or 4096 bits.
    Rsa(u16),
}

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    /// An authority signs what the agent asks for.
    Authority {
        /// The authority.
        server: Server,
        /// A token that says who the workload is, read anew each time.
        token: PathBuf,
        /// A certificate that says so where there is no token.
        provisioned: Option<CertificateFiles>,
        /// A directory that each new certificate, with its key, is also written to. Nothing is written without it.
        output: Option<PathBuf>,
    },
    /// Somebody else renews files.
    Files(CertificateFiles),
}

/// Where certificates come from, and what they are like.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentitySettings {
    /// Where they come from.
    pub source: CertificateSource,
    /// The SPIFFE id that is asked for. The authority decides by the token.
    pub spiffe_id: String,
    /// The kind of keys.
    pub key: KeyKind,
    /// How long certificates should be valid.
    pub ttl: Duration,
    /// The share of a certificate's life that is left when it is renewed.
    pub grace_ratio: f64,
    /// By how much that share differs from proxy to proxy.
    pub grace_jitter: f64,
}

/// Reads where the control plane is.
pub(super) fn discovery(proxy: &ProxyConfig, environment: &Environment) -> Result<Server, ConfigError> {
    let (host, port) = split(&proxy.discovery_address)
        .map_err(|reason| ConfigError::variable("PROXY_CONFIG", format!("discoveryAddress: {reason}")))?;
    let trust = match proxy.control_plane_auth_policy.as_str() {
        "NONE" => None,
        "MUTUAL_TLS" => Some(ServerTrust {
            roots: roots(environment, "XDS_ROOT_CA")?,
            name: environment.text("ISTIOD_SAN").unwrap_or(&host).to_owned(),
        }),
        other => {
            let reason = format!("controlPlaneAuthPolicy: {other:?} is neither MUTUAL_TLS nor NONE");
            return Err(ConfigError::variable("PROXY_CONFIG", reason));
        }
    };
    Ok(Server { host, port, trust })
}

/// Reads where certificates come from.
pub(super) fn load(
    proxy: &ProxyConfig,
    environment: &Environment,
    read: ReadFile<'_>,
    node: &NodeSettings,
) -> Result<IdentitySettings, ConfigError> {
    let ratio = |name: &'static str, default: f64| {
        let ratio: f64 = environment.parse(name, "a number")?.unwrap_or(default);
        let valid = (0.0..=1.0).contains(&ratio);
        if valid {
            Ok(ratio)
        } else {
            Err(ConfigError::variable(name, format!("{ratio} is not between 0 and 1")))
        }
    };
    let trust_domain = environment.text("TRUST_DOMAIN").unwrap_or("cluster.local");
    Ok(IdentitySettings {
        source: source(proxy, environment, read)?,
        spiffe_id: format!("spiffe://{trust_domain}/ns/{}/sa/{}", node.namespace, node.service_account),
        key: key(environment)?,
        ttl: environment.duration("SECRET_TTL", Duration::from_secs(24 * 3600))?,
        grace_ratio: ratio("SECRET_GRACE_PERIOD_RATIO", 0.5)?,
        grace_jitter: ratio("SECRET_GRACE_PERIOD_RATIO_JITTER", 0.01)?,
    })
}

fn source(
    proxy: &ProxyConfig,
    environment: &Environment,
    read: ReadFile<'_>,
) -> Result<CertificateSource, ConfigError> {
    if environment.flag("FILE_MOUNTED_CERTS", false)? {
        let path =
            |name: &'static str, default: &str| PathBuf::from(environment.text(name).unwrap_or(default));
        return Ok(CertificateSource::Files(CertificateFiles {
            certificate: path("ISTIO_META_TLS_CLIENT_CERT_CHAIN", "./etc/certs/cert-chain.pem"),
            private_key: path("ISTIO_META_TLS_CLIENT_KEY", "./etc/certs/key.pem"),
            roots: path("ISTIO_META_TLS_CLIENT_ROOT_CERT", HOST_ROOTS),
        }));
    }
    let mounted = Path::new(MOUNTED_CREDENTIALS);
    let mounted = CertificateFiles {
        certificate: mounted.join("certificates.pem"),
        private_key: mounted.join("private_key.pem"),
        roots: mounted.join("ca_certificates.pem"),
    };
    if read(&mounted.certificate).is_ok() {
        return Ok(CertificateSource::Files(mounted));
    }
    let provisioned = environment.text("PROV_CERT").map(Path::new).map(|directory| CertificateFiles {
        certificate: directory.join("cert-chain.pem"),
        private_key: directory.join("key.pem"),
        roots: directory.join("root-cert.pem"),
    });
    Ok(CertificateSource::Authority {
        server: authority(proxy, environment)?,
        token: TOKEN.into(),
        provisioned,
        output: environment.text("OUTPUT_CERTS").map(PathBuf::from),
    })
}

/// The authority is the control plane unless it is said to be elsewhere. Plain text, in which anybody could read the
/// token, must be asked for in the same words as for the control plane.
fn authority(proxy: &ProxyConfig, environment: &Environment) -> Result<Server, ConfigError> {
    let address = environment.text("CA_ADDR").unwrap_or(&proxy.discovery_address);
    let (host, port) = split(address).map_err(|reason| ConfigError::variable("CA_ADDR", reason))?;
    let plain = proxy.control_plane_auth_policy == "NONE";
    if port == 15010 && !plain {
        let reason = format!(
            "{address:?} is a port for plain text, which the workload's token is not sent over; say \
             controlPlaneAuthPolicy: NONE if you mean it"
        );
        return Err(ConfigError::variable("CA_ADDR", reason));
    }
    let trust = match plain {
        true => None,
        false => Some(ServerTrust {
            roots: roots(environment, "CA_ROOT_CA")?,
            name: environment.text("ISTIOD_SAN").unwrap_or(&host).to_owned(),
        }),
    };
    Ok(Server { host, port, trust })
}

fn roots(environment: &Environment, variable: &'static str) -> Result<Roots, ConfigError> {
    let path = match environment.text(variable) {
        Some("SYSTEM") => return Ok(Roots::System),
        // Whoever names a file means that file.
        Some(path) => return Ok(Roots::File { path: path.into(), and_workload_roots: false }),
        None => match environment.text("PILOT_CERT_PROVIDER") {
            Some("none") => return Ok(Roots::System),
            Some("kubernetes") => {
                return Ok(Roots::File { path: KUBERNETES_ROOTS.into(), and_workload_roots: false });
            }
            Some("custom") => PathBuf::from(HOST_ROOTS),
            _ if environment.flag("FILE_MOUNTED_CERTS", false)? => {
                environment.text("ISTIO_META_TLS_CLIENT_ROOT_CERT").unwrap_or(HOST_ROOTS).into()
            }
            _ => match environment.text("PROV_CERT") {
                Some(directory) => Path::new(directory).join("root-cert.pem"),
                None => MOUNTED_ROOTS.into(),
            },
        },
    };
    Ok(Roots::File { path, and_workload_roots: true })
}

fn key(environment: &Environment) -> Result<KeyKind, ConfigError> {
    const SIZE: &str = "WORKLOAD_RSA_KEY_SIZE";
    match environment.text("ECC_SIGNATURE_ALGORITHM") {
        Some("ECDSA") => {}
        None => {
            // Istio makes RSA keys by default; here they are made on request, because they cost fifty times more.
            if let Some(bits) = environment.parse::<u16>(SIZE, "a number of bits")? {
                let valid = [2048, 3072, 4096].contains(&bits);
                let reason = format!("{bits} is none of 2048, 3072 and 4096");
                return if valid { Ok(KeyKind::Rsa(bits)) } else { Err(ConfigError::variable(SIZE, reason)) };
            }
        }
        Some(other) => {
            return Err(ConfigError::variable("ECC_SIGNATURE_ALGORITHM", format!("{other:?} is not ECDSA")));
        }
    }
    match environment.text("ECC_CURVE") {
        None | Some("P256") => Ok(KeyKind::EcdsaP256),
        Some("P384") => Ok(KeyKind::EcdsaP384),
        Some(other) => Err(ConfigError::variable("ECC_CURVE", format!("{other:?} is neither P256 nor P384"))),
    }
}

/// Splits `host:port`; an IPv6 address stands in brackets.
fn split(address: &str) -> Result<(String, u16), String> {
    let invalid = || format!("{address:?} is not host:port");
    let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or_else(invalid)?,
        None if host.contains(':') => return Err(invalid()),
        None => host,
    };
    if host.is_empty() {
        return Err(invalid());
    }
    Ok((host.to_owned(), port.parse().map_err(|_| invalid())?))
}
