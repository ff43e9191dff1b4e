//! Programs that fetch a package and run it: npx, uvx and similar ones.

use crate::report::quoted;

/// A program that fetches the program it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fetcher {
    pub program: &'static str,
    /// Hosts that packages come from.
    pub hosts: &'static [&'static str],
    /// An image that has the program.
    pub image: Option<&'static str>,
    /// The option that disables prompts.
    pub yes: Option<&'static str>,
    /// Subcommands before the package.
    pub verbs: &'static [&'static str],
    /// Options before the package that take a value.
    valued: &'static [&'static str],
}

const NPM: &[&str] = &["registry.npmjs.org:443"];
const PYPI: &[&str] = &["pypi.org:443", "files.pythonhosted.org:443"];
const NODE: Option<&str> = Some("docker.io/library/node:lts-slim");
const UV: Option<&str> = Some("ghcr.io/astral-sh/uv:python3.13-bookworm-slim");
const UV_VALUED: &[&str] = &["--from", "--with", "--python", "-p", "--index-url", "--index", "-w"];

const FETCHERS: &[Fetcher] = &[
    Fetcher {
        program: "npx",
        hosts: NPM,
        image: NODE,
        yes: Some("--yes"),
        verbs: &[],
        valued: &["-p", "--package", "--registry", "--prefix", "--cache"],
    },
    Fetcher {
        program: "bunx",
        hosts: NPM,
        image: None,
        yes: None,
        verbs: &[],
        valued: &["-p", "--package"],
    },
    Fetcher {
        program: "pnpm",
        hosts: NPM,
        image: None,
        yes: None,
        verbs: &["dlx"],
        valued: &["--package"],
    },
    Fetcher {
        program: "yarn",
        hosts: NPM,
        image: None,
        yes: None,
        verbs: &["dlx"],
        valued: &["-p", "--package"],
    },
    Fetcher { program: "uvx", hosts: PYPI, image: UV, yes: None, verbs: &[], valued: UV_VALUED },
    Fetcher {
        program: "uv",
        hosts: PYPI,
        image: UV,
        yes: None,
        verbs: &["tool", "run"],
        valued: UV_VALUED,
    },
    Fetcher {
        program: "pipx",
        hosts: PYPI,
        image: None,
        yes: None,
        verbs: &["run"],
        valued: &["--spec", "--index-url", "--python"],
    },
    Fetcher {
        program: "dnx",
        hosts: &["api.nuget.org:443"],
        image: None,
        yes: Some("--yes"),
        verbs: &[],
        valued: &["--source", "--version"],
    },
];

/// The fetcher of a command.
pub(crate) fn of(program: &str, arguments: &[String]) -> Option<Fetcher> {
    FETCHERS.iter().copied().find(|fetcher| {
        fetcher.program == program
            && fetcher
                .verbs
                .iter()
                .zip(arguments)
                .filter(|(verb, argument)| verb == argument)
                .count()
                == fetcher.verbs.len()
    })
}

/// The fetched packages, if they are explicit: those in options, or otherwise the first word, which
/// then also is the program.
pub(crate) fn packages_of(fetcher: Fetcher, arguments: &[String]) -> Vec<&str> {
    let mut rest = arguments.iter().skip(fetcher.verbs.len());
    // Additional packages, and the package itself.
    let (mut beside, mut named) = (Vec::new(), Vec::new());
    let mut first = None;
    while let Some(argument) = rest.next() {
        let (option, value) = match argument.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value)),
            _ => (argument.as_str(), None),
        };
        if !option.starts_with('-') {
            first = Some(option);
            break;
        }
        let valued = fetcher.valued.contains(&option);
        let value = match value {
            None if valued => rest.next().map(String::as_str),
            value => value,
        };
        let Some(value) = value else { continue };
        match option {
            "--from" | "--spec" | "--package" => named.push(value),
            // For npm, `-p` is a package; for `uvx`, it is an interpreter.
            "-p" if valued && fetcher.hosts == NPM => named.push(value),
            // One option may have several packages.
            "--with" | "-w" if valued => beside.extend(value.split(',').map(str::trim)),
            _ => {}
        }
    }
    if named.is_empty() {
        named.extend(first);
    }
    named.into_iter().chain(beside).collect()
}

