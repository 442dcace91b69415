//! Puts rules into the kernel by the programs that are there, and takes away what others of them have put there.

use super::programs::{ProgramError, run};
use super::settings::Backend;
use ::capture::iptables::{self, Existing};
use ::capture::{Family, Plan, nftables};

const NFT: &str = "nft";
const NFT_MODULES: &str = "nf_tables, nft_chain_nat, nft_redir, nft_ct, for TPROXY nft_tproxy";
const XT_MODULES: &str = "ip_tables, iptable_nat, xt_REDIRECT, xt_owner, xt_conntrack, for TPROXY iptable_mangle, xt_TPROXY, xt_mark, xt_connmark, for IPv6 ip6table_nat";

/// What iptables' programs are called: by default, and each kind by its own name.
const KINDS: [&str; 3] = ["", "-nft", "-legacy"];

/// Nobody could put rules into the kernel.
#[derive(Debug, thiserror::Error)]
#[error("traffic cannot be captured: {}", .0.join("; "))]
struct NobodyCan(Vec<String>);

/// Makes the kernel do what `plan` says, and returns which program did so.
pub(super) fn apply(plan: &Plan, backend: Backend, kernel: &[Family]) -> anyhow::Result<String> {
    let mut reasons = Vec::new();
    if backend != Backend::Iptables {
        match by_nft(plan, kernel) {
            Ok(()) => {
                clean_iptables(kernel);
                return Ok(NFT.to_owned());
            }
            Err(error) => refused(&mut reasons, &error),
        }
    }
    if backend != Backend::Nftables {
        for kind in KINDS {
            match by_iptables(plan, kind, kernel) {
                Ok(()) => {
                    clean_nft(kernel);
                    return Ok(program("iptables", kind, "restore"));
                }
                Err(error) => refused(&mut reasons, &error),
            }
        }
    }
    Err(NobodyCan(reasons).into())
}

fn refused(reasons: &mut Vec<String>, error: &ProgramError) {
    tracing::debug!(%error, "a program cannot set up capture");
    let reason = error.to_string();
    if !reasons.contains(&reason) {
        reasons.push(reason);
    }
}

fn by_nft(plan: &Plan, kernel: &[Family]) -> Result<(), ProgramError> {
    run(NFT, &["--file", "-"], &nftables::script(plan, kernel), NFT_MODULES).map(drop)
}

fn program(of_family: &str, kind: &str, does: &str) -> String {
    format!("{of_family}{kind}-{does}")
}

fn of_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

fn by_iptables(plan: &Plan, kind: &str, kernel: &[Family]) -> Result<(), ProgramError> {
    let mut inputs = Vec::new();
    for family in kernel {
        let save = program(of_family(*family), kind, "save");
        let existing = match run(&save, &[], "", XT_MODULES) {
            Ok(saved) => Existing::parse(&saved),
            // Of a family for which nothing is wanted, nothing has to be known.
            Err(_) if plan.family(*family).is_empty() && *family == Family::V6 => continue,
            Err(error) => return Err(error),
        };
        let input = iptables::script(plan.family(*family), &existing);
        if !input.is_empty() {
            inputs.push((program(of_family(*family), kind, "restore"), input));
        }
    }
    // What a table or a family cannot do is known before anything is changed.
    for arguments in [&["--noflush", "--wait=10", "--test"][..], &["--noflush", "--wait=10"]] {
        for (restore, input) in &inputs {
            run(restore, arguments, input, XT_MODULES)?;
        }
    }
    Ok(())
}

/// Takes away what iptables has of ours, or of Istio's.
fn clean_iptables(kernel: &[Family]) {
    for family in kernel {
        for kind in KINDS {
            let save = program(of_family(*family), kind, "save");
            let Ok(saved) = run(&save, &[], "", XT_MODULES) else { continue };
            let existing = Existing::parse(&saved);
            if existing.is_empty() {
                continue;
            }
            let restore = program(of_family(*family), kind, "restore");
            let input = iptables::script(Plan::nothing().family(*family), &existing);
            match run(&restore, &["--noflush", "--wait=10"], &input, XT_MODULES) {
                Ok(_) => tracing::info!(program = restore, "rules of an earlier run are gone"),
                Err(error) => tracing::warn!(%error, "rules of an earlier run are still there"),
            }
        }
    }
}

/// Takes away what nftables has of ours.
fn clean_nft(kernel: &[Family]) {
    let listed = run(NFT, &["list", "tables"], "", NFT_MODULES);
    if !listed.is_ok_and(|tables| tables.contains(nftables::TABLE)) {
        return;
    }
    match by_nft(&Plan::nothing(), kernel) {
        Ok(()) => tracing::info!(program = NFT, "rules of an earlier run are gone"),
        Err(error) => tracing::warn!(%error, "rules of an earlier run are still there"),
    }
}
