//! What single steps cost, by case. `cargo bench -p weft-bench`, or `cargo xtask bench micro` for a comparison.

use bench::micro::{self, Case};
use divan::{Bencher, black_box};
use proto::resource::ResourceType;
use std::sync::LazyLock;

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let mut cases = micro::own_cases().expect("our own manifests are in order");
    if let Some(directory) = testkit::shared::path("bench") {
        cases.extend(micro::cases_in(&directory).expect("the reference manifests can be read"));
    }
    cases
});

fn main() {
    divan::main();
}

fn cases() -> impl Iterator<Item = &'static str> {
    CASES.iter().map(|case| case.name.as_str())
}

fn run<T>(bencher: Bencher<'_, '_>, name: &str, step: impl Fn(&Case) -> T + Sync) {
    let case = CASES.iter().find(|case| case.name == name).expect("names are those of cases");
    bencher.bench(|| black_box(step(case)));
}

macro_rules! steps {
    ($($step:ident),*) => {
        $(#[divan::bench(args = cases(), max_time = 1)]
        fn $step(bencher: Bencher<'_, '_>, name: &str) {
            run(bencher, name, Case::$step);
        })*
    };
}

steps!(parse, index, select, clusters, listeners, routes, endpoints, everything);

#[divan::bench(args = cases(), max_time = 1)]
fn frame_clusters(bencher: Bencher<'_, '_>, name: &str) {
    run(bencher, name, |case| case.frame(ResourceType::Cluster));
}
