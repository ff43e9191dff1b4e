//! What every verb is handed, and what it hands back.

use std::{
    fmt,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::output::{self, Progress};
use portcullis_config::{Diagnostics, Loaded};

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

/// How a verb ended, as its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It worked, or the answer is "allowed".
    Ok = 0,
    /// It did not work.
    Failure = 1,
    /// The command line asks for something that makes no sense.
    Usage = 2,
    /// The answer is "denied".
    Denied = 10,
    /// A check found something.
    Findings = 11,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that ends the program with [`Exit::Usage`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Diagnostics that end the program, printed with the place in the file that each is about.
#[derive(Debug)]
pub struct Reports(pub Vec<Box<dyn miette::Diagnostic + Send + Sync>>);

impl fmt::Display for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, report) in self.0.iter().enumerate() {
            write!(f, "{}{report}", if at == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for Reports {}

/// What is wrong with a config, as the error that ends the program.
pub(super) fn reports(Diagnostics(findings): Diagnostics) -> Reports {
    Reports(findings.into_iter().map(|finding| Box::new(finding) as _).collect())
}

/// Where the config is, and the only ways to print.
#[derive(Debug)]
pub struct Context {
    /// The config file, as the user named it.
    pub config: PathBuf,
    /// How to print data.
    pub format: Format,
}

impl Context {
    pub(super) fn new(global: Global) -> Self {
        Self { config: global.config, format: global.format }
    }

    /// Reads the config. Its `warnings` are not shown: `check` and `run` do that.
    ///
    /// # Errors
    /// [`Reports`] of everything that is wrong with it.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        Ok(portcullis_config::load(&self.config).map_err(reports)?)
    }

    /// Whether data is to be JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a line of data. Control characters and invisible ones are shown escaped, so it must
    /// be one line.
    ///
    /// # Errors
    /// Where standard output is closed or full; hand it on, `main` knows what to do.
    pub fn line(&self, text: impl fmt::Display) -> io::Result<()> {
        output::stdout(&format!("{}\n", output::escape(&text.to_string())))
    }

    /// Prints text as it is. For text of our own only (a schema): nothing is escaped.
    ///
    /// # Errors
    /// As [`Context::line`].
    pub fn verbatim(&self, text: &str) -> io::Result<()> {
        output::stdout(text)
    }

    /// Prints a value as JSON over several lines.
    ///
    /// # Errors
    /// As [`Context::line`].
    pub fn json(&self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        output::stdout(&format!("{}\n", output::escape_json(&text)))
    }

    /// Prints a value as JSON on one line, for streams of them.
    ///
    /// # Errors
    /// As [`Context::line`].
    pub fn json_line(&self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value)?;
        output::stdout(&format!("{}\n", output::escape_json(&text)))
    }

    /// Prints a line of JSON as it is: its bytes are what was hashed. On a terminal, characters
    /// that could steer it are escaped, which leaves the value the same.
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

    /// Prints a diagnostic with its place as data.
    ///
    /// # Errors
    /// As [`Context::line`].
    pub fn diagnostic(&self, diagnostic: &dyn miette::Diagnostic) -> io::Result<()> {
        output::stdout(&output::render(diagnostic, &io::stdout()))
    }

    /// Tells the person at the terminal something that is not data. Escaped, one line.
    pub fn note(&self, text: impl fmt::Display) {
        output::stderr(&format!("{}\n", output::escape(&text.to_string())));
    }

    /// Writes a question to standard error. Escaped, without the end of a line.
    pub fn ask(&self, text: &str) {
        output::stderr(&output::escape(text));
    }

    /// Prints a diagnostic with its place to standard error.
    pub fn report(&self, diagnostic: &dyn miette::Diagnostic) {
        output::stderr(&output::render(diagnostic, &io::stderr()));
    }

    /// Shows that something is under way, on a terminal and once it took more than a second,
    /// until the value is dropped.
    pub fn progress(&self, what: impl Into<String>) -> Progress {
        Progress::start(what.into())
    }
}
