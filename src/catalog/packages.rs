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
    if let Some(shell) =
        arguments.iter().find(|argument| matches!(argument.as_str(), "-c" | "--call"))
    {
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
        Some(package) if !is_pinned(package) => report.needed(
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
    let image: Option<Result<Image, NoImage>> = match packages {
        Packages::Container => fetcher.image.map(str::parse),
        Packages::Process => None,
    };
    match (packages, image) {
        (Packages::Container, Some(Ok(image))) => {
            let home = [
                ("HOME", "/tmp"),
                ("npm_config_cache", "/tmp/.npm"),
                ("UV_CACHE_DIR", "/tmp/.uv"),
                ("UV_TOOL_DIR", "/tmp/.uv-tools"),
            ];
            let used = if fetcher.hosts == NPM { 0..2 } else { 0..4 };
            for (name, value) in &home[used] {
                let name = crate::object::Said { place, text: name };
                draft.variable(name, value, true, report);
            }
            report.needed(
                place,
                "what is fetched lies in /tmp of the container: a package with programs of its own needs \
                 `hardening.exec-tmp = true`",
            );
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
                    "`{program}` must be on the PATH of the proxy. Better: install the package once and \
                     name its program here, or build an image"
                ),
            );
            Some(Run::Command { program: program.to_owned(), arguments })
        }
    }
}

/// Whether a package is said with a version: `name@1.2.3`, `name==1.2.3`, or a commit.
fn is_pinned(package: &str) -> bool {
    let behind = package.rsplit_once("==").or_else(|| {
        let (name, version) = package.rsplit_once('@')?;
        // `@scope/name` has one at its beginning.
        (!name.is_empty()).then_some((name, version))
    });
    behind.is_some_and(|(_, version)| {
        version.starts_with(|c: char| c.is_ascii_hexdigit() || c == 'v')
            && version.bytes().any(|b| b.is_ascii_digit())
            && !version.contains(['^', '~', '*', 'x', '>', '<', '|'])
            && !matches!(version, "latest" | "next")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
                true,
            ),
            ("uvx", vec!["--python", "3.12", "x"], Some("x"), false),
            ("uv", vec!["tool", "run", "x"], Some("x"), false),
            ("npx", vec!["-y"], None, false),
        ] {
            let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
            let fetcher = of(program, &arguments).unwrap();
            let package = package(fetcher, &arguments);
            assert_eq!(package, found, "{program} {arguments:?}");
            assert_eq!(package.is_some_and(is_pinned), pinned, "{program} {arguments:?}");
        }
        assert!(of("uv", &["run".to_owned(), "server.py".to_owned()]).is_none());
        assert!(of("node", &[]).is_none());
    }
}
