//! Which crate may depend on which.
//!
//! ```text
//! 4 whole   control-plane · weft-agent · weftctl
//! 3 edge    controllers · source-dir · identity · webhook
//! 2 state   index · serve · xds · push
//! 1 pure    translate · compile · explain · ca · inject · capture
//! 0 words   model · k8s-api · proto
//! ```
//!
//! A crate knows layers below its own only, and of these only what its row names: that is what makes a promise such
//! as "the compiler reads no clock" checkable. A new edge is a commit of its own that changes the table.

use cargo_metadata::{Dependency, DependencyKind, Metadata, Package};

/// One row of the table.
struct Row {
    package: &'static str,
    layer: Layer,
    /// The workspace crates that its code may use.
    uses: &'static [&'static str],
    /// What its tests may use besides; `weft-testkit` and `weft-toolbox` go without saying.
    tests_use: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Words,
    Pure,
    State,
    Edge,
    Whole,
    /// Chores and tests: never part of what is shipped.
    Development,
}

/// Stands for every crate of layers 0 to 3.
const BELOW_WHOLE: &str = "layers 0 to 3";
/// Stands for every crate of the workspace.
const ALL: &str = "everything";

const TABLE: &[Row] = &[
    row("weft-model", Layer::Words, &[], &[]),
    row("weft-k8s-api", Layer::Words, &[], &[]),
    row("weft-proto", Layer::Words, &[], &[]),
    row("weft-translate", Layer::Pure, &["weft-model", "weft-k8s-api"], &[]),
    row("weft-compile", Layer::Pure, &["weft-model", "weft-proto"], &["weft-k8s-api", "weft-translate"]),
    row("weft-explain", Layer::Pure, &["weft-model", "weft-proto"], &[]),
    row("weft-ca", Layer::Pure, &["weft-model"], &[]),
    row("weft-inject", Layer::Pure, &["weft-k8s-api"], &[]),
    row("weft-capture", Layer::Pure, &[], &[]),
    row("weft-index", Layer::State, &["weft-model", "weft-k8s-api", "weft-translate"], &[]),
    row("weft-serve", Layer::State, &[], &[]),
    row("weft-xds", Layer::State, &["weft-proto", "weft-serve"], &[]),
    row("weft-push", Layer::State, &["weft-model", "weft-proto", "weft-compile", "weft-xds"], &[]),
    row(
        "weft-controllers",
        Layer::Edge,
        &["weft-model", "weft-k8s-api", "weft-translate", "weft-index"],
        &[],
    ),
    row("weft-source-dir", Layer::Edge, &["weft-model", "weft-k8s-api", "weft-translate", "weft-index"], &[]),
    row("weft-identity", Layer::Edge, &["weft-model", "weft-proto", "weft-ca", "weft-serve"], &[]),
    row("weft-webhook", Layer::Edge, &["weft-k8s-api", "weft-translate", "weft-inject"], &["weft-model"]),
    row("weft-control-plane", Layer::Whole, &[BELOW_WHOLE], &[]),
    row(
        "weft-agent",
        Layer::Whole,
        &["weft-k8s-api", "weft-proto", "weft-ca", "weft-capture", "weft-model"],
        &["weft-inject", "weft-serve"],
    ),
    row("weftctl", Layer::Whole, &[BELOW_WHOLE], &[]),
    row("weft-toolbox", Layer::Development, &[], &[]),
    row("weft-testkit", Layer::Development, &[BELOW_WHOLE, "weft-toolbox"], &[]),
    row("xtask-codegen-proto", Layer::Development, &[], &[]),
    row("weft-e2e", Layer::Development, &[ALL], &[]),
    row("weft-bench", Layer::Development, &[ALL], &[]),
    row("xtask", Layer::Development, &[ALL], &[]),
];

/// What the pure layers must not use directly: what waits, watches, or is random has no place in a function of its
/// arguments.
const IMPURE: &[&str] = &["tokio", "futures", "hyper", "kube", "notify", "rand", "reqwest", "async-trait"];

const fn row(
    package: &'static str,
    layer: Layer,
    uses: &'static [&'static str],
    tests_use: &'static [&'static str],
) -> Row {
    Row { package, layer, uses, tests_use }
}

fn find(package: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.package == package)
}

/// Returns whether `package` belongs to layers 0 or 1.
pub(super) fn is_pure(package: &str) -> bool {
    find(package).is_some_and(|row| matches!(row.layer, Layer::Words | Layer::Pure))
}

/// Returns a line for every edge that the table does not have.
pub(super) fn check(metadata: &Metadata) -> Vec<String> {
    metadata.packages.iter().flat_map(check_package).collect()
}

fn check_package(package: &Package) -> Vec<String> {
    let name = package.name.as_str();
    let Some(row) = find(name) else {
        return vec![format!("{name}: not in the layer table of xtask/src/tidy/layers.rs")];
    };
    package.dependencies.iter().filter_map(|dependency| problem(row, dependency)).collect()
}

fn problem(row: &Row, dependency: &Dependency) -> Option<String> {
    let (from, to) = (row.package, dependency.name.as_str());
    if dependency.path.is_none() {
        let forbidden = is_pure(from) && dependency.kind == DependencyKind::Normal && IMPURE.contains(&to);
        return forbidden.then(|| format!("{from}: layers 0 and 1 must not use {to}"));
    }
    let allowed = allows(row.uses, to)
        || dependency.kind == DependencyKind::Development
            && (allows(row.tests_use, to) || to == "weft-testkit" || to == "weft-toolbox");
    let kind = if dependency.kind == DependencyKind::Development { " in tests" } else { "" };
    (!allowed).then(|| format!("{from}: must not use {to}{kind} (layer table in xtask/src/tidy/layers.rs)"))
}

fn allows(uses: &[&str], package: &str) -> bool {
    let layer = find(package).map(|row| row.layer);
    uses.iter().any(|used| match *used {
        ALL => true,
        BELOW_WHOLE => matches!(layer, Some(Layer::Words | Layer::Pure | Layer::State | Layer::Edge)),
        used => used == package,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_name_crates_of_lower_layers_only() {
        for row in TABLE.iter().filter(|row| row.layer != Layer::Development) {
            for used in row.uses.iter().filter(|used| **used != BELOW_WHOLE) {
                let below = find(used).unwrap();
                // Within layer 2, push feeds xds, which is served by serve; index knows none of them.
                let same_layer_by_design =
                    [("weft-push", "weft-xds"), ("weft-xds", "weft-serve")].contains(&(row.package, *used));
                assert!(
                    (below.layer as u8) < row.layer as u8 || same_layer_by_design,
                    "{} -> {used}",
                    row.package
                );
            }
        }
    }

    #[test]
    fn the_compiler_may_not_see_kubernetes() {
        let compile = find("weft-compile").unwrap();
        assert!(allows(compile.uses, "weft-model"));
        assert!(!allows(compile.uses, "weft-k8s-api"));
        assert!(!allows(compile.uses, "weft-testkit"));
    }

    #[test]
    fn nothing_shipped_may_use_the_test_kit() {
        for row in TABLE.iter().filter(|row| row.layer != Layer::Development) {
            assert!(!allows(row.uses, "weft-testkit"), "{}", row.package);
        }
    }
}
