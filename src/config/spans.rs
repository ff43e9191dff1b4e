//! Positions in the file: JSON pointers to byte ranges.

use std::{collections::HashMap, ops::Range};

/// Positions of a key and its value. An element of an array has no key.
#[derive(Debug, Clone)]
pub(super) struct Span {
    pub key: Option<Range<usize>>,
    pub value: Range<usize>,
}

impl Span {
    /// Position of the key, if there is one, because a value may be a whole table.
    pub fn head(&self) -> Range<usize> {
        self.key.clone().unwrap_or_else(|| self.value.clone())
    }
}

/// Positions of everything in a file, by JSON pointer.
#[derive(Debug, Clone, Default)]
pub(super) struct Spans(HashMap<String, Span>);

impl Spans {
    pub fn insert(&mut self, pointer: String, place: Span) {
        self.0.insert(pointer, place);
    }

    /// Position of that pointer, or of the nearest surrounding value that exists.
    pub fn nearest(&self, mut pointer: &str) -> Option<&Span> {
        loop {
            if let Some(place) = self.0.get(pointer) {
                return Some(place);
            }
            pointer = pointer.rsplit_once('/')?.0;
        }
    }

    /// Everything below a pointer.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Span)> {
        self.0.iter().map(|(pointer, place)| (pointer.as_str(), place))
    }
}
