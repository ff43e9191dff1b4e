//! What the person says beside the file.

use std::collections::BTreeMap;

use crate::values::Values;

/// How the packages of npm and PyPI run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Packages {
    /// As a program of this machine, in the sandbox.
    #[default]
    Process,
    /// In a container of the language's own image.
    Container,
}

/// What the person says beside the file.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Settings of servers, by the names that their catalog has for them.
    pub values: Values,
    /// Settings that somebody else says, as a profile does: they stand where the person set nothing,
    /// and name no folder.
    pub theirs: Values,
    /// The tools that are left on, by the names that the catalog has for servers.
    pub only: BTreeMap<String, Vec<String>>,
    /// Where secrets come from (`env:NAME`), by the names that the catalog has for servers, and then by
    /// the variable or the header.
    pub secrets: BTreeMap<String, BTreeMap<String, String>>,
    /// The name in our config, in the place of one made of theirs.
    pub name: Option<String>,
    pub packages: Packages,
    /// The file came from elsewhere: whatever its form, it is no file of the person's own client.
    pub foreign: bool,
}