/// Identity of a command: the program with its arguments, without the versions of fetched packages.
pub(crate) fn identity(program: &str, arguments: &[String]) -> String {
    let base = program.rsplit('/').next().unwrap_or(program);
    let words = match of(base, arguments) {
        Some(fetcher) => unversioned(fetcher, arguments),
        None => arguments.to_vec(),
    };
    let words =
        std::iter::once(program).chain(words.iter().map(String::as_str)).map(quoted_if_needed);
    words.collect::<Vec<_>>().join(" ")
}

/// A word, quoted if it would be ambiguous otherwise.
fn quoted_if_needed(word: &str) -> String {
    let shown = quoted(word);
    let plain = !word.is_empty() && !word.contains(char::is_whitespace);
    if plain && shown.len() == word.len() + 2 { word.to_owned() } else { shown }
}

/// All arguments, without the versions of fetched packages. A word that may be the value of an
/// unknown option is unchanged.
fn unversioned(fetcher: Fetcher, arguments: &[String]) -> Vec<String> {
    const FLAGS: &[&str] = &["-y", "--yes", "-q", "--quiet"];
    let mut words: Vec<String> = arguments.to_vec();
    let (mut at, mut named, mut sure) = (fetcher.verbs.len(), false, true);
    while let Some(argument) = arguments.get(at) {
        let (option, value) = match argument.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value)),
            _ => (argument.as_str(), None),
        };
        if !option.starts_with('-') {
            if sure && !named {
                words[at] = without_version(argument).to_owned();
            }
            break;
        }
        let valued = fetcher.valued.contains(&option);
        let next = arguments.get(at + 1).filter(|_| valued && value.is_none());
        sure = valued || value.is_some() || FLAGS.contains(&option);
        let package = match option {
            "--from" | "--spec" | "--package" => true,
            "-p" => valued && fetcher.hosts == NPM,
            _ => false,
        };
        named |= package;
        let beside = valued && matches!(option, "--with" | "-w");
        if let Some(packages) = value.or(next.map(String::as_str))
            && (package || beside)
        {
            let all = packages.split(',').map(|package| without_version(package.trim()));
            let all = match beside {
                true => all.collect::<Vec<_>>().join(","),
                false => without_version(packages).to_owned(),
            };
            match value {
                Some(_) => words[at] = format!("{option}={all}"),
                None => words[at + 1] = all,
            }
        }
        at += if next.is_some() { 2 } else { 1 };
    }
    words
}

/// A package without its version. A source (an alias, a repository, a URL) is part of its identity
/// and is kept.
pub(crate) fn without_version(package: &str) -> &str {
    let begins = |(at, c): &(usize, char)| {
        matches!(c, '=' | '<' | '>' | '~' | '!') || (*c == '@' && *at > 0)
    };
    let Some((at, _)) = package.char_indices().find(begins) else { return package };
    if package.contains(':') {
        return package;
    }
    let is_version = |b: u8| b.is_ascii_alphanumeric() || b"@.,-_+=!^~<>*".contains(&b);
    if package.bytes().skip(at).all(is_version) { &package[..at] } else { package }
}

/// The arguments after the package: the server's own ones.
pub(crate) fn own_arguments(fetcher: Fetcher, arguments: &[String]) -> &[String] {
    let mut at = fetcher.verbs.len();
    while let Some(argument) = arguments.get(at) {
        match argument.as_str() {
            valued if fetcher.valued.contains(&valued) => at += 2,
            option if option.starts_with('-') => at += 1,
            // The package, or its program if an option names the package.
            _ => return &arguments[at + 1..],
        }
    }
    &[]
}

