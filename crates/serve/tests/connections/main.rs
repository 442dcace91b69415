//! Listeners and their clients, over pipes in memory and with a clock that stands still.

mod flood;
mod frames;
mod limits;
mod rig;
mod time;
