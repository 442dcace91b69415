//! Environment variables, read as typed values whose errors name the variable.

use super::{ConfigError, duration};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

/// The environment of a process.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Returns that of this process. Variables that are not text are left out: none of ours can be.
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// Returns a variable that is set and not empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Returns a boolean as Go writes it; `default` if it is not set.
    pub fn flag(&self, name: &'static str, default: bool) -> Result<bool, ConfigError> {
        match self.text(name) {
            None => Ok(default),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some(value) => Err(ConfigError::variable(name, format!("{value:?} is neither true nor false"))),
        }
    }

    /// Returns a duration; `default` if it is not set.
    pub fn duration(&self, name: &'static str, default: Duration) -> Result<Duration, ConfigError> {
        let Some(value) = self.text(name) else { return Ok(default) };
        duration::parse(value).map_err(|reason| ConfigError::variable(name, reason))
    }

    /// Returns a value that has a text form, such as a number; `what` says what it should be.
    pub fn parse<T: FromStr>(&self, name: &'static str, what: &str) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.text(name) else { return Ok(None) };
        let invalid = |_| ConfigError::variable(name, format!("{value:?} is not {what}"));
        value.parse().map(Some).map_err(invalid)
    }

    /// Returns the variables whose names begin with `prefix`, by the rest of their names.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter_map(move |(name, value)| {
            let rest = name.strip_prefix(prefix)?;
            (!rest.is_empty()).then_some((rest, value.as_str()))
        })
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_variable_and_its_value() {
        let environment: Environment =
            [("A", "maybe"), ("B", "5x"), ("C", "many"), ("D", "")].into_iter().collect();
        assert_eq!(
            environment.flag("A", true).unwrap_err().to_string(),
            "A: \"maybe\" is neither true nor false"
        );
        let error = environment.duration("B", Duration::ZERO).unwrap_err().to_string();
        assert_eq!(error, "B: \"5x\" is not a duration, such as 10s or 1h30m");
        assert_eq!(
            environment.parse::<u16>("C", "a port").unwrap_err().to_string(),
            "C: \"many\" is not a port"
        );
        assert_eq!(environment.parse::<u16>("D", "a port").unwrap(), None);
        assert!(environment.flag("D", true).unwrap());
    }
}
