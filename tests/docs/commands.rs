//! Command lines: split like a shell does, and parsed by the command line's own definition.

use std::{collections::BTreeSet, path::Path, process::Command};

use clap::{ArgMatches, error::ErrorKind};
use jiff::Zoned;
use portcullis_audit::Filter;

use crate::pages::root;

/// A placeholder of the docs (`NAME`, `SERVER`) stands for one of these: what the argument takes
/// is not known here.
const VALUES: [&str; 10] = [
    "a1",
    "client = a1",
    crate::configs::KEY,
    "01a1ffb0-c904-7140-9462-70258f79ecea",
    "a/b",
    "https://a.example",
    "7",
    "unix:/a",
    "run",
    "k8s",
];

/// Programs of others that the docs show, of whose arguments only the paths are checked here.
const OTHERS: [&str; 21] = [
    "apt-get",
    "cargo",
    "cd",
    "clang",
    "cp",
    "curl",
    "docker-compose",
    "install",
    "kubectl",
    "ls",
    "mkdir",
    "npm",
    "npx",
    "plugin-tools",
    "printf",
    "python3",
    "rustup",
    "sleep",
    "stat",
    "vector",
    "chrt",
];

/// Whether a command may leave out what it needs: in the text, `server import` names a command, and
/// in a block it is one that the reader copies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    Yes,
    NameOnly,
}

/// A command of a block, with its line within the block (from 1).
pub struct Shown {
    pub line: usize,
    pub command: String,
    /// What stands below it, up to the next command.
    pub output: String,
}

/// The commands of a `console` block, which begin with `$` (or `#`, for root).
pub fn of_console(text: &str) -> Vec<Shown> {
    let mut found: Vec<Shown> = Vec::new();
    let mut goes_on = false;
    for (at, line) in text.lines().enumerate() {
        let begins = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "));
        match (begins, found.last_mut()) {
            (_, Some(last)) if goes_on => {
                last.command.push('\n');
                last.command.push_str(line);
            }
            (Some(command), _) => found.push(Shown {
                line: at + 1,
                command: command.to_owned(),
                output: String::new(),
            }),
            (None, Some(last)) => {
                last.output.push_str(line);
                last.output.push('\n');
                continue;
            }
            (None, None) => continue,
        }
        goes_on = line.ends_with('\\');
    }
    found
}

/// Checks what a shell is given: its syntax, and every command in it.
pub fn shell(command: &str, whole: Whole) -> Result<(), String> {
    let syntax = Command::new("bash").args(["-n", "-c", command]).output();
    let syntax = syntax.map_err(|error| format!("bash: {error}"))?;
    if !syntax.status.success() {
        return Err(String::from_utf8_lossy(&syntax.stderr).into_owned());
    }
    for words in simple_commands(command)? {
        simple(&words, whole)?;
    }
    Ok(())
}

/// The simple commands of a line: what stands between pipes, semicolons and substitutions.
fn simple_commands(command: &str) -> Result<Vec<Vec<String>>, String> {
    let text = command.replace("\\\n", " ").replace("$(", " ; ");
    let words = shlex::split(&text).ok_or("a quote is not closed")?;
    let mut all = vec![Vec::new()];
    for word in words {
        let separates = matches!(word.as_str(), "|" | "||" | "&&" | ";" | "do" | "until" | "done");
        let (word, ends) = match word.strip_suffix(';') {
            Some(word) => (word.to_owned(), true),
            None => (word, false),
        };
        if let Some(last) = all.last_mut().filter(|_| !separates) {
            last.push(word);
        }
        if separates || ends {
            all.push(Vec::new());
        }
    }
    all.retain(|words: &Vec<String>| words.iter().any(|word| !word.is_empty()));
    Ok(all)
}

