//! Writes `crds/`: `crdgen DIR`, or with `--check` compares and fails on a difference. `cargo xtask codegen crds` runs it.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

use k8s_api::crd::{CrdFile, HEADER, files};

fn main() -> ExitCode {
    let (flags, paths): (Vec<String>, Vec<String>) =
        env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let check = flags.iter().any(|flag| flag == "--check");
    let ([dir], true) = (paths.as_slice(), flags.iter().all(|flag| flag == "--check")) else {
        eprintln!("usage: crdgen [--check] DIR");
        return ExitCode::from(2);
    };
    let dir = Path::new(dir);
    let wanted = match files() {
        Ok(wanted) => wanted,
        Err(error) => return fail(&format!("cannot write a definition as YAML: {error}")),
    };
    match stale(dir, &wanted) {
        Err(error) => fail(&format!("cannot read {}: {error}", dir.display())),
        Ok(stale) if stale.is_empty() => ExitCode::SUCCESS,
        Ok(stale) if check => fail(&format!(
            "{} differs from the types: {}; run `cargo xtask codegen crds`",
            dir.display(),
            stale.join(", ")
        )),
        Ok(_) => match write(dir, &wanted) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("cannot write {}: {error}", dir.display())),
        },
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("crdgen: {message}");
    ExitCode::FAILURE
}

/// Returns the names of files that are missing, different, or no longer wanted.
fn stale(dir: &Path, wanted: &[CrdFile]) -> io::Result<Vec<String>> {
    let mut stale: Vec<String> = existing(dir)?;
    stale.retain(|name| wanted.iter().all(|file| file.name != *name));
    for file in wanted {
        if fs::read_to_string(dir.join(&file.name)).ok().as_deref() != Some(file.yaml.as_str()) {
            stale.push(file.name.clone());
        }
    }
    stale.sort();
    Ok(stale)
}

fn write(dir: &Path, wanted: &[CrdFile]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for name in existing(dir)? {
        if wanted.iter().all(|file| file.name != name) {
            fs::remove_file(dir.join(name))?;
        }
    }
    wanted.iter().try_for_each(|file| fs::write(dir.join(&file.name), &file.yaml))
}

/// Lists generated files only: the directory may hold others, such as the Gateway API's.
fn existing(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".yaml") && fs::read_to_string(entry.path())?.starts_with(HEADER) {
            names.push(name);
        }
    }
    Ok(names)
}
