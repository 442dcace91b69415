//! Writing certificates to a directory, for virtual machines that must know who they are after a restart although
//! their token is long over. It is done only where the user names the directory.

use super::certificate::Identity;
use ca::TrustBundle;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Writes the three files that Istio's agent writes too, each at once, the key for its owner only.
pub(super) fn write(directory: &Path, identity: &Identity, roots: &TrustBundle) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    // The key first: whoever finds a new chain finds its key.
    replace(directory, "key.pem", identity.key.pem(), 0o600)?;
    replace(directory, "cert-chain.pem", &identity.chain, 0o644)?;
    replace(directory, "root-cert.pem", roots.to_pem().as_bytes(), 0o644)
}

fn replace(directory: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = directory.join(format!(".{name}.new"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;
    use std::os::unix::fs::PermissionsExt as _;
    use testkit::rig::pki::Authority;

    #[test]
    fn the_key_is_its_owners_alone() {
        let scratch = testkit::rig::process::Scratch::new("output").unwrap();
        let directory = scratch.path().join("certs");
        let authority = Authority::new("root");
        let issued = authority.issue("one", &["spiffe://a/ns/b/sa/c"]);
        let key = PrivateKey::from_pem(issued.key_pem.into_bytes());
        let now = std::time::SystemTime::now().into();
        let identity = Identity::new(issued.certificate_pem.into_bytes(), key, now).unwrap();
        let roots = TrustBundle::from_pem(authority.certificate_pem().as_bytes()).unwrap();
        for _ in 0..2 {
            write(&directory, &identity, &roots).unwrap();
        }
        let mode = |name: &str| fs::metadata(directory.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("key.pem"), 0o600);
        assert_eq!(fs::read(directory.join("cert-chain.pem")).unwrap(), identity.chain);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 3);
        let files = crate::config::CertificateFiles {
            certificate: directory.join("cert-chain.pem"),
            private_key: directory.join("key.pem"),
            roots: directory.join("root-cert.pem"),
        };
        super::super::files::read(&files, now).unwrap();
    }
}
