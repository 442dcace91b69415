//! Telemetry.

use super::targets;
use crate::report::{At, Report, Translated, object_key};
use k8s_api::telemetry as api;
use model::Kind;

/// Checks a Telemetry.
pub(super) fn check(object: &api::Telemetry) -> Translated<()> {
    let report = Report::new(object_key(Kind::Telemetry, &object.metadata));
    let (spec, at) = (&object.spec, report.at("spec"));
    targets::check(&at, spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    let at_logs = at.field("accessLogging");
    for (index, logs) in spec.access_logging.iter().enumerate() {
        providers(&at_logs.index(index), &logs.providers);
    }
    let at_metrics = at.field("metrics");
    for (index, metrics) in spec.metrics.iter().enumerate() {
        check_metrics(&at_metrics.index(index), metrics);
    }
    let at_tracing = at.field("tracing");
    if spec.tracing.len() > 1 {
        at_tracing.warn("has several entries, of which only those for one side each are used");
    }
    for (index, tracing) in spec.tracing.iter().enumerate() {
        check_tracing(&at_tracing.index(index), tracing);
    }
    report.all_or_nothing(())
}

fn providers(at: &At<'_>, providers: &[api::ProviderRef]) {
    let at = at.field("providers");
    for (index, _) in providers.iter().enumerate().filter(|(_, provider)| provider.name.is_empty()) {
        at.index(index).field("name").reject("must not be empty");
    }
}

fn check_metrics(at: &At<'_>, metrics: &api::Metrics) {
    providers(at, &metrics.providers);
    if let Some(interval) = &metrics.reporting_interval {
        at.field("reportingInterval").check(crate::parse::positive_duration(interval));
    }
    for (index, change) in metrics.overrides.iter().enumerate() {
        let at = at.field("overrides");
        let at = at.index(index);
        if let Some(given) = &change.match_ {
            let at = at.field("match");
            if given.custom_metric.as_ref().is_some_and(String::is_empty) {
                at.field("customMetric").reject("must not be empty");
            }
            if given.custom_metric.is_some() && given.metric.is_some() {
                at.reject("only one of metric and customMetric can be set");
            }
        }
        for (tag, change) in &change.tag_overrides {
            let at = at.field("tagOverrides");
            let at = at.key(tag);
            let removes = change.operation == Some(api::TagOperation::Remove);
            if removes && !change.value.is_empty() {
                at.field("value").reject("must not be set for REMOVE");
            } else if !removes && change.value.is_empty() {
                at.field("value").reject("is required for UPSERT");
            }
        }
    }
}

fn check_tracing(at: &At<'_>, tracing: &api::Tracing) {
    providers(at, &tracing.providers);
    if tracing.providers.len() > 1 {
        at.field("providers").warn("only one provider of traces can be used");
    }
    if let Some(percentage) = tracing.random_sampling_percentage
        && !(0.0..=100.0).contains(&percentage)
    {
        at.field("randomSamplingPercentage").reject(format!("{percentage} is not between 0 and 100"));
    }
    for (tag, given) in &tracing.custom_tags {
        let at = at.field("customTags");
        let at = at.key(tag);
        if tag.is_empty() {
            at.reject("a tag needs a name");
        }
        let names = [
            ("literal", given.literal.as_ref().map(|text| text.value.is_empty())),
            ("environment", given.environment.as_ref().map(|source| source.name.is_empty())),
            ("header", given.header.as_ref().map(|source| source.name.is_empty())),
            ("formatter", given.formatter.as_ref().map(|text| text.value.is_empty())),
        ];
        match names.iter().filter(|(_, empty)| empty.is_some()).count() {
            1 => {}
            0 => at.reject("one of literal, environment, header and formatter is required"),
            _ => at.reject("only one of literal, environment, header and formatter can be set"),
        }
        for (field, _) in names.iter().filter(|(_, empty)| *empty == Some(true)) {
            at.field(field).reject("must not be empty");
        }
    }
}
