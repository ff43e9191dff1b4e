//! The bench kit: a load generator, echo servers, floors, and the processes of a measurement.

pub mod echo;
pub mod floor;
pub mod load;
pub mod process;
pub mod proxy;

/// The protocol that clients and servers speak.
pub const REVISION: &str = "2025-11-25";

/// The median of some values; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
