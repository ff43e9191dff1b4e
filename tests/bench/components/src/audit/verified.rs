//! How fast a store is verified.

use std::{path::Path, time::Instant};

use anyhow::ensure;
use portcullis_audit::proof::verify;

use super::row;

pub fn verified(store: &Path, records: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    let request = verify::Request::of(store.to_owned(), None);
    let report = verify::verify(&request)?;
    let took = began.elapsed();
    ensure!(report.is_good() && report.records >= records, "{report:?}");
    let rate = records as f64 / took.as_secs_f64();
    row("verified", format!("{rate:.0} records a second, {:.0} s for all", took.as_secs_f64()));
    Ok(())
}
