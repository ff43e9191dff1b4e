//! One server.

use std::collections::{BTreeSet, HashSet};

use http::HeaderName;
use reqwest::Url;

use super::Checker;
use crate::{
    finding::Code,
    schema_check::{brief, nearest},
    values::CAPABILITIES,
};
use portcullis_catalog::{begins_as_key, names_secret, url_holds_secret};
use portcullis_egress::{Destination, Destinations, Host, Pattern, is_metadata};
use portcullis_foundation::json_pointer::child;
use portcullis_runtime::{container::Image, egress_netns::ADDRESSES, process::SECRETS};
use portcullis_upstream::config::{
    SecretBinding, SecretDeliveryMethod, Server, Sharing, is_client, is_env_name,
};
use portcullis_vault::Source;

pub(super) fn check(checker: &mut Checker<'_>, at: &str, server: &Server) {
    kind(checker, at, server);
    if let Some(image) = &server.image {
        check_image(checker, at, image);
    }
    if let Some(command) = &server.command {
        check_command(checker, at, command, server.image.is_some());
    }
    if let Some(url) = &server.url {
        check_url(checker, &child(at, "url"), url);
    }
    prefix(checker, at, server);
    environment(checker, at, server);
    headers(checker, at, server);
    mounts(checker, at, server);
    hardening(checker, &child(at, "hardening"), server);
    egress(checker, &child(at, "egress"), server);
    runtime(checker, &child(at, "runtime"), server);
    apart(checker, at, server);
    pod(checker, at, server);
    if server.replicas > 1 && server.sharing.keeps_apart() {
        checker.conflict(
            &child(at, "replicas"),
            "clients that are kept apart share nothing that could have replicas",
            "remove it, or let clients share: `sharing = \"auto\"`",
        );
    }
}

/// Who has secrets of his own at a server shares no instance of it.
fn apart(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let Some(first) = server.given().find(|given| !given.by_client.is_empty()) else { return };
    let what = format!("`{}` differs by client", brief(first.name));
    if server.sharing == Sharing::Shared {
        checker.conflict(
            &child(at, "sharing"),
            format!("{what}, so that clients may not share an instance"),
            "remove it: each client then has an instance of its own",
        );
    }
    if server.replicas > 1 && !server.sharing.keeps_apart() {
        checker.conflict(
            &child(at, "replicas"),
            format!("{what}, so that clients share nothing that could have replicas"),
            "remove it: each client has an instance of its own",
        );
    }
}

/// Exactly one kind, and no key that means nothing to it: a key without effect is a promise that
/// is not kept.
fn kind(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let (idle, of): (&[&str], &str) = match (&server.image, &server.command, &server.url) {
        (None, None, None) => {
            checker.add(
                checker
                    .document
                    .at_key(at, Code::MissingKey, "this server is neither image, command nor url")
                    .help(
                        "add `image = \"NAME@sha256:…\"`, `command = [\"PROGRAM\", …]` or \
                         `url = \"https://…\"`",
                    ),
            );
            return;
        }
        (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
            let other = if server.image.is_some() { "image" } else { "command" };
            checker.conflict(
                &child(at, "url"),
                format!("this server has both `{other}` and `url`"),
                "keep one: a server is an image, a command or a url",
            );
            return;
        }
        (Some(_), _, None) => (&["headers", "transport"], "an `image`"),
        (None, Some(_), None) => {
            (&["signed-by", "pod-socket", "headers", "transport"], "a `command`")
        }
        (None, None, Some(_)) => (
            &[
                "signed-by",
                "runtime",
                "pod-socket",
                "env",
                "secrets",
                "mounts",
                "resources",
                "egress",
                "egress-limits",
                "hardening",
                "warm",
                "replicas",
            ],
            "a `url`",
        ),
    };
    for key in idle {
        let pointer = child(at, key);
        if checker.document.get(&pointer).is_some() {
            checker.conflict(
                &pointer,
                format!("`{key}` has no meaning for {of}"),
                match (*key, of) {
                    ("secrets", "a `url`") => "to send a secret to a url, use `headers`",
                    _ => "remove it",
                },
            );
        }
    }
}

