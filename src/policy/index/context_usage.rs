//! What policies look at of a message's circumstances. What none looks at need not be shown:
//! building a datetime or an address costs more than a decision.

use std::ops::{BitOr, BitOrAssign};

/// Members of `context`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in super::super) struct ContextUsage(u16);

impl ContextUsage {
    pub(in super::super) const METHOD: Self = Self(1);
    pub(in super::super) const TRANSPORT: Self = Self(1 << 1);
    pub(in super::super) const REVISION: Self = Self(1 << 2);
    pub(in super::super) const NOW: Self = Self(1 << 3);
    pub(in super::super) const SOURCE_IP: Self = Self(1 << 4);
    pub(in super::super) const SESSION_CALLS: Self = Self(1 << 5);
    /// The arguments, by their pointers.
    pub(in super::super) const ARGS: Self = Self(1 << 6);
    /// `keys`, `leaves` and `size` of the arguments.
    pub(in super::super) const SUMMARY: Self = Self(1 << 7);
    /// The arguments, read as paths.
    pub(in super::super) const PATHS: Self = Self(1 << 8);
    /// The arguments, read as URLs.
    pub(in super::super) const URLS: Self = Self(1 << 9);
    pub(in super::super) const LABELS: Self = Self(1 << 10);
    /// The arguments, by the type of their tool.
    pub(in super::super) const INPUT: Self = Self(1 << 11);
    /// The lengths of arrays among the arguments.
    pub(in super::super) const LISTS: Self = Self(1 << 12);
    /// The arguments, however they are read.
    pub(in super::super) const ARGUMENTS: Self = Self(
        Self::ARGS.0
            | Self::SUMMARY.0
            | Self::PATHS.0
            | Self::URLS.0
            | Self::INPUT.0
            | Self::LISTS.0,
    );
    pub(in super::super) const ALL: Self = Self(u16::MAX);

    /// What there is of a member's name. All, of a name that is not known here.
    pub(super) fn of(attribute: &str) -> Self {
        match attribute {
            "method" => Self::METHOD,
            "transport" => Self::TRANSPORT,
            "revision" => Self::REVISION,
            "now" => Self::NOW,
            "source_ip" => Self::SOURCE_IP,
            "session_calls" => Self::SESSION_CALLS,
            "args" => Self::ARGS | Self::SUMMARY,
            "paths" => Self::PATHS,
            "urls" => Self::URLS,
            "lists" => Self::LISTS,
            "labels" => Self::LABELS,
            "input" => Self::INPUT,
            _ => Self::ALL,
        }
    }

    /// Whether every question has a member of this name.
    pub(super) fn is_always_there(attribute: &str) -> bool {
        !matches!(Self::of(attribute), Self::SOURCE_IP | Self::ALL)
    }

    /// Whether any of these is among them.
    pub(in super::super) fn has(self, any: Self) -> bool {
        self.0 & any.0 != 0
    }
}

impl ContextUsage {
    /// These without others.
    pub(in super::super) fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }
}

impl BitOr for ContextUsage {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for ContextUsage {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}
