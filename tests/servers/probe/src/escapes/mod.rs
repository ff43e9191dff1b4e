//! Attempts to get out, or at what is not this server's: each in a process of its own, since some
//! end the process that makes them.
//!
//! One that succeeds answers `ok` and leaves nothing behind: a file of the host is opened and not
//! written, a call that would harm is made with arguments that the kernel refuses only after it has
//! let the caller through.

mod files;
mod kernel;
mod limits;
mod network;
mod set_id;

pub use files::watch;

use std::{
    collections::BTreeMap,
    env, io,
    io::Read,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crate::attempts::outcome;

/// What whoever starts it tells of the outside, as `KEY=VALUE`.
type Given = BTreeMap<String, String>;
type Attempt = (&'static str, fn(&Given) -> io::Result<()>);

/// For one attempt. One that takes longer is ended, and says so.
const PATIENCE: Duration = Duration::from_secs(30);

fn all() -> impl Iterator<Item = Attempt> {
    [kernel::ALL, files::ALL, set_id::ALL, network::ALL, limits::ALL].into_iter().flatten().copied()
}

/// Makes one attempt, in this process.
pub fn attempt(words: &[String]) -> String {
    let (names, given) = parsed(words);
    match all().find(|(name, _)| names.iter().any(|wanted| wanted == name)) {
        Some((_, run)) => outcome(run(&given)),
        None => "no such attempt".to_owned(),
    }
}

/// Makes the attempts that are named, or all, and tells what came of each.
pub fn attempts(words: &[String]) -> BTreeMap<String, String> {
    let (names, _) = parsed(words);
    let given: Vec<&String> = words.iter().filter(|word| word.contains('=')).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let chosen = all().filter(|(name, _)| wanted(name));
    chosen.map(|(name, _)| (name.to_owned(), in_a_process(name, &given))).collect()
}

fn parsed(words: &[String]) -> (Vec<String>, Given) {
    let (given, names): (Vec<String>, Vec<String>) =
        words.iter().cloned().partition(|word| word.contains('='));
    let pair = |word: String| word.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    (names, given.into_iter().filter_map(pair).collect())
}

fn in_a_process(name: &str, given: &[&String]) -> String {
    let run = || -> io::Result<String> {
        let mut command = Command::new(env::current_exe()?);
        command.args(["--attempt", name]).args(given);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if began.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                return Ok("no end".to_owned());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let mut said = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut said)?;
        }
        Ok(match said.trim() {
            "" => ended(status),
            said => said.to_owned(),
        })
    };
    run().unwrap_or_else(|error| format!("not made: {error}"))
}

fn ended(status: ExitStatus) -> String {
    match status.signal() {
        Some(libc::SIGKILL) => "SIGKILL".to_owned(),
        Some(libc::SIGSYS) => "SIGSYS".to_owned(),
        Some(libc::SIGSEGV) => "SIGSEGV".to_owned(),
        Some(number) => format!("signal {number}"),
        None => "nothing said".to_owned(),
    }
}

fn given<'a>(given: &'a Given, key: &str) -> io::Result<&'a str> {
    given.get(key).map(String::as_str).ok_or_else(|| io::Error::other(format!("no {key} given")))
}

/// A refusal that is no error of the kernel's.
fn refused(words: &str) -> io::Result<()> {
    Err(io::Error::other(words.to_owned()))
}

/// Where the kernel let the caller through, and only then disliked the arguments.
fn past<T>(tried: io::Result<T>, number: i32) -> io::Result<()> {
    match tried {
        Err(error) if error.raw_os_error() == Some(number) => Ok(()),
        other => other.map(drop),
    }
}
