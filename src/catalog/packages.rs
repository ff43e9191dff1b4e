//! Programs that fetch a package and run it: npx, uvx and their like.

use crate::{
    draft::Draft,
    image::NoImage,
    options::Packages,
    report::{Place, Report, brief},
    server::{Image, Run},
};

/// A program that fetches what it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fetcher {
    pub program: &'static str,
    /// Whence packages come.
    hosts: &'static [&'static str],
    /// An image that has the program.
    image: Option<&'static str>,
    /// What has it ask nobody.
    yes: Option<&'static str>,
    /// Words behind which the package stands.
    verbs: &'static [&'static str],
    /// Options with a value of their own before the package.
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

/// The fetcher that a command begins with.
pub(crate) fn of(program: &str, arguments: &[String]) -> Option<Fetcher> {
    FETCHERS.iter().copied().find(|fetcher| {
        fetcher.program == program
            && fetcher.verbs.iter().zip(arguments).filter(|(verb, given)| verb == given).count()
                == fetcher.verbs.len()
    })
}

/// The package, where it stands plainly.
pub(crate) fn package(fetcher: Fetcher, arguments: &[String]) -> Option<&str> {
    let mut rest = arguments.iter().skip(fetcher.verbs.len());
    let mut named = None;
    while let Some(argument) = rest.next() {
        match argument.split_once('=') {
            Some(("--package" | "--from" | "--spec", package)) => named = Some(package),
            _ if matches!(argument.as_str(), "-p" | "--package" | "--from" | "--spec")
                && fetcher.valued.contains(&argument.as_str()) =>
            {
                named = rest.next().map(String::as_str);
            }
            _ if fetcher.valued.contains(&argument.as_str()) => {
                rest.next();
            }
            _ if argument.starts_with('-') => {}
            _ => return named.or(Some(argument)),
        }
    }
    named
}

/// What stands behind the package: the server's own arguments.
pub(crate) fn own_arguments(fetcher: Fetcher, arguments: &[String]) -> &[String] {
    let mut at = fetcher.verbs.len();
    while let Some(argument) = arguments.get(at) {
        match argument.as_str() {
            valued if fetcher.valued.contains(&valued) => at += 2,
            option if option.starts_with('-') => at += 1,
            // The package, or its program where an option names the package.
            _ => return &arguments[at + 1..],
        }
    }
    &[]
}

/// How a command with a fetcher runs.
pub(crate) fn run(
    draft: &mut Draft<'_>,
    fetcher: Fetcher,
    mut arguments: Vec<String>,
    packages: Packages,
    place: Place,
    report: &mut Report,
) -> Option<Run> {
    let program = fetcher.program;
    let calls = |argument: &&str| matches!(*argument, "-c" | "--call");
    let mut options =
        arguments.iter().map(|argument| argument.split('=').next().unwrap_or(argument));
    if let Some(shell) = options.find(calls) {
        report.problem(
            place,
            format!("`{program} {shell}` has a shell run what stands behind it: name the program"),
        );
        return None;
    }
    if let Some(yes) = fetcher.yes {
        // Nobody is there to be asked.
        arguments.retain(|argument| argument != "-y" && argument != yes);
        arguments.insert(fetcher.verbs.len(), yes.to_owned());
    }
    let package = package(fetcher, &arguments).map(str::to_owned);
    match &package {
        Some(package) if !is_pinned(fetcher, package) => report.needed(
            place,
            format!(
                "`{}` says no version, so each start may run other code: write `{}`",
                brief(package),
                brief(&format!("{package}@1.2.3"))
            ),
        ),
        None => report
            .needed(place, format!("which package `{program}` fetches does not stand plainly")),
        Some(_) => {}
    }
    for host in fetcher.hosts {
        draft.host((*host).to_owned());
    }
    if draft.network.is_none() {
        draft.network = Some(true);
    }
    report.needed(
        place,
        format!(
            "`{program}` fetches the package when the server starts, from {}; what the server itself \
             reaches is not known: name its hosts in `egress`, too",
            fetcher.hosts.join(" and ")
        ),
    );
    draft.fetches = true;
    report.deviates(place, "programs may be run in its /tmp, where the package is put");
    let image: Option<Result<Image, NoImage>> = match packages {
        Packages::Container => fetcher.image.map(str::parse),
        Packages::Process => None,
    };
    match (packages, image) {
        (Packages::Container, Some(Ok(image))) => {
            arguments.insert(0, program.to_owned());
            Some(Run::Image { image, arguments })
        }
        (Packages::Container, _) => {
            report.problem(place, format!("no image is known that has `{program}`"));
            None
        }
        (Packages::Process, _) => {
            report.needed(
                place,
                format!(
                    "`{program}` must be on the PATH of the proxy. Better: install the package once and name its program \
                     here, or build an image"
                ),
            );
            Some(Run::Command { program: program.to_owned(), arguments })
        }
    }
}

