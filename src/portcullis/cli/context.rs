//! Context of every command: options, config and output.

use std::{
    any::Any,
    fmt,
    io::{self, IsTerminal as _},
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    exit::reports,
    output::{self, Progress},
};
use crate::manage::Reporter;
use portcullis_config::Loaded;

/// Options of every verb.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The config file
    #[arg(
        short,
        long,
        global = true,
        value_name = "FILE",
        env = "PORTCULLIS_CONFIG",
        hide_env_values = true,
        default_value = "portcullis.toml"
    )]
    pub config: PathBuf,
    /// Output format
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables and text for people
    Text,
    /// JSON for programs, stable across versions
    Json,
}

/// Path of the config, and the only functions that print.
#[derive(Debug)]
pub struct Context {
    /// The config file, as the user named it.
    pub config: PathBuf,
    /// Output format of data.
    pub format: Format,
}

impl Context {
    pub(super) fn new(global: Global) -> Self {
        Self { config: global.config, format: global.format }
    }

    /// Reads the config. `check` and `run` print its `warnings`; this function does not.
    ///
    /// # Errors
    /// [`Reports`] with all errors of the config.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        Ok(portcullis_config::load(&self.config).map_err(reports)?)
    }

    /// Whether data is printed as JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a line of data. Control and invisible characters are escaped, so the text must be one
    /// line.
    ///
    /// # Errors
    /// Standard output is closed or full. Return the error; `main` handles it.
    pub fn line(&self, text: impl fmt::Display) -> io::Result<()> {
        output::stdout(&format!("{}\n", output::escape(&text.to_string())))
    }

    /// Prints a line of data that begins with a decision or a state, which has a color on a terminal.
    ///
    /// # Errors
    /// As [`Context::line`].
    pub fn state(&self, word: &str, rest: impl fmt::Display) -> io::Result<()> {
        let rest = rest.to_string();
        output::stdout(&format!("{}{}\n", output::state(word), output::escape(&rest)))
    }

    /// Prints text without escaping; only for the program's own text (a schema).
    ///
    /// # Errors
    /// As [`Context::line`].
    pub fn verbatim(&self, text: &str) -> io::Result<()> {
        output::stdout(text)
    }

    /// Prints a value as JSON on several lines.
    ///
    /// # Errors
    /// As [`Context::line`].
    pub fn json(&self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        output::stdout(&format!("{}\n", output::escape_json(&text)))
    }

    /// Prints a value as JSON on one line, for streams of values.
    ///
    /// # Errors
    /// As [`Context::line`].
    pub fn json_line(&self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value)?;
        output::stdout(&format!("{}\n", output::escape_json(&text)))
    }

    /// Prints a line of JSON unchanged: its bytes were hashed. On a terminal, characters that could
    /// control it are escaped, which keeps the value.
    ///
    /// # Errors
    /// As [`Context::line`].
    pub fn canonical(&self, text: &str) -> io::Result<()> {
        if io::stdout().is_terminal() {
            output::stdout(&format!("{}\n", output::escape_json(text)))
        } else {
            output::stdout(&format!("{text}\n"))
        }
    }

    /// Prints a table. Cells are escaped.
    ///
    /// # Errors
    /// As [`Context::line`].
    pub fn table<R>(&self, header: &[&str], rows: R) -> io::Result<()>
    where
        R: IntoIterator,
        R::Item: IntoIterator<Item = String>,
    {
        output::stdout(&output::table(header, rows))
    }

    /// Prints a diagnostic with its position as data.
    ///
    /// # Errors
    /// As [`Context::line`].
    pub fn diagnostic(&self, diagnostic: &dyn miette::Diagnostic) -> io::Result<()> {
        output::stdout(&output::render(diagnostic, &io::stdout()))
    }

    /// Prints a message that is not data to standard error: escaped, one line.
    pub fn note(&self, text: impl fmt::Display) {
        output::stderr(&format!("{}\n", output::escape(&text.to_string())));
    }

    /// Prints a question to standard error: escaped, without a line break.
    pub fn ask(&self, text: &str) {
        output::stderr(&output::escape(text));
    }

    /// Prints a diagnostic with its position to standard error.
    pub fn report(&self, diagnostic: &dyn miette::Diagnostic) {
        output::stderr(&output::render(diagnostic, &io::stderr()));
    }

    /// Shows an operation in progress on a terminal, after one second, until the value is dropped.
    pub fn progress(&self, what: impl Into<String>) -> Progress {
        Progress::start(what.into())
    }
}

impl Reporter for Context {
    fn note(&self, text: &str) {
        Self::note(self, text);
    }

    fn step(&self, what: String) -> Box<dyn Any> {
        Box::new(self.progress(what))
    }
}