fn simple(words: &[String], whole: Whole) -> Result<(), String> {
    let is_setting = |word: &&String| {
        let name = word.split_once('=').map_or("", |(name, _)| name);
        !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    };
    let words: Vec<_> = words.iter().skip_while(is_setting).map(String::as_str).collect();
    let words: Vec<_> = words.split(|word| matches!(*word, "<" | ">")).next().unwrap().to_vec();
    // `KEY=$(COMMAND)` ends with the bracket of the substitution.
    let words: Vec<_> = words.iter().map(|word| word.trim_end_matches(')')).collect();
    let words = words.strip_prefix(&["sudo"]).unwrap_or(&words);
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    if matches!(*program, "export" | "alias") {
        return Ok(());
    }
    if *program == "portcullis" {
        return ours(arguments, whole);
    }
    exist(words)?;
    if let Some(at) = words.iter().position(|word| word.ends_with("bin/portcullis")) {
        return ours(&words[at + 1..], whole);
    }
    if *program == "cargo" && arguments.first() == Some(&"run") && !arguments.contains(&"-p") {
        let at = arguments.iter().position(|word| *word == "--");
        return at.map_or(Ok(()), |at| ours(&arguments[at + 1..], whole));
    }
    let base = Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if program.contains('/') || OTHERS.contains(&base) {
        return Ok(());
    }
    Err(format!("`{program}` is not among the programs that tests/docs/commands.rs knows"))
}

/// Words that name files of the tree have to be right.
fn exist(words: &[&str]) -> Result<(), String> {
    for word in words {
        // The plugin guide works in a folder beside the tree.
        let word = word.trim_start_matches("../").trim_start_matches("portcullis/");
        let top = word.split('/').next().unwrap_or_default();
        let tops = ["docs", "examples", "plugins", "policies", "src", "tests"];
        if word.contains('/') && tops.contains(&top) && !root().join(word).exists() {
            return Err(format!("there is no {word}"));
        }
    }
    Ok(())
}

/// Parses the arguments of `portcullis`, and the filter and the JSON among them.
pub fn ours(arguments: &[&str], whole: Whole) -> Result<(), String> {
    if let Some(verb @ ("pod-exec" | "sandbox-exec")) = arguments.first().copied() {
        // Verbs that begin before the command line is read.
        let main = include_str!("../../src/portcullis/cli/mod.rs");
        let known = main.contains(&format!("\"{verb}\""));
        return known.then_some(()).ok_or_else(|| format!("there is no verb `{verb}`"));
    }
    let mut first = None;
    for value in VALUES {
        let words = arguments.iter().filter_map(|word| filled(word, value));
        let words: Vec<String> = std::iter::once("portcullis".to_owned()).chain(words).collect();
        match portcullis::cli::command().try_get_matches_from(&words) {
            Ok(matches) => match inner(&matches) {
                Ok(()) => return Ok(()),
                Err(why) => first = first.or(Some(why)),
            },
            Err(error) => match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return Ok(()),
                ErrorKind::MissingRequiredArgument
                | ErrorKind::MissingSubcommand
                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                    if whole == Whole::NameOnly =>
                {
                    return Ok(());
                }
                // An option that takes a value, named without one.
                ErrorKind::InvalidValue
                    if whole == Whole::NameOnly
                        && error.to_string().contains("none was supplied") =>
                {
                    return Ok(());
                }
                _ => first = first.or(Some(error.to_string())),
            },
        }
    }
    Err(first.unwrap_or_default())
}

/// A word of the docs as somebody would write it: `[FILTER]`, `NAME`, `rust|js`, `PATH…`.
fn filled(word: &str, value: &str) -> Option<String> {
    let word = word.trim_start_matches('[').trim_end_matches(['…', ']']);
    let word = if word.contains(' ') { word } else { word.split('|').next().unwrap_or_default() };
    let is_placeholder = |part: &str| {
        part.len() > 1
            && part.contains(|c: char| c.is_ascii_uppercase())
            && part.chars().all(|c| c.is_ascii_uppercase() || matches!(c, '-' | '_'))
    };
    let (flag, part) = match word.split_once('=') {
        Some((flag, part)) if flag.starts_with("--") => (Some(flag), part),
        _ => (None, word),
    };
    // `portcullis/0f3c…+8a1b2c3d+AQ…`, `NAME+HASH+BASE64`: a verifier key that is shortened.
    let is_key = part.matches('+').count() == 2 && (part.contains('…') || part.contains("+HASH+"));
    let part = match part {
        _ if is_key => crate::configs::KEY,
        _ if is_placeholder(part) => value,
        "unix:PATH" => "unix:/a",
        _ => part,
    };
    match flag {
        Some(flag) => Some(format!("{flag}={part}")),
        None => (!part.is_empty()).then(|| part.to_owned()),
    }
}

