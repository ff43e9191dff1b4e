//! Cache of compiled schemas: one compilation per definition, however often lists are fetched.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use indexmap::IndexMap;
use sha2::{Digest, Sha256};

use super::compiled::{Check, Unusable};
use portcullis_protocol::exchange::Definition;

/// Limit in bytes of the compiled schemas, roughly counted.
const MAX_BYTES: usize = 256 << 20;
/// Limit of the tools that are recognized without a digest.
const MAX_TOOLS: usize = 8_192;
/// Size of an entry without its patterns, for each byte of its definition.
const BYTES_PER_BYTE: usize = 16;

/// Compiled schemas of one definition.
pub(super) struct Checks {
    pub input: Result<Check, Unusable>,
    /// `None` if the definition has no `outputSchema`.
    pub output: Option<Result<Check, Unusable>>,
}

impl Checks {
    /// Compiles both schemas of a definition.
    pub(super) fn of(tool: &Definition) -> Self {
        let definition = tool.definition.value();
        Self {
            input: definition.get("inputSchema").ok_or(Unusable::Missing).and_then(Check::of),
            output: definition.get("outputSchema").map(Check::of),
        }
    }

    fn bytes(&self) -> usize {
        let of = |check: Option<&Check>| check.map_or(0, Check::bytes);
        of(self.input.as_ref().ok())
            + of(self.output.as_ref().and_then(|output| output.as_ref().ok()))
    }
}

pub(super) type Key = [u8; 32];

/// Limited; removes the oldest first.
#[derive(Default)]
pub(super) struct Cache {
    by_digest: IndexMap<Key, (usize, Arc<Checks>)>,
    bytes: usize,
    /// A digest costs more than the validation of a small call, so a tool is recognized by its
    /// address in memory while it exists.
    by_address: HashMap<usize, (Weak<Definition>, Weak<Checks>)>,
}

impl Cache {
    /// Schemas compiled for exactly this tool.
    pub(super) fn recognise(&self, tool: &Arc<Definition>) -> Option<Arc<Checks>> {
        let (cached, checks) = self.by_address.get(&Arc::as_ptr(tool).addr())?;
        // An address is reused only after all references, including weak ones, are gone.
        (cached.as_ptr() == Arc::as_ptr(tool)).then(|| checks.upgrade())?
    }

    /// Schemas compiled for an equal definition.
    pub(super) fn find(&mut self, tool: &Arc<Definition>, key: &Key) -> Option<Arc<Checks>> {
        let checks = Arc::clone(&self.by_digest.get(key)?.1);
        self.remember(tool, &checks);
        Some(checks)
    }

    /// Stores compiled schemas.
    pub(super) fn keep(&mut self, tool: &Arc<Definition>, key: Key, checks: Checks) -> Arc<Checks> {
        let bytes = checks.bytes() + tool.definition.raw().len() * BYTES_PER_BYTE;
        let checks = Arc::new(checks);
        self.remember(tool, &checks);
        if let Some((old, _)) = self.by_digest.insert(key, (bytes, Arc::clone(&checks))) {
            self.bytes -= old;
        }
        self.bytes += bytes;
        while self.bytes > MAX_BYTES && self.by_digest.len() > 1 {
            if let Some((_, (old, _))) = self.by_digest.shift_remove_index(0) {
                self.bytes -= old;
            }
        }
        checks
    }

    fn remember(&mut self, tool: &Arc<Definition>, checks: &Arc<Checks>) {
        if self.by_address.len() >= MAX_TOOLS {
            self.by_address.retain(|_, (tool, _)| tool.strong_count() > 0);
            if self.by_address.len() >= MAX_TOOLS {
                self.by_address.clear();
            }
        }
        let address = Arc::as_ptr(tool).addr();
        self.by_address.insert(address, (Arc::downgrade(tool), Arc::downgrade(checks)));
    }

    /// Number of stored definitions.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_digest.len()
    }
}

/// Key of a definition.
pub(super) fn key(tool: &Definition) -> Key {
    Sha256::digest(tool.definition.raw()).into()
}
