//! Tools of a language; each is located before it runs.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Failed, Language};

/// Path of a program, by its name.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Path of a program, or an error with the way to install it.
pub fn need(
    name: &str,
    tool: &'static str,
    language: Language,
    get: &'static str,
) -> Result<PathBuf, Failed> {
    find(name).ok_or(Failed::Missing { tool, language, get })
}

/// Run of a tool in a folder. Its standard error is inherited.
pub struct Run<'a> {
    program: PathBuf,
    args: Vec<OsString>,
    folder: &'a Path,
}

impl<'a> Run<'a> {
    pub fn of(program: impl Into<PathBuf>, folder: &'a Path) -> Self {
        Self { program: program.into(), args: Vec::new(), folder }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(self.folder).stdin(Stdio::null());
        // Tools written in Rust would print backtraces, which do not help an author.
        command.env_remove("RUST_BACKTRACE");
        command
    }

    fn command_line(&self) -> String {
        let program = self.program.file_name().unwrap_or(self.program.as_os_str());
        let words = std::iter::once(program).chain(self.args.iter().map(OsString::as_os_str));
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }

    fn failed(&self, ended: Option<String>) -> Failed {
        Failed::Tool { command: self.command_line(), ended }
    }

    /// Runs the tool to its end. Prints its standard output if it fails.
    pub fn go(self) -> Result<(), Failed> {
        let (succeeded, text) = self.run()?;
        if succeeded {
            return Ok(());
        }
        // Some tools print errors to standard output.
        eprint_text(&text);
        Err(self.failed(None))
    }

    /// Runs the tool, and returns its standard output.
    pub fn output(self) -> Result<String, Failed> {
        let (succeeded, text) = self.run()?;
        if succeeded { Ok(text) } else { Err(self.failed(None)) }
    }

    fn run(&self) -> Result<(bool, String), Failed> {
        let child = self.command().stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        let done = child.and_then(std::process::Child::wait_with_output);
        let done = done.map_err(|error| self.failed(Some(error.to_string())))?;
        Ok((done.status.success(), String::from_utf8_lossy(&done.stdout).into_owned()))
    }
}

fn eprint_text(text: &str) {
    use std::io::Write as _;
    // If standard error is closed, nothing can be reported.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
