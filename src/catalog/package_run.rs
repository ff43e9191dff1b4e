//! Servers that a package fetcher starts.

use crate::{
    draft::Draft,
    image::NoImage,
    options::Packages,
    packages::{Fetcher, is_pinned, packages_of},
    report::{Location, Report, brief},
    server::{Image, Run},
};

/// Converts a command with a fetcher to a [`Run`].
pub(crate) fn run(
    draft: &mut Draft<'_>,
    fetcher: Fetcher,
    mut arguments: Vec<String>,
    packages: Packages,
    place: Location,
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
        // Nobody can answer a prompt.
        arguments.retain(|argument| argument != "-y" && argument != yes);
        arguments.insert(fetcher.verbs.len(), yes.to_owned());
    }
    let packages_named = packages_of(fetcher, &arguments);
    for package in packages_named.iter().filter(|package| !is_pinned(fetcher, package)) {
        report.advice(
            place,
            format!(
                "`{}` says no version, so each start may run other code: write `{}`",
                brief(package),
                brief(&format!("{package}@1.2.3"))
            ),
        );
    }
    if packages_named.is_empty() {
        report.fact(place, format!("which package `{program}` fetches does not stand plainly"));
    }
    for host in fetcher.hosts {
        draft.host(host, place, report);
    }
    if draft.network.is_none() {
        draft.network = Some(true);
    }
    report.fact(
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
            report.advice(
                place,
                "install the package once and name its program in `command`, or build an image: then each start runs \
                 the same code, and fetches nothing",
            );
            Some(Run::Command { program: program.to_owned(), arguments })
        }
    }
}
