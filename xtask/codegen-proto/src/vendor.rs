//! Copies from an upstream tree the `.proto` files that the root lists need, unmodified.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use regex::Regex;

use crate::compile::{proto_files, read_roots};

/// The include directories of the upstream tree (the `proto/` directory of the crate `envoy-types`).
const INCLUDES: [&str; 6] =
    ["data-plane-api", "xds", "googleapis", "cel-spec/proto", "opentelemetry-proto", "protoc-gen-validate"];

/// Replaces `proto/third_party` with what the root lists need out of `upstream`.
pub(crate) fn vendor(upstream: &Path, proto: &Path) -> Result<()> {
    let includes: Vec<PathBuf> = INCLUDES.iter().map(|dir| upstream.join(dir)).collect();
    let target = proto.join("third_party");
    let import = Regex::new(r#"(?m)^import (?:public |weak )?"([^"]+)";"#)?;

    // Directories in the root lists are looked up upstream: the copy may not exist yet.
    let mut pending = read_roots(proto, "roots.txt")?;
    let listed = fs::read_to_string(proto.join("roots-json.txt"))?;
    for dir in listed.lines().filter(|line| line.ends_with('/') && !line.starts_with('#')) {
        for include in &includes {
            pending.extend(proto_files(include, dir)?.into_iter().filter(|file| file.contains("/v3/")));
        }
    }

    let mut copied = BTreeSet::new();
    let mut contents = Vec::new();
    while let Some(name) = pending.pop() {
        if name.starts_with("google/protobuf/") || !copied.insert(name.clone()) {
            continue;
        }
        let first_party = proto.join("first_party").join(&name);
        let source = includes.iter().map(|include| include.join(&name)).find(|path| path.is_file());
        let (path, vendored) = match (first_party.is_file(), source) {
            (true, _) => (first_party, false),
            (false, Some(path)) => (path, true),
            (false, None) => bail!("{name} is neither in proto/first_party nor in {}", upstream.display()),
        };
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        pending.extend(import.captures_iter(&text).map(|captures| captures[1].to_owned()));
        if vendored {
            contents.push((name, text));
        }
    }

    for file in proto_files(&target, "")? {
        fs::remove_file(target.join(file))?;
    }
    for (name, text) in contents {
        let path = target.join(name);
        fs::create_dir_all(path.parent().context("a vendored file has a directory")?)?;
        fs::write(path, text)?;
    }
    Ok(())
}
