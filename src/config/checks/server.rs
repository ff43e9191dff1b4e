//! Checks one server.

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
use portcullis_runtime::{container::Image, egress_netns::MAX_ADDRESSES, process::SECRETS};
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
            "separate instances per client cannot have replicas",
            "remove it, or let clients share: `sharing = \"auto\"`",
        );
    }
}

/// Clients with their own secrets cannot share an instance.
fn apart(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let Some(first) = server.secret_bindings().find(|binding| !binding.by_client.is_empty()) else {
        return;
    };
    let what = format!("`{}` differs by client", brief(first.name));
    if server.sharing == Sharing::Shared {
        checker.conflict(
            &child(at, "sharing"),
            format!("{what}, so clients must not share an instance"),
            "remove it: each client then has its own instance",
        );
    }
    if server.replicas > 1 && !server.sharing.keeps_apart() {
        checker.conflict(
            &child(at, "replicas"),
            format!("{what}, so there is no shared instance to replicate"),
            "remove it: each client has its own instance",
        );
    }
}

/// Requires exactly one kind of server, and refuses keys that do not apply to it: a key without
/// effect would be misleading.
fn kind(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let (idle, of): (&[&str], &str) = match (&server.image, &server.command, &server.url) {
        (None, None, None) => {
            checker.add(
                checker
                    .document
                    .at_key(at, Code::MissingKey, "this server has no `image`, `command` or `url`")
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

/// Tags are resolved once, and locked.
fn check_image(checker: &mut Checker<'_>, at: &str, image: &str) {
    if let Err(illegal) = image.parse::<Image>() {
        let help = "such as `ghcr.io/owner/name:1.2` or `ghcr.io/owner/name@sha256:…`";
        checker.bad(&child(at, "image"), illegal.to_string(), help);
    }
}

fn check_command(checker: &mut Checker<'_>, at: &str, command: &[String], image: bool) {
    let pointer = child(at, "command");
    if !image && command.first().is_none_or(String::is_empty) {
        checker.bad(&pointer, "the program is missing", "write `[\"PROGRAM\", \"ARGUMENT\", …]`");
    }
    for (index, _) in command.iter().enumerate().filter(|(_, part)| part.contains('\0')) {
        let what = if index == 0 { "program" } else { "argument" };
        checker.bad(&child(&pointer, index), format!("a {what} cannot contain NUL"), "remove it");
    }
}

fn check_url(checker: &mut Checker<'_>, pointer: &str, text: &str) {
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => {
            return checker.bad(
                pointer,
                format!("this is not a URL: {error}"),
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
                .at_value(pointer, Code::Unsafe, "plain HTTP exposes every call on the network")
                .help("use https; plain http is accepted for loopback addresses only"),
        ),
        other => checker.bad(
            pointer,
            format!("the scheme `{}` is not supported for a server", brief(other)),
            "use https",
        ),
    }
    if !url.username().is_empty() || url.password().is_some() {
        checker.add(
            checker
                .document
                .at_key(pointer, Code::LiteralSecret, "this URL contains credentials")
                .help("send them with `headers = { Authorization = { from = \"env:NAME\" } }`"),
        );
    } else if url_holds_secret(&url) {
        let finding = checker.document.at_key(
            pointer,
            Code::LiteralSecret,
            "a part of this URL looks like a secret in plain text",
        );
        checker.add(finding.warning().help(
            "send it with `headers = { Authorization = { from = \"env:NAME\" } }`, if the server \
            accepts that; \
             otherwise protect this file: logs and records contain only the URL's host",
        ));
    }
    if url.fragment().is_some() {
        checker.bad(
            pointer,
            "a server's URL cannot have a \
            fragment",
            "remove `#` and the text after it",
        );
    }
}

fn prefix(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let Some(prefix) = &server.prefix else { return };
    let legal = prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !legal {
        checker.bad(
            &child(at, "prefix"),
            format!("`{}` cannot be a prefix of tool names", brief(prefix)),
            "use letters, digits, `_` and `-`: some clients accept no others",
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
            let message = format!("`{}` is not a variable name", brief(name));
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
            checker.add(finding.warning().help("build the code into the image or the program"));
        }
    }
    for binding in server.secret_bindings() {
        references(checker, &child(&child(at, binding.table()), binding.name), binding);
    }
    for name in files(server) {
        let variable = format!("{name}_FILE");
        if server.env.contains_key(&variable) || server.secrets.contains_key(&variable) {
            checker.conflict(
                &child(&secrets, name),
                format!("the proxy sets `{}` to the path of the file", brief(&variable)),
                "remove the variable, or deliver the secret as `env`",
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
                "a variable cannot contain NUL",
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

/// Checks the sources of one secret's values.
fn references(checker: &mut Checker<'_>, at: &str, binding: SecretBinding<'_>) {
    if binding.from.is_none() && binding.by_client.is_empty() {
        let finding = checker.document.at_key(at, Code::MissingKey, "the source is missing");
        checker.add(finding.help(
            "write `from = \"env:NAME\"`, or references for single clients: `by-client = { NAME = \
             \"file:PATH\" }`",
        ));
    }
    let own = child(at, "by-client");
    for (client, from) in binding.references() {
        let pointer = client.map_or_else(|| child(at, "from"), |client| child(&own, client));
        if let Err(error) = from.parse::<Source>() {
            checker.add(checker.document.at_value(&pointer, Code::BadValue, error.to_string()));
        }
        if let Some(client) = client.filter(|client| !is_client(client)) {
            let message = format!("`{}` is not a client", brief(client));
            let finding = checker.document.at_key(&pointer, Code::BadValue, message);
            checker.add(finding.help(
                "write the name of a client, or `\"local:USER\"` for the user who runs the proxy",
            ));
        }
    }
}

/// Secrets that the server gets as files.
fn files(server: &Server) -> impl Iterator<Item = &String> {
    let all =
        server.secrets.iter().filter(|(_, secret)| secret.delivery == SecretDeliveryMethod::File);
    all.map(|(name, _)| name)
}

/// Whether a value looks like a secret: by the name of the variable, by prefixes of vendors' keys,
/// and by the parts of a URL.
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
            let message = format!("`{}` is not a header name", brief(name));
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
            checker.conflict(&pointer, format!("the proxy sets `{header}` itself"), "remove it");
        }
    }
}

fn mounts(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let mut targets = HashSet::new();
    for (index, mount) in server.mounts.iter().enumerate() {
        if mount.target.starts_with(SECRETS) && files(server).next().is_some() {
            checker.conflict(
                &child(&child(at, "mounts"), index),
                format!("`{SECRETS}` contains the secrets of this server"),
                "mount it elsewhere",
            );
        }
        if !targets.insert(&mount.target) {
            checker.conflict(
                &child(&child(at, "mounts"), index),
                format!("two mounts have the target `{}`", mount.target.display()),
                "give each its own target",
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
            "`hardening.network` bypasses `egress`",
            "remove `network = true`: the hosts in `egress` do not need it",
        );
    }
    if let Err(twice) = Destinations::new(server.egress.clone()) {
        checker.conflict(at, twice.to_string(), "keep one of them");
    }
    let names: BTreeSet<_> = server.egress.iter().map(|one| &one.host).collect();
    if names.len() > MAX_ADDRESSES {
        checker.bad(
            at,
            format!("these are {} hosts; the limit is {MAX_ADDRESSES}", names.len()),
            "use one pattern for several (`*.example.com:443`), or divide the server",
        );
    }
    for (nth, to) in server.egress.iter().enumerate() {
        machine(checker, &child(at, nth), to);
    }
}

/// Warns about destinations that are internal to a machine. They can be intended, but often are
/// not.
fn machine(checker: &mut Checker<'_>, at: &str, to: &Destination) {
    let address = match (&to.host, to.address) {
        (_, Some(address)) => address,
        (Pattern::One(Host::Address(address)), None) => *address,
        _ => return,
    };
    let (message, help) = if is_metadata(address) {
        (
            format!("at {address}, clouds serve credentials of this machine to every caller"),
            "remove it, unless the server must act as this machine".to_owned(),
        )
    } else if address.is_loopback() && to.address.is_none() {
        (
            format!(
                "{address} is this machine, where the engine's API or other services without a \
                key may listen"
            ),
            format!("remove it, or confirm it: `{to}={address}`"),
        )
    } else {
        return;
    };
    let finding = checker.document.at_value(at, Code::Unsafe, message);
    checker.add(finding.warning().help(help));
}

/// Checks a server in a container of a pod.
fn pod(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let Some(socket) = &server.pod_socket else { return };
    let pointer = child(at, "pod-socket");
    if !socket.is_absolute() {
        checker.bad(&pointer, "this is not an absolute path", "use the whole path of the socket");
    }
    let runtime = child(at, "runtime");
    if checker.document.get(&runtime).is_some() {
        checker.conflict(
            &runtime,
            "the pod chooses the runtime of its containers",
            "remove it, and set `runtimeClassName` in the pod",
        );
    }
}

fn runtime(checker: &mut Checker<'_>, at: &str, server: &Server) {
    let written = checker.document.get(at).is_some();
    if written && server.image.is_some() && server.runtime.oci().is_none() {
        checker.conflict(
            at,
            "an image always runs in a container",
            "remove it, or set `runtime = \"runsc\"` to run it under gVisor",
        );
    }
    if server.runtime.oci().is_some() && !server.egress.is_empty() {
        checker.conflict(
            at,
            "`egress` is not available under gVisor, whose kernel has its own network stack",
            "remove `egress`, or run it in an ordinary container",
        );
    }
    let tmp = at.replace("/runtime", "/resources/tmp-mib");
    if server.resources.tmp_mib > server.resources.memory_mib
        && checker.document.get(&tmp).is_some()
    {
        let message = format!(
            "/tmp is in memory, and the limit is {} MiB: this size can never be used",
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
        let message = format!("`{}` is not a capability", brief(capability));
        let finding = checker.document.at_value(
            &child(&child(at, "cap-add"), index),
            Code::BadValue,
            message,
        );
        let full = format!("CAP_{}", capability.trim_start_matches("CAP_").to_ascii_uppercase());
        checker.add(match nearest(&full, CAPABILITIES.iter().copied()) {
            Some(name) => finding.label(format!("did you mean `{name}`?")),
            None => finding.help("capabilities(7) lists them"),
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
                format!("`{}` is not a user", brief(user)),
                "write `UID:GID` in numbers, such as `1000:1000`",
            );
        }
    }
}
