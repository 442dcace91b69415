//! The project's chores, run as `cargo xtask`.
fn main() {}