/// What a tag means is found out once, and locked.
fn check_image(checker: &mut Checker<'_>, at: &str, image: &str) {
    if let Err(illegal) = image.parse::<Image>() {
        let help = "such as `ghcr.io/owner/name:1.2` or `ghcr.io/owner/name@sha256:…`";
        checker.bad(&child(at, "image"), illegal.to_string(), help);
    }
}

fn check_command(checker: &mut Checker<'_>, at: &str, command: &[String], image: bool) {
    let pointer = child(at, "command");
    if !image && command.first().is_none_or(String::is_empty) {
        checker.bad(&pointer, "this names no program", "write `[\"PROGRAM\", \"ARGUMENT\", …]`");
    }
    for (index, _) in command.iter().enumerate().filter(|(_, part)| part.contains('\0')) {
        let what = if index == 0 { "program" } else { "argument" };
        checker.bad(&child(&pointer, index), format!("a NUL can't stand in a {what}"), "remove it");
    }
}

fn check_url(checker: &mut Checker<'_>, pointer: &str, text: &str) {
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => {
            return checker.bad(
                pointer,
                format!("this is no URL: {error}"),
                "such as `https://mcp.example.com/mcp`",
            );
        }
    };
    let loopback = url.host_str().is_some_and(|host| {
        host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    });
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        "http" => checker.add(
            checker
                .document
                .at_value(pointer, Code::Unsafe, "plain HTTP would show every call on the network")
                .help("use https; plain http is taken for loopback addresses only"),
        ),
        other => checker.bad(
            pointer,
            format!("`{}` is no scheme for a server", brief(other)),
            "use https",
        ),
    }
    if !url.username().is_empty() || url.password().is_some() {
        checker.add(
            checker
                .document
                .at_key(pointer, Code::LiteralSecret, "this URL has credentials in it")
                .help("send them by `headers = { Authorization = { from = \"env:NAME\" } }`"),
        );
    } else if url_holds_secret(&url) {
        let finding = checker.document.at_key(
            pointer,
            Code::LiteralSecret,
            "a part of this URL looks like a secret in plain text",
        );
        checker.add(finding.warning().help(
            "send it by `headers = { Authorization = { from = \"env:NAME\" } }`, if the server takes it there; \
             else let nobody else read this file: logs and records have the URL's host alone",
        ));
    }
    if url.fragment().is_some() {
        checker.bad(pointer, "a server's URL has no fragment", "remove `#` and what follows");
    }
}

fn prefix(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let Some(prefix) = &server.prefix else { return };
    let legal = prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !legal {
        checker.bad(
            &child(at, "prefix"),
            format!("`{}` can't stand before the name of a tool", brief(prefix)),
            "use letters, digits, `_` and `-`: some clients take no others",
        );
    }
}

fn environment(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let env = child(at, "env");
    let secrets = child(at, "secrets");
    for (parent, name) in server
        .env
        .keys()
        .map(|name| (&env, name))
        .chain(server.secrets.keys().map(|name| (&secrets, name)))
    {
        if !is_env_name(name) {
            let message = format!("`{}` is no name of a variable", brief(name));
            checker.add(
                checker
                    .document
                    .at_key(&child(parent, name), Code::BadValue, message)
                    .help("use letters, digits and `_`, not beginning with a digit"),
            );
        }
        if name.starts_with("LD_") {
            let finding = checker.document.at_key(
                &child(parent, name),
                Code::Unsafe,
                format!("`{}` changes which code a program loads", brief(name)),
            );
            checker
                .add(finding.warning().help("build what it needs into the image or the program"));
        }
    }
    for given in server.given() {
        references(checker, &child(&child(at, given.table()), given.name), given);
    }
    for name in files(server) {
        let variable = format!("{name}_FILE");
        if server.env.contains_key(&variable) || server.secrets.contains_key(&variable) {
            checker.conflict(
                &child(&secrets, name),
                format!("`{}` is the proxy's to set: it says where the file is", brief(&variable)),
                "remove the variable, or hand the secret over as `env`",
            );
        }
    }
    for (name, value) in &server.env {
        let pointer = child(&env, name);
        if server.secrets.contains_key(name) {
            checker.conflict(
                &pointer,
                format!("`{}` is in both `env` and `secrets`", brief(name)),
                "remove it from `env`",
            );
        } else if value.contains('\0') {
            checker.add(checker.document.at_key(
                &pointer,
                Code::BadValue,
                "a NUL can't stand in a variable",
            ));
        } else if looks_secret(name, value) {
            let message = format!("`{}` looks like a secret in plain text", brief(name));
            checker.add(
                checker.document.at_key(&pointer, Code::LiteralSecret, message).warning().help(
                    format!("write it under `secrets`: `{name} = {{ from = \"env:{name}\" }}`"),
                ),
            );
        }
    }
}

