//! Delivery: into a real broker, whatever happens to it, to the disk, or to the sensor.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "figures belong in the log")]
#[path = "../broker/mod.rs"]
mod broker;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/moved.rs"]
mod moved;
#[path = "../common/running.rs"]
mod running;
#[path = "../common/schema.rs"]
mod schema;
mod shipper;

mod audit;
mod conservation;
mod delivery;
mod faults;
mod security;
mod status;

/// The topic of every test, each on a broker of its own.
const TOPIC: &str = "pathwatch-alerts";