/// What clap takes as text and the verb reads: filters, JSON.
fn inner(matches: &ArgMatches) -> Result<(), String> {
    let mut verbs = Vec::new();
    let mut at = matches;
    while let Some((verb, within)) = at.subcommand() {
        verbs.push(verb);
        at = within;
    }
    let json = |id: &str| {
        let values = at.try_get_many::<String>(id).ok().flatten().into_iter().flatten();
        let mut wrong =
            values.filter_map(|value| serde_json::from_str::<serde_json::Value>(value).err());
        wrong.next().map_or(Ok(()), |error| Err(format!("--{id}: {error}")))
    };
    match verbs.as_slice() {
        ["audit", "query" | "tail" | "stats" | "export"] => {
            let words = at.try_get_many::<String>("filter").ok().flatten();
            let words: Vec<_> = words.into_iter().flatten().map(String::as_str).collect();
            filter(&words.join(" "))
        }
        ["tools", "call"] => json("arguments"),
        ["policy", "can-i"] => json("args"),
        ["plugin", "call"] => json("settings"),
        _ => Ok(()),
    }
}

/// Parses a filter of `audit query`, or the form of one: `FIELD in (VALUE, …)`.
pub fn filter(text: &str) -> Result<(), String> {
    let form =
        [("FIELD", "tool"), ("VALUE", "a"), ("PATTERN", "\"a*\""), ("TEXT", "a"), ("…", "b")];
    let text = form.iter().fold(text.to_owned(), |text, (word, value)| text.replace(word, value));
    let parsed = Filter::parse(&text, &Zoned::now());
    parsed.map(drop).map_err(|illegal| format!("filter `{text}`: {illegal}"))
}

/// Every long flag of every verb, without the dashes.
pub fn flags() -> BTreeSet<String> {
    fn of(command: &clap::Command, flags: &mut BTreeSet<String>) {
        flags.extend(command.get_arguments().filter_map(|arg| arg.get_long()).map(str::to_owned));
        command.get_subcommands().for_each(|verb| of(verb, flags));
    }
    let mut flags = ["help".to_owned(), "version".to_owned()].into();
    of(&portcullis::cli::command(), &mut flags);
    flags
}

/// The verbs of the top level.
pub fn verbs() -> BTreeSet<String> {
    let command = portcullis::cli::command();
    command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect()
}

/// The words that the command line itself has: verbs, ids of arguments, possible values.
pub fn words() -> BTreeSet<String> {
    fn of(command: &clap::Command, words: &mut BTreeSet<String>) {
        words.insert(command.get_name().to_owned());
        for arg in command.get_arguments() {
            let values = arg.get_possible_values();
            words.extend(values.iter().map(|value| value.get_name().to_owned()));
        }
        command.get_subcommands().for_each(|verb| of(verb, words));
    }
    let mut words = BTreeSet::new();
    of(&portcullis::cli::command(), &mut words);
    words
}

#[test]
fn unknown_commands_are_found() {
    for wrong in [
        "portcullis serve",
        "portcullis server ls --all",
        "portcullis audit query 'record = event'",
        "portcullis tools call a '{'",
        "portcullis server ls | frobnicate",
        "sudo portcullis walk",
        "cp plugins/nowhere .",
        "KEY=$(docker-compose exec -T portcullis /usr/bin/portcullis client make agent)",
    ] {
        assert!(shell(wrong, Whole::Yes).is_err(), "{wrong}");
    }
    assert!(shell("portcullis server inspect", Whole::Yes).is_err());
    assert!(shell("portcullis server inspect", Whole::NameOnly).is_ok());
    assert!(shell("portcullis audit show ID", Whole::Yes).is_ok());
}