/// Whether a package has an unambiguous version: `name@1.2.3`, `name==1.2.3`, or a full commit of a
/// repository, after `#` for npm and after `@` for Python's tools. `1.2` is a range for npm, and a
/// version for Python's tools.
pub(crate) fn is_pinned(fetcher: Fetcher, package: &str) -> bool {
    // The form `name @ git+https://…` of Python's tools.
    let source = package.split_once(" @ ").map_or(package, |(_, source)| source.trim_start());
    if source.contains("://") || source.contains('#') || source.starts_with("git") {
        let commit = match fetcher.hosts == PYPI {
            // The part after `#` is a folder or a name in the repository.
            true => source.split('#').next().and_then(|source| source.rsplit_once('@')),
            false => source.split_once('#'),
        };
        let is_commit =
            |text: &str| text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        return source.starts_with("git") && commit.is_some_and(|(_, commit)| is_commit(commit));
    }
    let of_python = fetcher.hosts == PYPI;
    if let Some((_, version)) = package.split_once("==") {
        return of_python && is_pythons(version.trim_start_matches('='));
    }
    // `@scope/name` begins with `@`.
    match package.rsplit_once('@') {
        Some((name, version)) if !name.is_empty() && of_python => is_pythons(version),
        Some((name, version)) if !name.is_empty() => is_npms(version),
        _ => false,
    }
}

/// Without `*`, which makes it a range in PEP 440.
fn is_pythons(version: &str) -> bool {
    version.starts_with(|c: char| c.is_ascii_digit())
        && version.bytes().all(|b| b.is_ascii_alphanumeric() || b".+!-_".contains(&b))
}

