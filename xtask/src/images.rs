//! `cargo xtask images`: lays out the root folders of the container images, each beside its Dockerfile.
//!
//! ```text
//! target/images/weftd/   Dockerfile  rootfs/  weftd, weftctl
//! target/images/proxyv2/ Dockerfile  rootfs/  weft-agent (pilot-agent), envoy, nft
//! ```
//!
//! An image is what is in `rootfs` and nothing else: the programs, the libraries that they load (which the loader of this
//! machine names, so an image is for the architecture that it is laid out on), the system's certificates, and the names of
//! two users. There is no shell. Any builder can copy it onto `scratch`; none is needed to try it (`tests/e2e` runs it in
//! a changed root as the user of the Dockerfile).

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use toolbox::Tool;

use crate::{process, tidy, tools, workspace};

/// Where authorities are that everybody trusts, on Debian and what comes of it.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// What a loader takes to list what a program needs.
const LIMIT: Duration = Duration::from_secs(60);

/// What `cargo xtask images` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to (by default target/images)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A folder with weftd, weftctl and weft-agent; without it they are built, optimised
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
}

/// Builds what is missing and lays out both images.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let target = tidy::metadata()?.target_directory.into_std_path_buf();
    let binaries = match &args.binaries {
        Some(folder) => folder.clone(),
        None => {
            build()?;
            target.join("release")
        }
    };
    tools::install(&[Tool::Python, Tool::Envoy])?;
    let out = args.out.clone().unwrap_or_else(|| target.join("images"));
    for image in images(&binaries)? {
        let folder = out.join(image.name);
        lay_out(&image, &folder).with_context(|| format!("the image {}", image.name))?;
        println!("docker build --tag {} {}", image.name, folder.display());
    }
    Ok(())
}

fn build() -> anyhow::Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    // The agent last, and linked with all that it needs: it also runs on virtual machines, beside whatever is there.
    let control_plane = ["build", "--release", "--workspace", "--bin", "weftd", "--bin", "weftctl"];
    let agent = ["rustc", "--release", "--package", "weft-agent", "--bin", "weft-agent"];
    let linked = ["--", "--codegen", "target-feature=+crt-static"];
    for arguments in [control_plane.to_vec(), [&agent[..], &linked].concat()] {
        let mut build = Command::new(&cargo);
        let status =
            build.current_dir(workspace::root()).args(&arguments).status().context("cannot run cargo")?;
        if !status.success() {
            bail!("cargo {}: {status}", arguments.join(" "));
        }
    }
    Ok(())
}

/// What is in an image.
struct Image {
    /// Its name, and that of the folder with its Dockerfile.
    name: &'static str,
    /// Its user: a name and a number.
    user: (&'static str, u32),
    /// Programs, and where they are in it.
    programs: Vec<(PathBuf, &'static str)>,
    /// Links: where they are, and where they lead.
    links: &'static [(&'static str, &'static str)],
    /// Folders that volumes are mounted on.
    folders: &'static [&'static str],
}

fn images(binaries: &Path) -> anyhow::Result<[Image; 2]> {
    let nft = ["/usr/sbin/nft", "/sbin/nft"].map(PathBuf::from).into_iter().find(|path| path.is_file());
    let nft = nft.context("there is no nft: apt-get install nftables")?;
    Ok([
        Image {
            name: "weftd",
            user: ("weft", 65532),
            programs: vec![
                (binaries.join("weftd"), "usr/local/bin/weftd"),
                (binaries.join("weftctl"), "usr/local/bin/weftctl"),
            ],
            links: &[],
            folders: &["var/lib/weft"],
        },
        Image {
            name: "proxyv2",
            user: ("istio-proxy", 1337),
            programs: vec![
                (binaries.join("weft-agent"), "usr/local/bin/weft-agent"),
                (Tool::Envoy.find()?, "usr/local/bin/envoy"),
                (nft, "usr/sbin/nft"),
            ],
            // Hooks and runbooks call it by Istio's name.
            links: &[("usr/local/bin/pilot-agent", "weft-agent")],
            folders: &["etc/istio/proxy", "etc/istio/pod", "var/lib/istio/data", "var/run/secrets"],
        },
    ])
}

/// Makes the folder of an image anew.
fn lay_out(image: &Image, folder: &Path) -> anyhow::Result<()> {
    let root = folder.join("rootfs");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot replace {}", root.display()))?;
    }
    for path in ["etc", "tmp", "proc", "sys", "dev"].iter().chain(image.folders) {
        fs::create_dir_all(root.join(path))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let mut needed = BTreeSet::new();
    for (program, place) in &image.programs {
        put(program, &root.join(place))?;
        needed.extend(libraries(program)?);
    }
    for library in needed {
        put(&library, &root.join(library.strip_prefix("/").unwrap_or(&library)))?;
    }
    for (place, target) in image.links {
        symlink(target, root.join(place))?;
    }
    let (user, number) = image.user;
    let users = format!("root:x:0:0:root:/:/sbin/nologin\n{user}:x:{number}:{number}::/:/sbin/nologin\n");
    let groups = format!("root:x:0:\n{user}:x:{number}:\n");
    for (name, text) in [
        ("passwd", users.as_str()),
        ("group", &groups),
        ("nsswitch.conf", "hosts: files dns\n"),
        // Names of protocols in rules of the kernel.
        ("protocols", "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\n"),
    ] {
        fs::write(root.join("etc").join(name), text)?;
    }
    put(Path::new(CERTIFICATES), &root.join(CERTIFICATES.trim_start_matches('/')))
        .context("the system has no certificates of authorities (apt-get install ca-certificates)")?;
    let dockerfile = workspace::root().join("images").join(image.name).join("Dockerfile");
    put(&dockerfile, &folder.join("Dockerfile"))
}

/// Copies a file, as others may read it.
fn put(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to.parent().context("a file is in a folder")?)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    let mode = fs::metadata(to)?.permissions().mode();
    let mode = if mode & 0o111 == 0 { 0o644 } else { 0o755 };
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}

/// Returns the libraries that a program loads, with the loader itself.
fn libraries(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut ldd = process::command("ldd");
    let said = process::output(ldd.arg(program), LIMIT)
        .with_context(|| format!("which libraries {} needs", program.display()))?;
    parse_libraries(&said).with_context(|| format!("{} cannot run here", program.display()))
}

/// Reads what `ldd` prints: `name => path (address)`, or `path (address)` for the loader.
fn parse_libraries(said: &str) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for line in said.lines() {
        let (name, path) = line.split_once("=>").unwrap_or((line, line));
        if path.trim() == "not found" {
            bail!("there is no {}", name.trim());
        }
        let path = path.split_whitespace().next().unwrap_or_default();
        // The kernel's own (linux-vdso) has no file, and a program without libraries says so.
        if path.starts_with('/') {
            paths.insert(PathBuf::from(path));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_and_missing_ones_named() {
        let said = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/a/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        let found = parse_libraries(said).unwrap();
        assert_eq!(found, BTreeSet::from(["/lib/a/libc.so.6".into(), "/lib64/ld.so.2".into()]));
        let error = parse_libraries("\tlibx.so.1 => not found\n").unwrap_err();
        assert_eq!(error.to_string(), "there is no libx.so.1");
        assert_eq!(parse_libraries("\tstatically linked\n").unwrap(), BTreeSet::new());
    }
}