/// Where the values of one secret come from.
fn references(checker: &mut Checker<'_>, at: &str, given: SecretBinding<'_>) {
    if given.from.is_none() && given.by_client.is_empty() {
        let finding = checker.document.at_key(at, Code::MissingKey, "this comes from nowhere");
        checker.add(finding.help(
            "write `from = \"env:NAME\"`, or references for single clients: `by-client = { NAME = \
             \"file:PATH\" }`",
        ));
    }
    let own = child(at, "by-client");
    for (client, from) in given.references() {
        let pointer = client.map_or_else(|| child(at, "from"), |client| child(&own, client));
        if let Err(error) = from.parse::<Source>() {
            checker.add(checker.document.at_value(&pointer, Code::BadValue, error.to_string()));
        }
        if let Some(client) = client.filter(|client| !is_client(client)) {
            let message = format!("`{}` is no client", brief(client));
            let finding = checker.document.at_key(&pointer, Code::BadValue, message);
            checker.add(finding.help(
                "write the name of a client, or `\"local:USER\"` for the user who runs the proxy",
            ));
        }
    }
}

/// The secrets that it gets as files.
fn files(server: &Server) -> impl Iterator<Item = &String> {
    let all =
        server.secrets.iter().filter(|(_, secret)| secret.hand_over == SecretDeliveryMethod::File);
    all.map(|(name, _)| name)
}

/// By the name of the variable, by how vendors' keys begin, and by what stands in a URL.
pub(crate) fn looks_secret(name: &str, value: &str) -> bool {
    let is_path = value.starts_with(['/', '.']);
    let in_url = || Url::parse(value).is_ok_and(|url| url.has_host() && url_holds_secret(&url));
    value.len() >= 8 && (begins_as_key(value) || (!is_path && names_secret(name)) || in_url())
}

fn headers(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let all = child(at, "headers");
    for name in server.headers.keys() {
        let pointer = child(&all, name);
        let Ok(header) = HeaderName::try_from(name.as_str()) else {
            let message = format!("`{}` is no name of a header", brief(name));
            checker.add(checker.document.at_key(&pointer, Code::BadValue, message));
            continue;
        };
        let ours = [
            "host",
            "content-length",
            "content-type",
            "accept",
            "connection",
            "te",
            "transfer-encoding",
            "upgrade",
            "trailer",
            "keep-alive",
            "last-event-id",
        ]
        .contains(&header.as_str())
            || header.as_str().starts_with("mcp-");
        if ours {
            checker.conflict(&pointer, format!("`{header}` is the proxy's to set"), "remove it");
        }
    }
}

fn mounts(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let mut targets = HashSet::new();
    for (index, mount) in server.mounts.iter().enumerate() {
        if mount.target.starts_with(SECRETS) && files(server).next().is_some() {
            checker.conflict(
                &child(&child(at, "mounts"), index),
                format!("`{SECRETS}` is where this server finds its secrets"),
                "mount it elsewhere",
            );
        }
        if !targets.insert(&mount.target) {
            checker.conflict(
                &child(&child(at, "mounts"), index),
                format!("two mounts have the target `{}`", mount.target.display()),
                "give each a target of its own",
            );
        }
    }
}

