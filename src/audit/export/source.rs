//! The store as the source of streams.

use std::sync::Arc;

use tokio::sync::watch;

use super::exporter::Source;
use crate::{
    line::Line,
    store::{SegmentSet, View},
};

pub(super) struct Stored(pub Arc<SegmentSet>);

impl Source for Stored {
    fn ends(&self) -> watch::Receiver<u64> {
        self.0.ends()
    }

    fn first(&self) -> u64 {
        self.0.view().first()
    }

    fn lines(&self, from: u64, most: usize) -> Result<Vec<Line>, String> {
        let view = self.0.view();
        let from = from.max(view.first());
        let lines = view.lines(from, most).map_err(|fault| fault.to_string())?;
        if lines.is_empty() && from < view.end() {
            return Err(format!("record {from} is not where it should be"));
        }
        Ok(lines)
    }

    fn behind(&self, from: u64) -> Option<u64> {
        let view = self.0.view();
        // Opens one segment after another, so that a long log is never open as a whole.
        let begins = view.segments(from, view.end());
        let ends = begins.iter().skip(1).map(|next| next - 1).chain([view.end()]);
        begins.iter().zip(ends).find_map(|(begin, end)| {
            let (blocks, _) = view.blocks((*begin).max(from), end, None, None);
            let readable = |seq: &u64| *seq > from && is_readable(&view, *seq);
            blocks.iter().map(|block| block.first()).find(readable)
        })
    }
}

fn is_readable(view: &View, seq: u64) -> bool {
    view.lines(seq, 1).is_ok_and(|lines| !lines.is_empty())
}