/// Whether a package is said with a version that means one thing: `name@1.2.3`, `name==1.2.3`, or a
/// whole commit. `1.2` is a range to npm, and a version to Python's tools.
fn is_pinned(fetcher: Fetcher, package: &str) -> bool {
    if package.contains("://") || package.contains('#') || package.starts_with("git") {
        let commit = package.rsplit(['@', '#']).next().unwrap_or_default();
        return commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    }
    let of_python = fetcher.hosts == PYPI;
    if let Some((_, version)) = package.split_once("==") {
        return of_python && is_pythons(version.trim_start_matches('='));
    }
    // `@scope/name` has one at its beginning.
    match package.rsplit_once('@') {
        Some((name, version)) if !name.is_empty() && of_python => is_pythons(version),
        Some((name, version)) if !name.is_empty() => is_npms(version),
        _ => false,
    }
}

/// Without `*`, of which PEP 440 makes a range.
fn is_pythons(version: &str) -> bool {
    version.starts_with(|c: char| c.is_ascii_digit())
        && version.bytes().all(|b| b.is_ascii_alphanumeric() || b".+!-_".contains(&b))
}

/// Three numbers, with a word of a release before it or of a build.
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

    const COMMIT: &str = "git+https://e.example/r@0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_server_s_own_arguments_stand_behind_the_package() {
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
    fn packages_are_found() {
        for (program, arguments, found, pinned) in [
            ("npx", vec!["-y", "@a/b", "/dir"], Some("@a/b"), false),
            ("npx", vec!["--yes", "@a/b@1.2.3"], Some("@a/b@1.2.3"), true),
            ("npx", vec!["-p", "x@1.0.0", "cmd"], Some("x@1.0.0"), true),
            ("npx", vec!["--package=x", "cmd"], Some("x"), false),
            ("npx", vec!["x@latest"], Some("x@latest"), false),
            ("npx", vec!["x@^1.0.0"], Some("x@^1.0.0"), false),
            ("uvx", vec!["mcp-server-git==1.0"], Some("mcp-server-git==1.0"), true),
            (
                "uvx",
                vec!["--from", "git+https://e.example/r@0a1b2c3", "cmd"],
                Some("git+https://e.example/r@0a1b2c3"),
                false,
            ),
            ("uvx", vec!["--from", COMMIT, "cmd"], Some(COMMIT), true),
            ("npx", vec!["x@1"], Some("x@1"), false),
            ("npx", vec!["x@1.2"], Some("x@1.2"), false),
            ("npx", vec!["x@beta1"], Some("x@beta1"), false),
            ("npx", vec!["x@1.2.x"], Some("x@1.2.x"), false),
            ("npx", vec!["x@1.2.3-rc.1"], Some("x@1.2.3-rc.1"), true),
            ("npx", vec!["x@1.2.3 || 2.0.0"], Some("x@1.2.3 || 2.0.0"), false),
            ("uvx", vec!["x==1.*"], Some("x==1.*"), false),
            ("uvx", vec!["x@1.2"], Some("x@1.2"), true),
            ("uvx", vec!["x@latest"], Some("x@latest"), false),
            ("uvx", vec!["--python", "3.12", "x"], Some("x"), false),
            ("uv", vec!["tool", "run", "x"], Some("x"), false),
            ("npx", vec!["-y"], None, false),
        ] {
            let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
            let fetcher = of(program, &arguments).unwrap();
            let package = package(fetcher, &arguments);
            assert_eq!(package, found, "{program} {arguments:?}");
            assert_eq!(
                package.is_some_and(|package| is_pinned(fetcher, package)),
                pinned,
                "{program} {arguments:?}"
            );
        }
        assert!(of("uv", &["run".to_owned(), "server.py".to_owned()]).is_none());
        assert!(of("node", &[]).is_none());
    }
}
