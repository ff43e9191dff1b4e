//! Problems in the config that prevent a command, each with its line.

use portcullis_config::Loaded;
use portcullis_protocol::names::ServerName;
use portcullis_upstream::config::Server;

/// Problems, with their positions in the config.
pub(super) struct ConfigErrors<'a> {
    loaded: &'a Loaded,
    found: Vec<String>,
}

impl<'a> ConfigErrors<'a> {
    /// Creates an empty list.
    pub fn of(loaded: &'a Loaded) -> Self {
        Self { loaded, found: Vec::new() }
    }

    /// Adds a problem by its JSON pointer.
    pub fn add(&mut self, pointer: &str, what: impl std::fmt::Display) {
        let line = self.loaded.line(pointer).map_or_else(String::new, |line| format!(":{line}"));
        self.found.push(format!("{}{line}: {what}", self.loaded.path.display()));
    }

    /// Adds possible secrets in plain text, in an entry that others will read.
    pub fn literals(&mut self, name: &ServerName, server: &Server) {
        for literal in self.loaded.literals(name, server) {
            self.add(&literal.pointer, literal.what);
        }
    }

    /// Ends the command if there are problems.
    ///
    /// # Errors
    /// All problems.
    pub fn end(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.found.is_empty(), "{}", self.found.join("\n"));
        Ok(())
    }
}
