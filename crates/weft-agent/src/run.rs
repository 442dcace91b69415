//! From arguments to a running agent.

use crate::args::{Args, Command, ProxyArgs};
use crate::bootstrap;
use crate::config::{Config, Environment};
use anyhow::Context as _;

/// Does what is asked for.
///
/// # Errors
/// Why it could not be done.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Bootstrap(proxy) => {
            crate::logging::start(&proxy.log)?;
            print!("{}", bootstrap::json(&load(proxy)?).context("the bootstrap has no JSON form")?);
            Ok(())
        }
        other => anyhow::bail!("this version cannot do that yet: {other:?}"),
    }
}

fn load(args: &ProxyArgs) -> anyhow::Result<Config> {
    let config = Config::load(args, &Environment::of_process(), &|path| std::fs::read_to_string(path))?;
    Ok(config)
}
