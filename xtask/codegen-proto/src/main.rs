//! Generates `crates/proto/src/generated/` from `proto/`: Rust types and the descriptor set.
//!
//! Run as `cargo xtask codegen proto`. This is a package of its own because a protobuf compiler and two code
//! generators take minutes to build, and no other chore needs them.

mod compile;
mod generate;
mod vendor;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The generated tree: file name to content.
type Files = BTreeMap<String, Vec<u8>>;

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => write(&root, &generated(&root)?),
        ["--check"] => check(&root, &generated(&root)?),
        ["--vendor-from", upstream] => {
            vendor::vendor(Path::new(upstream), &root.join("proto"))?;
            write(&root, &generated(&root)?)
        }
        _ => bail!("usage: xtask-codegen-proto [--check | --vendor-from DIR]"),
    }
}

fn output_dir(root: &Path) -> PathBuf {
    root.join("crates/proto/src/generated")
}

fn generated(root: &Path) -> Result<Files> {
    let proto = root.join("proto");
    let typed = compile::read_roots(&proto, "roots.txt")?;
    let described = compile::read_roots(&proto, "roots-json.txt")?;
    let compiled = compile::compile(&proto, &typed, &described)?;
    let mut files = generate::rust(compiled.typed)?;
    files.insert("envoy.fds".to_owned(), compiled.descriptor_set);
    Ok(files)
}

fn write(root: &Path, files: &Files) -> Result<()> {
    let dir = output_dir(root);
    fs::create_dir_all(&dir)?;
    for name in existing(&dir)?.into_keys().filter(|name| !files.contains_key(name)) {
        fs::remove_file(dir.join(name))?;
    }
    for (name, content) in files {
        // An unchanged file keeps its time stamp, so that cargo does not rebuild.
        let path = dir.join(name);
        if fs::read(&path).ok().as_ref() != Some(content) {
            fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    println!("{}: {} files", dir.display(), files.len());
    Ok(())
}

fn check(root: &Path, files: &Files) -> Result<()> {
    let existing = existing(&output_dir(root))?;
    let names: std::collections::BTreeSet<&String> = existing.keys().chain(files.keys()).collect();
    let stale: Vec<&str> = names
        .into_iter()
        .filter(|name| existing.get(*name) != files.get(*name))
        .map(String::as_str)
        .collect();
    if !stale.is_empty() {
        bail!("generated code is stale; run `cargo xtask codegen proto`. Different: {}", stale.join(", "));
    }
    println!("generated protobuf code is up to date");
    Ok(())
}

fn existing(dir: &Path) -> Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
    }
    Ok(files)
}
