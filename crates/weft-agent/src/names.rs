//! Names of secrets, which compiled configuration and the bootstrap ask the agent for.

/// The workload's certificate.
pub const WORKLOAD_CERTIFICATE: &str = "default";
/// The roots of workload certificates.
pub const WORKLOAD_ROOTS: &str = "ROOTCA";
/// The roots of the control plane: those of the bootstrap's `xds-grpc` only.
pub const CONTROL_PLANE_ROOTS: &str = "weft-control-plane-roots";
/// What comes before `<certificate>~<private key>`: files of these paths.
pub const FILE_CERTIFICATE: &str = "file-cert:";
/// What comes before the path of a file of roots.
pub const FILE_ROOTS: &str = "file-root:";
/// The roots that the operating system trusts.
pub const SYSTEM_ROOTS: &str = "file-root:system";
