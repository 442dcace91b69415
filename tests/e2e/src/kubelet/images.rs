//! Container images: the folders that `cargo xtask images` lays out, and stand-ins for those of others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use crate::{repository, weftd};

/// An image, as a runtime sees it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The folder that a container's root is a copy of.
    pub root: PathBuf,
    /// The user and the group of `USER`.
    pub user: (u32, u32),
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// `ENV`.
    pub environment: Vec<(String, String)>,
    /// `WORKDIR`.
    pub directory: String,
}

/// The images that the node has.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    /// The program of all images that are not Weft's, which is told which image it stands for.
    stand_in: PathBuf,
}

impl Images {
    /// Lays out the images in `folder`. Every other image is `stand_in`, called with the image's name and version.
    ///
    /// # Errors
    ///
    /// If they cannot be laid out.
    pub fn lay_out(folder: &Path, stand_in: &Path) -> anyhow::Result<Self> {
        let binaries = [weftd::executable()?, weftd::agent()?, weftd::weftctl()?];
        let collected = folder.join("binaries");
        fs::create_dir_all(&collected)?;
        for binary in binaries {
            let name = binary.file_name().context("a program has a name")?;
            link(&binary, &collected.join(name))?;
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut images = Command::new(cargo);
        images.current_dir(repository()).args(["xtask", "images", "--out"]).arg(folder);
        images.arg("--binaries").arg(&collected).stdin(Stdio::null());
        let output = images.output().context("cannot run cargo")?;
        ensure!(output.status.success(), "cargo xtask images: {}", String::from_utf8_lossy(&output.stderr));
        let all = Self { folder: folder.to_owned(), stand_in: stand_in.to_owned() };
        all.lay_out_stand_in()?;
        Ok(all)
    }

    /// A Rust program like weftd, which needs the same libraries.
    fn lay_out_stand_in(&self) -> anyhow::Result<()> {
        let root = self.folder.join("stand-in/rootfs");
        copy(&self.folder.join("weftd/rootfs"), &root)?;
        link(&self.stand_in, &root.join("usr/local/bin/stand-in"))
    }

    /// Returns the image of this name.
    ///
    /// # Errors
    ///
    /// If its Dockerfile is not understood.
    pub fn find(&self, name: &str) -> anyhow::Result<Image> {
        let last = name.rsplit('/').next().unwrap_or(name);
        let (short, tag) = last.split_once([':', '@']).unwrap_or((last, "latest"));
        let root = self.folder.join(short).join("rootfs");
        if root.is_dir() {
            let path = self.folder.join(short).join("Dockerfile");
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            return read(&text, root).with_context(|| path.display().to_string());
        }
        Ok(Image {
            root: self.folder.join("stand-in/rootfs"),
            user: (0, 0),
            entrypoint: ["/usr/local/bin/stand-in", short, tag].map(str::to_owned).into(),
            environment: Vec::new(),
            directory: "/".to_owned(),
        })
    }
}

fn read(dockerfile: &str, root: PathBuf) -> anyhow::Result<Image> {
    let mut image = Image {
        root,
        user: (0, 0),
        entrypoint: Vec::new(),
        environment: Vec::new(),
        directory: "/".to_owned(),
    };
    for line in dockerfile.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (word, rest) = line.split_once(' ').context("a line without a value")?;
        match word {
            "FROM" => ensure!(rest == "scratch", "there is no base image here"),
            "COPY" => ensure!(rest == "rootfs/ /", "only the folder is copied here"),
            "USER" => {
                let (user, group) = rest.split_once(':').context("USER must be user:group")?;
                image.user = (user.parse()?, group.parse()?);
            }
            "WORKDIR" => image.directory = rest.to_owned(),
            "ENV" => {
                let (name, value) = rest.split_once('=').context("ENV must be name=value")?;
                image.environment.push((name.to_owned(), value.to_owned()));
            }
            "ENTRYPOINT" => image.entrypoint = serde_json::from_str(rest)?,
            _ => bail!("{word} is not understood"),
        }
    }
    Ok(image)
}

/// Copies a folder by links, which take no space.
///
/// # Errors
///
/// If a file cannot be linked or copied.
pub(super) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?;
        } else {
            link(&entry.path(), &target)?;
        }
    }
    Ok(())
}

fn link(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(drop))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
