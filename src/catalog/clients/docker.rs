//! `docker run …` as the command of a client: an image with options.

use std::collections::BTreeMap;

use crate::{
    draft::{Author, Draft},
    mount,
    object::LocatedText,
    report::{Report, brief},
    server::{Image, Run},
};

/// Options with a value, and their treatment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OptionKind {
    Env,
    EnvFile,
    Volume,
    Mount,
    User,
    Network,
    Entrypoint,
    /// Weakens the isolation of a container.
    Weakens,
    /// Set by the hardened profile, or only about how an engine shows the container.
    Ours,
}

fn valued(option: &str) -> Option<OptionKind> {
    Some(match option {
        "-e" | "--env" => OptionKind::Env,
        "--env-file" => OptionKind::EnvFile,
        "-v" | "--volume" => OptionKind::Volume,
        "--mount" => OptionKind::Mount,
        "-u" | "--user" => OptionKind::User,
        "--network" | "--net" => OptionKind::Network,
        "--entrypoint" => OptionKind::Entrypoint,
        "--cap-add"
        | "--security-opt"
        | "--device"
        | "--pid"
        | "--ipc"
        | "--userns"
        | "--uts"
        | "--cgroupns"
        | "--volumes-from"
        | "--add-host"
        | "--dns"
        | "--group-add"
        | "--gpus"
        | "-p"
        | "--publish"
        | "--device-cgroup-rule"
        | "--sysctl"
        | "--link" => OptionKind::Weakens,
        "--name" | "-l" | "--label" | "--pull" | "--platform" | "-w" | "--workdir" | "-m"
        | "--memory" | "--cpus" | "--pids-limit" | "--tmpfs" | "--cap-drop" | "--restart"
        | "--log-driver" | "--log-opt" | "--hostname" | "-h" | "--memory-swap" | "--shm-size"
        | "--ulimit" | "--stop-timeout" | "--runtime" | "--cidfile" => OptionKind::Ours,
        _ => return None,
    })
}

/// Reads the arguments of `docker`.
pub(crate) fn run(
    draft: &mut Draft<'_>,
    arguments: &[LocatedText<'_>],
    report: &mut Report,
) -> Option<Run> {
    let mut rest = arguments.iter().copied().peekable();
    let first = rest.next();
    let verb = match first.map(|located| located.text) {
        Some("container") => rest.next(),
        _ => first,
    };
    match verb.map(|located| located.text) {
        Some("run") => {}
        Some("mcp") => {
            report.problem(
                draft.place,
                "it starts another gateway with servers of its own: import its catalog or its profile",
            );
            return None;
        }
        Some(other) => {
            let text = format!("`docker {}` cannot be taken over: only `docker run`", brief(other));
            report.problem(draft.place, text);
            return None;
        }
        None => {
            report.problem(draft.place, "it runs no image");
            return None;
        }
    }
    let image = loop {
        let Some(located) = rest.next() else {
            report.problem(draft.place, "it runs no image");
            return None;
        };
        if !located.text.starts_with('-') || located.text == "-" {
            break located;
        }
        if located.text == "--" {
            match rest.next() {
                Some(image) => break image,
                None => continue,
            }
        }
        let (name, inline) = match located.text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            // `-eNAME=VALUE`
            None if located.text.len() > 2
                && !located.text.starts_with("--")
                && valued(&located.text[..2]).is_some() =>
            {
                (&located.text[..2], Some(&located.text[2..]))
            }
            None => (located.text, None),
        };
        let Some(option) = valued(name) else {
            flag(name, located, report);
            continue;
        };
        let value = match inline {
            Some(text) => Some(LocatedText { place: located.place, text }),
            None => rest.next(),
        };
        let Some(value) = value else {
            report.problem(located.place, format!("`{}` has no value", brief(name)));
            return None;
        };
        take(draft, option, name, value, report);
    };
    let place = image.place;
    let image: Image = image
        .text
        .parse()
        .map_err(|error: crate::image::NoImage| report.problem(place, error.to_string()))
        .ok()?;
    let own: Vec<LocatedText<'_>> = rest.collect();
    super::arguments::written_out(&own, report);
    let arguments: Vec<String> = own.iter().map(|located| located.text.to_owned()).collect();
    draft.arguments_hold_no_secret(&arguments, place, report);
    Some(Run::Image { image, arguments })
}

