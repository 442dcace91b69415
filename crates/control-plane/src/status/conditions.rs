//! From what is known of an object to its conditions. Pure.

use super::board::{Counts, Refusal};
use controllers::Wish;
use index::{Finding, Findings};

/// The condition that says whether an object is used as it is written.
const ACCEPTED: &str = "Accepted";
/// The condition that says whether it is in force in the proxies that use it.
const PROGRAMMED: &str = "Programmed";
/// Of more findings than these it is only said how many there are.
const MOST: usize = 10;

/// What all replicas together know about an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// The sum of those who have answered.
    pub(crate) counts: Counts,
    /// Replicas that do not know this generation of the object yet.
    pub(crate) behind: usize,
    /// Replicas that do not answer.
    pub(crate) silent: Vec<String>,
    /// Who refuses what came of it.
    pub(crate) refusal: Option<Refusal>,
}

/// Returns whether an object is used as it is written, and what is to be said about that.
pub(crate) fn accepted(findings: Option<&Findings>) -> [String; 4] {
    let all = findings.map(|findings| findings.findings.as_slice()).unwrap_or_default();
    let serves_last_good = findings.is_some_and(|findings| findings.serves_last_good);
    if !all.iter().any(|finding| finding.is_error) {
        return condition(ACCEPTED, "True", "Accepted", words(all, false));
    }
    let mut text = words(all, true);
    if serves_last_good {
        text += "; the last good form stays in use";
    }
    condition(ACCEPTED, "False", "Invalid", text)
}

fn words(findings: &[Finding], is_error: bool) -> String {
    let meant: Vec<String> = findings
        .iter()
        .filter(|finding| finding.is_error == is_error)
        .map(|finding| format!("{}: {}", finding.rejection.field, finding.rejection.reason))
        .collect();
    let more = meant.len().saturating_sub(MOST);
    let mut text = meant.into_iter().take(MOST).collect::<Vec<String>>().join("; ");
    if more > 0 {
        text += &format!("; and {more} more");
    }
    text
}

/// Returns the conditions of a generation of an object.
pub(crate) fn conditions(generation: i64, findings: Option<&Findings>, known: &Known) -> Wish {
    let accepted = accepted(findings);
    let programmed = match accepted[1].as_str() {
        "False" => of_refused(),
        _ => programmed(known),
    };
    Wish { generation, conditions: vec![accepted, programmed] }
}

/// Returns whether something is in force that is not used.
pub(crate) fn of_refused() -> [String; 4] {
    condition(PROGRAMMED, "False", "Invalid", "this generation is not in use, see Accepted".to_owned())
}

fn programmed(known: &Known) -> [String; 4] {
    let Known { counts, behind, silent, refusal } = known;
    let Counts { total, acked, waiting, waits_for } = counts;
    if let Some(Refusal { proxies, words }) = refusal {
        let text = format!("{proxies} of the proxies that use it refuse it: {words}");
        return condition(PROGRAMMED, "False", "Rejected", text);
    }
    if !silent.is_empty() {
        let text =
            format!("{acked} of {total} proxies have acknowledged it; no answer from {}", silent.join(", "));
        return condition(PROGRAMMED, "Unknown", "ReplicaSilent", text);
    }
    if *waiting > 0 || *behind > 0 {
        let text = match waits_for {
            Some(proxy) => format!("{acked} of {total} proxies have acknowledged it; waiting for {proxy}"),
            None => {
                format!("{acked} of {total} proxies have acknowledged it; not compiled by all replicas yet")
            }
        };
        return condition(PROGRAMMED, "False", "Pending", text);
    }
    let text = match total {
        0 => "in force; no proxy used it when this was found out".to_owned(),
        1 => "acknowledged by the one proxy that uses it".to_owned(),
        total => format!("acknowledged by all {total} proxies that use it"),
    };
    condition(PROGRAMMED, "True", "Programmed", text)
}

