//! What tests need of the system itself: programs that belong to its kernel, and that nobody can pin.
//!
//! Only root can use them, and root can install them, where there is Debian's `apt-get`.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process;

/// The package of each program, and how the program shows that it works.
const PROGRAMS: [(&str, &[&str]); 4] = [
    ("iproute2", &["ip", "-Version"]),
    ("util-linux", &["unshare", "--version"]),
    ("nftables", &["nft", "--version"]),
    ("iptables", &["iptables-restore", "--version"]),
];
/// Package lists and packages come over a network that may be slow.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// Installs what is missing. Without root the tests that need it are skipped, and say so; without `apt-get` they fail, and
/// name the package.
pub(crate) fn install() -> anyhow::Result<()> {
    let missing: Vec<&str> =
        PROGRAMS.iter().filter(|(_, command)| !works(command)).map(|(package, _)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() || !works(&["apt-get", "--version"]) {
        println!("not installed: {}", missing.join(", "));
        return Ok(());
    }
    println!("apt-get install {}", missing.join(" "));
    process::run(process::command("apt-get").args(["update", "-qq"]), LIMIT)?;
    let mut install = process::command("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(missing);
    process::run(&mut install, LIMIT)
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn works(command: &[&str]) -> bool {
    let [program, arguments @ ..] = command else { return false };
    let mut command = Command::new(program);
    let silent = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    silent.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_does_not_work() {
        assert!(works(&["true"]));
        assert!(!works(&["false"]));
        assert!(!works(&["weft-no-such-program"]));
    }
}
