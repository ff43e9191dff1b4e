//! The person's options for reading a file.

use std::collections::BTreeMap;

use crate::values::Values;

/// How packages from npm and PyPI run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Packages {
    /// As a program on this machine, in the sandbox.
    #[default]
    Process,
    /// In a container of an image for the language.
    Container,
}

/// The person's options for reading a file.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Settings of servers, by their names in the catalog.
    pub values: Values,
    /// Settings of others, such as a profile. They apply where the person set nothing, and cannot
    /// name folders.
    pub theirs: Values,
    /// The enabled tools, by the names of servers in the catalog.
    pub only: BTreeMap<String, Vec<String>>,
    /// Sources of secrets (`env:NAME`), by the names of servers in the catalog, then by variable or
    /// header.
    pub secrets: BTreeMap<String, BTreeMap<String, String>>,
    /// The name in the config, instead of a derived one.
    pub name: Option<String>,
    pub packages: Packages,
    /// The file is from elsewhere: it is never treated as a file of the person's own client.
    pub foreign: bool,
}
