//! The sources against an API server in memory, with a clock that jumps.

mod fake;
mod harness;
mod random;
mod script;