fn egress(checker: &mut Checker<'_>, at: &str, server: &Server) {
    if server.egress.is_empty() {
        return;
    }
    if server.hardening.network {
        checker.conflict(
            at,
            "`hardening.network` leads past `egress`",
            "remove `network = true`: what `egress` lists needs no network",
        );
    }
    if let Err(twice) = Destinations::new(server.egress.clone()) {
        checker.conflict(at, twice.to_string(), "keep one of them");
    }
    let names: BTreeSet<_> = server.egress.iter().map(|one| &one.host).collect();
    if names.len() > ADDRESSES {
        checker.bad(
            at,
            format!("these are {} hosts, and {ADDRESSES} are the most", names.len()),
            "list them below one name (`*.example.com:443`), or divide the server",
        );
    }
    for (nth, to) in server.egress.iter().enumerate() {
        machine(checker, &child(at, nth), to);
    }
}

/// The ways to what a machine keeps for itself. They may be meant, and are easily not.
fn machine(checker: &mut Checker<'_>, at: &str, to: &Destination) {
    let address = match (&to.host, to.address) {
        (_, Some(address)) => address,
        (Pattern::One(Host::Address(address)), None) => *address,
        _ => return,
    };
    let (message, help) = if is_metadata(address) {
        (
            format!("at {address}, clouds serve credentials of this machine to every caller"),
            "remove it, unless the server is to act as this machine".to_owned(),
        )
    } else if address.is_loopback() && to.address.is_none() {
        (
            format!(
                "{address} is this machine, where the engine's API or others without a key may listen"
            ),
            format!("remove it, or say that it is meant: `{to}={address}`"),
        )
    } else {
        return;
    };
    let finding = checker.document.at_value(at, Code::Unsafe, message);
    checker.add(finding.warning().help(help));
}

/// Of a container that runs already.
fn pod(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let Some(socket) = &server.pod_socket else { return };
    let pointer = child(at, "pod-socket");
    if !socket.is_absolute() {
        checker.bad(&pointer, "this is no absolute path", "name the socket by its whole path");
    }
    let runtime = child(at, "runtime");
    if checker.document.get(&runtime).is_some() {
        checker.conflict(
            &runtime,
            "what runs a container that runs already is its pod's to say",
            "remove it, and write `runtimeClassName` in the pod",
        );
    }
}

fn runtime(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let written = checker.document.get(at).is_some();
    if written && server.image.is_some() && server.runtime.oci().is_none() {
        checker.conflict(
            at,
            "an image runs in a container, whatever stands here",
            "remove it, or write `runtime = \"runsc\"` to have it under gVisor",
        );
    }
    if server.runtime.oci().is_some() && !server.egress.is_empty() {
        checker.conflict(
            at,
            "`egress` does not get to a server under gVisor, whose network is its own kernel's",
            "remove `egress`, or run it in an ordinary container",
        );
    }
    let tmp = at.replace("/runtime", "/resources/tmp-mib");
    if server.resources.tmp_mib > server.resources.memory_mib
        && checker.document.get(&tmp).is_some()
    {
        let message = format!(
            "/tmp is in memory, of which it has {} MiB: so much can never be written",
            server.resources.memory_mib
        );
        checker.conflict(&tmp, message, "raise `resources.memory-mib`, or lower this");
    }
}

fn hardening(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let hardening = &server.hardening;
    for (index, capability) in hardening.cap_add.iter().enumerate() {
        if CAPABILITIES.contains(&capability.as_str()) {
            continue;
        }
        let message = format!("`{}` is no capability", brief(capability));
        let finding = checker.document.at_value(
            &child(&child(at, "cap-add"), index),
            Code::BadValue,
            message,
        );
        let full = format!("CAP_{}", capability.trim_start_matches("CAP_").to_ascii_uppercase());
        checker.add(match nearest(&full, CAPABILITIES.iter().copied()) {
            Some(name) => finding.label(format!("did you mean `{name}`?")),
            None => finding.help("capabilities(7) names them"),
        });
    }
    if let Some(user) = &hardening.user {
        let number = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_digit())
                && text.parse::<u32>().is_ok()
        };
        if !user.split_once(':').is_some_and(|(uid, gid)| number(uid) && number(gid)) {
            checker.bad(
                &child(at, "user"),
                format!("`{}` is no user", brief(user)),
                "write `UID:GID` in numbers, such as `1000:1000`",
            );
        }
    }
}