fn flag(name: &str, located: LocatedText<'_>, report: &mut Report) {
    let short =
        name.len() > 1 && !name.starts_with("--") && name[1..].chars().all(|c| "itdP".contains(c));
    match name {
        "--privileged" | "--publish-all" | "--oom-kill-disable" => {
            report.left_out(
                located.place,
                format!("`{name}` is not taken over: who needs it has the machine"),
            );
        }
        "--rm" | "--init" | "--interactive" | "--tty" | "--read-only" | "--quiet" | "-q"
        | "--no-healthcheck" | "--detach" | "--sig-proxy" => {}
        _ if short => {}
        _ => report
            .problem(located.place, format!("`{}` of `docker run` is not known here", brief(name))),
    }
}

fn take(
    draft: &mut Draft<'_>,
    option: OptionKind,
    name: &str,
    value: LocatedText<'_>,
    report: &mut Report,
) {
    let LocatedText { place, text } = value;
    match option {
        OptionKind::Env => match text.split_once('=') {
            Some((variable, value)) => {
                let (name, value) =
                    (LocatedText { place, text: variable }, LocatedText { place, text: value });
                draft.variable_of_client(name, value, &BTreeMap::new(), report);
            }
            // Passed on from the client's environment, which `env` of the entry has set.
            None if draft.has_variable(text) => {}
            None => draft.secret(value, None, report),
        },
        OptionKind::EnvFile => report.must(
            place,
            "variables of a file are not read: name those that the server needs in `secrets`",
        ),
        OptionKind::Volume => match mount::read(text) {
            Ok(mount) => draft.mount(mount, place, report),
            Err(error) => report.left_out(place, format!("`{}`: {error}", brief(text))),
        },
        OptionKind::Mount => bind(draft, value, report),
        OptionKind::User if draft.author == Author::Stranger => report.left_out(
            place,
            format!(
                "it asks to run as `{}`: if that is meant, write it in `hardening.user`",
                brief(text)
            ),
        ),
        OptionKind::User => draft.user(text, place, report),
        OptionKind::Network if text == "none" => draft.network = Some(false),
        OptionKind::Network => {
            report.left_out(
                place,
                format!("the network `{}`: here it reaches the hosts in `egress`", brief(text)),
            );
        }
        OptionKind::Entrypoint => {
            report.problem(place, "another entry point cannot be had: build an image that has it");
        }
        OptionKind::Weakens => {
            report.left_out(place, format!("`{name} {}` is not taken over", brief(text)));
        }
        OptionKind::Ours => {}
    }
}

/// `type=bind,src=…,dst=…[,readonly]`
fn bind(draft: &mut Draft<'_>, value: LocatedText<'_>, report: &mut Report) {
    let (mut kind, mut source, mut target, mut writable) = ("volume", "", "", false);
    for part in value.text.split(',') {
        match part.split_once('=').unwrap_or((part, "true")) {
            ("type", text) => kind = text,
            ("src" | "source", text) => source = text,
            ("dst" | "target" | "destination", text) => target = text,
            ("readonly" | "ro", text) => writable = !matches!(text, "true" | "1"),
            _ => {}
        }
    }
    if kind == "tmpfs" {
        return;
    }
    match mount::of(source, target, writable) {
        Ok(mount) if kind == "bind" => draft.mount(mount, value.place, report),
        Ok(_) => report.left_out(value.place, format!("a mount of the kind `{}`", brief(kind))),
        Err(error) => report.left_out(value.place, format!("`{}`: {error}", brief(value.text))),
    }
}
