//! `cargo xtask bench micro`: what single steps cost, beside what they cost others.

use anyhow::Context;
use bench::micro::{self, Case};
use bench::stats::short;
use clap::Parser;
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Measures the steps from objects to encoded resources, cold and on one core.
#[derive(Parser)]
#[command(name = "cargo xtask bench micro")]
struct Args {
    /// Only the cases whose name contains this
    filter: Option<String>,
    /// How long each step is repeated, in milliseconds
    #[arg(long, default_value_t = 500)]
    millis: u64,
    /// Others' manifests, `NAME-SERVICES-INSTANCES.yaml` each
    #[arg(long, value_name = "DIR", default_value = "../shared/bench")]
    inputs: PathBuf,
    /// Others' figures for them, as lines `BenchmarkSTEP/CASE NANOSECONDS ns/op …`
    #[arg(long, value_name = "FILE", default_value = "../shared/reference/istiod-microbench.txt")]
    figures: PathBuf,
}

/// A step, what it is called in others' figures, and how to do it once.
type Step = (&'static str, &'static str, fn(&Case) -> micro::Made);

const STEPS: [Step; 5] = [
    ("index", "InitPushContext", |case| {
        std::hint::black_box(case.index());
        micro::Made::default()
    }),
    ("clusters", "ClusterGeneration", Case::clusters),
    ("listeners", "ListenerGeneration", Case::listeners),
    ("routes", "RouteGeneration", Case::routes),
    ("endpoints", "EndpointGeneration", Case::endpoints),
];

fn main() -> ExitCode {
    e2e::exit(run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut cases = micro::own_cases()?;
    let mut figures = HashMap::new();
    if args.inputs.is_dir() {
        cases.extend(micro::cases_in(&args.inputs)?);
        figures = read_figures(args)?;
    } else {
        println!("skipped: others' manifests, which are not at {}", args.inputs.display());
    }
    println!("| step | case | time | resources | KiB | istiod | istiod / weft |");
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: |");
    for (step, theirs, work) in STEPS {
        for case in cases
            .iter()
            .filter(|case| args.filter.as_ref().is_none_or(|part| case.name.contains(part.as_str())))
        {
            row(step, case, work, figures.get(&(theirs.to_owned(), case.name.clone())), args);
        }
    }
    Ok(())
}

fn row(step: &str, case: &Case, work: fn(&Case) -> micro::Made, theirs: Option<&Duration>, args: &Args) {
    let (made, time) = measure(case, work, Duration::from_millis(args.millis));
    let note = match case.ignored.is_empty() {
        true => String::new(),
        false => format!(" (without {})", case.ignored.iter().cloned().collect::<Vec<_>>().join(", ")),
    };
    let (their_time, ratio) = match theirs {
        Some(theirs) => (short(*theirs), format!("{:.1}", theirs.as_secs_f64() / time.as_secs_f64())),
        None => (String::new(), String::new()),
    };
    println!(
        "| {step} | {}{note} | {} | {} | {} | {their_time} | {ratio} |",
        case.name,
        short(time),
        made.resources,
        made.bytes.div_ceil(1024),
    );
}

/// Returns the median time of one run.
fn measure(case: &Case, work: fn(&Case) -> micro::Made, at_least: Duration) -> (micro::Made, Duration) {
    let made = work(case);
    let began = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || (began.elapsed() < at_least && times.len() < 10_000) {
        let began = Instant::now();
        std::hint::black_box(work(case));
        times.push(began.elapsed());
    }
    times.sort_unstable();
    (made, times[times.len() / 2])
}

fn read_figures(args: &Args) -> anyhow::Result<HashMap<(String, String), Duration>> {
    let path = &args.figures;
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let figure = |line: &str| {
        let (name, rest) = line.strip_prefix("Benchmark")?.split_once(' ')?;
        let (step, case) = name.split_once('/')?;
        let nanos: f64 = rest.split_whitespace().next()?.parse().ok()?;
        Some(((step.to_owned(), case.to_owned()), Duration::from_secs_f64(nanos / 1e9)))
    };
    Ok(text.lines().filter_map(figure).collect())
}
