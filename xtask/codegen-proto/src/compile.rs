//! From `.proto` files to descriptors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};
use regex::Regex;

/// Where `.proto` files live under `proto/`, the first match wins.
pub(crate) const TREES: [&str; 2] = ["first_party", "third_party"];

/// What the compiler hands on.
pub(crate) struct Compiled {
    /// The files that become Rust code.
    pub(crate) typed: FileDescriptorSet,
    /// Every file, encoded, its custom options kept.
    pub(crate) descriptor_set: Vec<u8>,
}

/// Returns the `.proto` files that a root list names, sorted; a line that ends in `/` stands for a directory.
pub(crate) fn read_roots(proto: &Path, list: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(proto.join(list)).with_context(|| format!("reading proto/{list}"))?;
    let mut roots = BTreeSet::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.ends_with('/') {
            for tree in TREES {
                roots.extend(proto_files(&proto.join(tree), line)?);
            }
        } else {
            roots.insert(line.to_owned());
        }
    }
    Ok(roots.into_iter().collect())
}

/// Returns the `.proto` files below `tree/dir`, named from `tree`.
pub(crate) fn proto_files(tree: &Path, dir: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut pending = vec![tree.join(dir)];
    while let Some(dir) = pending.pop() {
        if !dir.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "proto") {
                found.push(path.strip_prefix(tree)?.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Compiles both root lists and what they import.
pub(crate) fn compile(proto: &Path, typed: &[String], described: &[String]) -> Result<Compiled> {
    let mut resolver = ChainFileResolver::new();
    resolver.add(Qualifying::new(proto)?);
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(false);
    compiler.open_files(typed).context("compiling the files of proto/roots.txt")?;
    compiler.open_files(described).context("compiling the files of proto/roots-json.txt")?;
    Ok(Compiled {
        typed: closure(compiler.file_descriptor_set(), typed),
        descriptor_set: compiler.encode_file_descriptor_set(),
    })
}

/// Returns the files that `roots` need, in the order of `all`.
fn closure(all: FileDescriptorSet, roots: &[String]) -> FileDescriptorSet {
    let by_name: BTreeMap<&str, &FileDescriptorProto> =
        all.file.iter().map(|file| (file.name(), file)).collect();
    let mut needed: BTreeSet<String> = BTreeSet::new();
    let mut pending: Vec<&str> = roots.iter().map(String::as_str).collect();
    while let Some(name) = pending.pop() {
        if needed.insert(name.to_owned()) {
            pending.extend(by_name[name].dependency.iter().map(String::as_str));
        }
    }
    FileDescriptorSet { file: all.file.into_iter().filter(|file| needed.contains(file.name())).collect() }
}

/// Reads `.proto` files and writes relative type names out in full.
///
/// In `envoy.extensions.filters.http.fault.v3`, `common.fault.v3.FaultDelay` means the type in
/// `envoy.extensions.filters.common.fault.v3`. protoc finds it by trying one enclosing package after the other
/// until the whole name fits. protox stops at the first package that has a child called `common`, so whether a file
/// compiles would depend on which others are loaded. The vendored files stay as they are; the names are resolved
/// here, by protoc's rule.
struct Qualifying {
    trees: Vec<PathBuf>,
    packages: BTreeSet<String>,
    package: Regex,
    relative: Regex,
}

impl Qualifying {
    fn new(proto: &Path) -> Result<Self> {
        let trees: Vec<PathBuf> = TREES.iter().map(|tree| proto.join(tree)).collect();
        let package = Regex::new(r"(?m)^package ([a-z0-9_.]+);")?;
        // A type name in a field: at the start of a line or after the key of a map.
        let relative = Regex::new(
            r"(?m)^(?P<before> +(?:repeated |optional |map<[a-z0-9]+, )?)(?P<package>[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)(?P<name>\.[A-Z])",
        )?;
        let mut packages = BTreeSet::new();
        for tree in &trees {
            for file in proto_files(tree, "")? {
                let text = fs::read_to_string(tree.join(file))?;
                packages.extend(package.captures(&text).map(|captures| captures[1].to_owned()));
            }
        }
        Ok(Self { trees, packages, package, relative })
    }

    fn qualify(&self, source: &str) -> String {
        let Some(scope) = self.package.captures(source).map(|captures| captures[1].to_owned()) else {
            return source.to_owned();
        };
        let full = |captures: &regex::Captures<'_>| {
            let package = match self.resolve(&scope, &captures["package"]) {
                Some(package) => format!(".{package}"),
                None => captures["package"].to_owned(),
            };
            format!("{}{package}{}", &captures["before"], &captures["name"])
        };
        self.relative.replace_all(source, full).into_owned()
    }

    /// Returns the package that `name` stands for inside the package `scope`.
    fn resolve(&self, scope: &str, name: &str) -> Option<String> {
        let mut scope = scope;
        loop {
            let candidate = format!("{scope}.{name}");
            if self.packages.contains(&candidate) {
                return Some(candidate);
            }
            match scope.rfind('.') {
                Some(dot) => scope = &scope[..dot],
                None => return self.packages.contains(name).then(|| name.to_owned()),
            }
        }
    }
}

impl FileResolver for Qualifying {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let path = self.trees.iter().map(|tree| tree.join(name)).find(|path| path.is_file());
        let path = path.ok_or_else(|| protox::Error::file_not_found(name))?;
        let source = fs::read_to_string(&path).map_err(protox::Error::new)?;
        File::from_source(name, &self.qualify(&source))
    }
}
