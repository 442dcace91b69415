//! Golden files: `testdata/in/CASE.yaml` is ordinary manifests, `testdata/out/CASE.txt` what becomes of each object.
//!
//! `UPDATE_GOLDEN=1 cargo test -p weft-translate --test suite` rewrites the outputs and deletes those without input.

use crate::common::{context, objects, translate_object};
use k8s_api::object::Object;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};
use translate::delegate;

#[test]
fn golden_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let update = env::var_os("UPDATE_GOLDEN").is_some();
    let inputs = files(&root.join("in"));
    assert!(!inputs.is_empty(), "no cases in {}", root.display());
    let mut wrong = Vec::new();
    let mut expected = BTreeSet::new();
    for input in inputs {
        let name = input.file_stem().unwrap().to_str().unwrap().to_owned();
        let output = root.join("out").join(format!("{name}.txt"));
        let text = render(&fs::read_to_string(&input).unwrap());
        if update {
            fs::create_dir_all(root.join("out")).unwrap();
            fs::write(&output, &text).unwrap();
        } else if fs::read_to_string(&output).unwrap_or_default() != text {
            wrong.push(format!("{name}: differs, now:\n{text}"));
        }
        expected.insert(output);
    }
    for orphan in files(&root.join("out")).into_iter().filter(|output| !expected.contains(output)) {
        if update {
            fs::remove_file(orphan).unwrap();
        } else {
            wrong.push(format!("{} has no input", orphan.display()));
        }
    }
    assert!(wrong.is_empty(), "run with UPDATE_GOLDEN=1 if this is right:\n{}", wrong.join("\n"));
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

fn render(yaml: &str) -> String {
    let context = context();
    let objects = objects(yaml);
    let mut text = String::new();
    for object in &objects {
        let outcome = translate_object(&context, object);
        writeln!(text, "# {}", outcome.object).unwrap();
        for rejection in &outcome.rejections {
            writeln!(text, "rejected {}: {}", rejection.field, rejection.reason).unwrap();
        }
        for warning in &outcome.warnings {
            writeln!(text, "warning {}: {}", warning.field, warning.reason).unwrap();
        }
        match outcome.value {
            Some(value) => writeln!(text, "{value}\n").unwrap(),
            None => text.push_str("nothing is used\n\n"),
        }
    }
    render_delegation(&context, &objects, &mut text);
    text
}

/// Shows the merged form of every root.
fn render_delegation(context: &translate::Context, objects: &[Object], text: &mut String) {
    let rules: Vec<model::VirtualService> = objects
        .iter()
        .filter_map(|object| match object {
            Object::VirtualService(object) => translate::virtual_service(context, object).value,
            _ => None,
        })
        .collect();
    let find = |key: &model::ObjectKey| rules.iter().find(|rule| rule.meta.key == *key);
    for root in rules.iter().filter(|rule| !rule.hosts.is_empty()) {
        let merged = delegate::merge(root, &find);
        if merged.delegates.is_empty() {
            continue;
        }
        writeln!(text, "# {} with its delegates", root.meta.key).unwrap();
        for delegate in &merged.delegates {
            writeln!(text, "uses {delegate}").unwrap();
        }
        for rejection in &merged.rejections {
            writeln!(text, "rejected {}: {}", rejection.field, rejection.reason).unwrap();
        }
        writeln!(text, "{:#?}\n", merged.value.http).unwrap();
    }
}
