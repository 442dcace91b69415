//! Tests of the whole crate through its public functions.

mod common;
mod golden;
mod rejections;
mod totality;