fn condition(kind: &str, status: &str, reason: &str, message: String) -> [String; 4] {
    [kind.to_owned(), status.to_owned(), reason.to_owned(), message]
}

/// Returns the conditions of an object of a kind that Weft does not act on.
pub(crate) fn unsupported(kind: &str, generation: i64) -> Wish {
    let (reason, text) = match is_policy(kind) {
        true => {
            ("NotEnforced", "Weft does not enforce this kind yet: traffic passes as if it were not there")
        }
        false => ("NotSupported", "Weft does not act on this kind yet"),
    };
    Wish { generation, conditions: vec![condition(ACCEPTED, "False", reason, text.to_owned())] }
}

/// Whether somebody relies on objects of a kind to keep others out.
pub(crate) fn is_policy(kind: &str) -> bool {
    matches!(kind, "AuthorizationPolicy" | "RequestAuthentication")
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Kind, ObjectKey, Rejection};

    fn findings(is_error: bool) -> Findings {
        let object = ObjectKey::new(Kind::VirtualService, "shop", "a");
        let rejection = Rejection { object, field: "spec.http[0]".to_owned(), reason: "no".to_owned() };
        Findings {
            findings: vec![Finding { rejection, is_error }],
            serves_last_good: is_error,
            ..Findings::default()
        }
    }

    fn said(findings: Option<&Findings>, known: &Known) -> String {
        let wish = conditions(3, findings, known);
        assert_eq!(wish.generation, 3);
        let said = wish
            .conditions
            .iter()
            .map(|[kind, status, reason, text]| format!("{kind}={status} {reason} ({text})"));
        said.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_condition_is_true_only_when_every_proxy_has_it() {
        let counts = |total, acked, waiting| Counts {
            total,
            acked,
            waiting,
            waits_for: Some("p".to_owned()).filter(|_| waiting > 0),
        };
        let known = |counts| Known { counts, ..Known::default() };
        let programmed = |known: &Known| said(None, known).replace("Accepted=True Accepted (), ", "");
        assert_eq!(
            programmed(&known(counts(0, 0, 0))),
            "Programmed=True Programmed (in force; no proxy used it when this was found out)"
        );
        assert_eq!(
            programmed(&known(counts(5, 5, 0))),
            "Programmed=True Programmed (acknowledged by all 5 proxies that use it)"
        );
        assert_eq!(
            programmed(&known(counts(5, 3, 2))),
            "Programmed=False Pending (3 of 5 proxies have acknowledged it; waiting for p)"
        );
        // Also one that does not use it any more has to learn that.
        assert!(programmed(&known(counts(5, 5, 1))).starts_with("Programmed=False Pending"));
        let behind = Known { behind: 1, ..known(counts(5, 5, 0)) };
        assert!(programmed(&behind).starts_with("Programmed=False Pending"));
        let silent = Known { silent: vec!["10.0.0.1:15012".to_owned()], ..known(counts(5, 5, 0)) };
        assert_eq!(
            programmed(&silent),
            "Programmed=Unknown ReplicaSilent (5 of 5 proxies have acknowledged it; no answer from 10.0.0.1:15012)"
        );
        let refusal = Some(Refusal { proxies: 2, words: "p refuses RDS 80: bad".to_owned() });
        let refused = Known { refusal, ..silent };
        assert_eq!(
            programmed(&refused),
            "Programmed=False Rejected (2 of the proxies that use it refuse it: p refuses RDS 80: bad)"
        );
    }

    #[test]
    fn what_is_refused_says_which_field_and_what_is_in_use() {
        let known = Known::default();
        let refused = said(Some(&findings(true)), &known);
        assert!(refused.starts_with("Accepted=False Invalid (spec.http[0]: no; the last good form stays in use), Programmed=False Invalid"), "{refused}");
        let warned = said(Some(&findings(false)), &known);
        assert!(warned.starts_with("Accepted=True Accepted (spec.http[0]: no), Programmed=True"), "{warned}");
    }
}
