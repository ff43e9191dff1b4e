//! Bounds of what the archives and the views of a message may yield.

use super::super::scan::Spent;

/// Decoded bytes that a message may cost. Every text of the message earns its share when its scan
/// begins.
pub(in super::super) struct Allowance {
    /// Bytes that archives may yield: only they can expand without end.
    pub(super) inflated: usize,
    /// Bytes of views and of their layers. An ordinary text has some of each kind, and these of
    /// each other.
    viewed: usize,
}

/// Bytes that the archives of a message may yield, in addition to [`INFLATED_FACTOR`] times its
/// texts.
const BASE_INFLATED_BYTES: usize = 256 << 10;
const INFLATED_FACTOR: usize = 16;

/// The same for views.
pub(in super::super) const BASE_VIEWED_BYTES: usize = 1 << 20;
pub(in super::super) const VIEWED_FACTOR: usize = 64;

impl Allowance {
    pub(in super::super) fn new() -> Self {
        Self { inflated: BASE_INFLATED_BYTES, viewed: BASE_VIEWED_BYTES }
    }

    /// Adds the share of a text of the message.
    pub(in super::super) fn earn(&mut self, bytes: usize) {
        let add = |left: &mut usize, factor| {
            *left = left.saturating_add(bytes.saturating_mul(factor));
        };
        add(&mut self.inflated, INFLATED_FACTOR);
        add(&mut self.viewed, VIEWED_FACTOR);
    }

    /// Takes the bytes of a view.
    pub(in super::super) fn take(&mut self, bytes: usize) -> Result<(), Spent> {
        self.viewed = self.viewed.checked_sub(bytes).ok_or(Spent)?;
        Ok(())
    }
}