/// Three numbers, optionally with a pre-release or build suffix.
fn is_npms(version: &str) -> bool {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let rest = version.get(core.len()..).unwrap_or_default();
    core.split('.').count() == 3
        && core.split('.').all(number)
        && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn identity_contains_packages_without_versions() {
        for (program, arguments, expected) in [
            ("npx", &["-y", "@a/b@1.2.3", "/dir"][..], "npx -y @a/b /dir"),
            ("npx", &["-y", "@a/b", "a b"], "npx -y @a/b \"a b\""),
            ("/usr/bin/npx", &["-p", "x@^1", "-p", "y", "cmd"], "/usr/bin/npx -p x -p y cmd"),
            ("npx", &["--package=x@1", "cmd@2"], "npx --package=x cmd@2"),
            (
                "npx",
                &["--node-options=--require=/e.js", "x@1"],
                "npx --node-options=--require=/e.js x",
            ),
            ("npx", &["--unknown", "x@evil", "x@1"], "npx --unknown x@evil x@1"),
            ("uvx", &["--with", "z>=2,y==1", "x==1.0"], "uvx --with z,y x"),
            (
                "uvx",
                &[
                    "--with-requirements=https://e.example/r",
                    "--index-url",
                    "https://e.example",
                    "x==1",
                ],
                "uvx --with-requirements=https://e.example/r --index-url https://e.example x",
            ),
            (
                "uvx",
                &["--from", "git+https://e.example/r@0a1b", "x"],
                "uvx --from git+https://e.example/r@0a1b x",
            ),
            ("uv", &["tool", "run", "x==1", "--db", "/d"], "uv tool run x --db /d"),
            ("npx", &["x@npm:evil@1.0.0"], "npx x@npm:evil@1.0.0"),
            ("npx", &["x@somebody/evil"], "npx x@somebody/evil"),
            ("node", &["server.js"], "node server.js"),
        ] {
            let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(identity(program, &arguments), expected, "{program} {arguments:?}");
        }
    }

    #[test]
    fn server_arguments_follow_the_package() {
        for (program, arguments, own) in [
            ("npx", &["-y", "@a/b", "/dir", "-x"][..], &["/dir", "-x"][..]),
            ("npx", &["-p", "x@1.0.0", "cmd", "/dir"], &["/dir"]),
            ("npx", &["--package=x", "cmd", "/dir"], &["/dir"]),
            ("uvx", &["--from", "x", "cmd"], &[]),
            ("uv", &["tool", "run", "x", "--db", "/d"], &["--db", "/d"]),
            ("npx", &["-y"], &[]),
            ("npx", &["-p"], &[]),
        ] {
            let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
            let fetcher = of(program, &arguments).unwrap();
            assert_eq!(own_arguments(fetcher, &arguments), own, "{program} {arguments:?}");
        }
    }

    #[test]
    fn packages_and_pins_are_found() {
        let git = |mark: &str| format!("git+https://e.example/r{mark}{COMMIT}");
        let (at, hash) = (&*git("@"), &*git("#"));
        let (tarball, wheel) = (
            &*format!("https://e.example/x.tgz#{COMMIT}"),
            &*format!("https://e.example/x.whl@{COMMIT}"),
        );
        let (named, folder) = (&*format!("x @ {at}"), &*format!("{at}#subdirectory=a"));
        for (program, arguments, found, pinned) in [
            ("npx", vec!["-y", "@a/b", "/dir"], vec!["@a/b"], false),
            ("npx", vec!["--yes", "@a/b@1.2.3"], vec!["@a/b@1.2.3"], true),
            ("npx", vec!["-p", "x@1.0.0", "cmd"], vec!["x@1.0.0"], true),
            ("npx", vec!["--package=x", "cmd"], vec!["x"], false),
            ("npx", vec!["-p", "evil", "-p", "x@1.0.0", "x"], vec!["evil", "x@1.0.0"], false),
            ("npx", vec!["x@latest"], vec!["x@latest"], false),
            ("npx", vec!["x@^1.0.0"], vec!["x@^1.0.0"], false),
            ("uvx", vec!["mcp-server-git==1.0"], vec!["mcp-server-git==1.0"], true),
            (
                "uvx",
                vec!["--from", "git+https://e.example/r@0a1b2c3", "cmd"],
                vec!["git+https://e.example/r@0a1b2c3"],
                false,
            ),
            ("uvx", vec!["--from", at, "cmd"], vec![at], true),
            ("uvx", vec!["--from", named, "cmd"], vec![named], true),
            ("uvx", vec!["--from", folder, "cmd"], vec![folder], true),
            // Python has no commits after `#`, and npm none after `@`.
            ("uvx", vec!["--from", hash, "cmd"], vec![hash], false),
            ("npx", vec![hash], vec![hash], true),
            ("npx", vec![at], vec![at], false),
            // Not a repository, so not a commit.
            ("npx", vec![tarball], vec![tarball], false),
            ("uvx", vec!["--from", wheel, "cmd"], vec![wheel], false),
            ("uvx", vec!["--with", "evil", "x==1.0"], vec!["x==1.0", "evil"], false),
            ("uvx", vec!["--with=a==1,evil", "x==1.0"], vec!["x==1.0", "a==1", "evil"], false),
            ("uvx", vec!["--with", "a==1", "x==1.0"], vec!["x==1.0", "a==1"], true),
            ("npx", vec!["x@1"], vec!["x@1"], false),
            ("npx", vec!["x@1.2"], vec!["x@1.2"], false),
            ("npx", vec!["x@beta1"], vec!["x@beta1"], false),
            ("npx", vec!["x@1.2.x"], vec!["x@1.2.x"], false),
            ("npx", vec!["x@1.2.3-rc.1"], vec!["x@1.2.3-rc.1"], true),
            ("npx", vec!["x@1.2.3 || 2.0.0"], vec!["x@1.2.3 || 2.0.0"], false),
            ("uvx", vec!["x==1.*"], vec!["x==1.*"], false),
            ("uvx", vec!["x@1.2"], vec!["x@1.2"], true),
            ("uvx", vec!["x@latest"], vec!["x@latest"], false),
            ("uvx", vec!["--python", "3.12", "x"], vec!["x"], false),
            ("uvx", vec!["-p", "3.12", "x"], vec!["x"], false),
            ("uv", vec!["tool", "run", "x"], vec!["x"], false),
            ("npx", vec!["-y"], vec![], true),
        ] {
            let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
            let fetcher = of(program, &arguments).unwrap();
            let packages = packages_of(fetcher, &arguments);
            assert_eq!(packages, found, "{program} {arguments:?}");
            let all = packages.iter().all(|package| is_pinned(fetcher, package));
            assert_eq!(all, pinned, "{program} {arguments:?}");
        }
        assert!(of("uv", &["run".to_owned(), "server.py".to_owned()]).is_none());
        assert!(of("node", &[]).is_none());
    }
}
