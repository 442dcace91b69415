//! Every object of the conformance data decodes. The data lies beside the repository; where it is absent the test says so, and with
//! `CI=true` it fails.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_api::yaml::parse_documents;

#[test]
#[expect(clippy::disallowed_methods, reason = "only in CI is absent data a failure")]
fn conformance_objects_decode() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    if !root.is_dir() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{} is required in CI", root.display());
        println!("skipped: {} is absent", root.display());
        return;
    }
    let mut problems = Vec::new();
    let mut objects = 0;
    for file in object_files(&root) {
        let text = fs::read_to_string(&file).unwrap();
        for result in parse_documents(&text, &file.display().to_string()) {
            objects += 1;
            match result {
                Ok(document) => {
                    let unread = |message: &str| message.contains("not read yet");
                    let warnings = document.warnings.iter().filter(|warning| !unread(&warning.message));
                    problems.extend(warnings.map(|warning| format!("{}:{warning}", file.display())));
                }
                Err(error) => problems.push(error.to_string()),
            }
        }
    }
    assert!(objects > 1000, "only {objects} objects were found");
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

fn object_files(root: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = yaml_files(&root.join("bench"));
    files.extend(yaml_files(&root.join("conformance/crds")));
    for folder in ["xds", "simulation"] {
        for case in fs::read_dir(root.join("conformance").join(folder)).unwrap() {
            files.push(case.unwrap().path().join("objects.yaml"));
        }
    }
    files.retain(|file| file.exists());
    files.sort();
    files
}

fn yaml_files(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect()
}
