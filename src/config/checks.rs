//! Checks that a schema cannot express: settings that depend on each other, and the meaning of
//! values.

mod ceilings;
mod export;
mod secrets;
mod server;
mod signers;

pub(super) use server::looks_secret;

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use portcullis_interceptors::InterceptorKind;

use super::{
    Finding,
    chain::BUILTIN,
    deserialize::Built,
    document::Document,
    finding::Code,
    schema_check::{brief, nearest},
};
use portcullis_foundation::json_pointer::child;
use portcullis_interceptors::plugin;
use portcullis_protocol::tool_names;
use portcullis_protocol::{exchange::Method, identity::KeyHash, names::ServerName};
use portcullis_vault::Source;

use crate::SOCKET_PATH_BYTES;
use portcullis_foundation::note_key::Verifier;

/// Runs all checks.
pub(super) fn check(built: &Built, document: &Document, findings: &mut Vec<Finding>) {
    let mut checker = Checker { document, findings };
    checker.listen(built);
    checker.connections(built);
    checker.admin(built);
    checker.encryption(built);
    checker.clients(built);
    for (name, server) in &built.config.servers {
        let at = child("/servers", name);
        server::check(&mut checker, &at, server);
        ceilings::check(&mut checker, &at, server, &built.config.limits.servers);
    }
    signers::check(&mut checker, &built.config);
    checker.prefixes(built);
    checker.interceptors(built);
    secrets::check(&mut checker, built);
    export::check(&mut checker, &built.config.audit.export);
    checker.rest(built);
}

/// Whether a `Host` value means only this machine.
fn is_local(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

struct Checker<'a> {
    document: &'a Document,
    findings: &'a mut Vec<Finding>,
}

impl Checker<'_> {
    fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Adds a finding about the value at a pointer.
    fn bad(&mut self, pointer: &str, message: impl Into<String>, help: &str) {
        self.add(self.document.at_value(pointer, Code::BadValue, message).help(help));
    }

    /// Adds a finding about two conflicting settings, at the key.
    fn conflict(&mut self, pointer: &str, message: impl Into<String>, help: &str) {
        self.add(self.document.at_key(pointer, Code::Conflict, message).help(help));
    }

    fn line_of(&self, pointer: &str) -> u32 {
        let place = self.document.at_key(pointer, Code::Conflict, "").position();
        place.map_or(0, |(line, _)| line)
    }

    fn listen(&mut self, built: &Built) {
        let listen = &built.config.listen;
        let open = !listen.http.ip().is_loopback();
        if open && listen.anonymous && !listen.anonymous_beyond_loopback {
            self.add(
                self.document
                    .at_key(
                        "/listen/anonymous",
                        Code::Unsafe,
                        format!("anyone who reaches {} could call without a key", listen.http),
                    )
                    .help(
                        "listen on 127.0.0.1, or give each client a key with `portcullis client \
                         add`, or confirm with `anonymous-beyond-loopback = true`",
                    ),
            );
        }
        let named = listen.allowed_hosts.iter().enumerate().find(|(_, host)| !is_local(host));
        if let Some((at, host)) = named
            && !open
            && listen.anonymous
            && !listen.anonymous_beyond_loopback
        {
            self.add(
                self.document
                    .at_value(
                        &child("/listen/allowed-hosts", at),
                        Code::Unsafe,
                        format!("anyone who reaches `{}` could call without a key", brief(host)),
                    )
                    .help(
                        "give each client a key with `portcullis client add` and remove `anonymous \
                         = true`, or confirm with `anonymous-beyond-loopback = true`",
                    ),
            );
        }
        if listen.anonymous_beyond_loopback && !listen.anonymous {
            self.conflict(
                "/listen/anonymous-beyond-loopback",
                "this has no meaning without `anonymous = true`",
                "remove it, or add `anonymous = true`",
            );
        }
        if !listen.trusted_proxies.is_empty() && listen.client_address.is_none() {
            self.conflict(
                "/listen/trusted-proxies",
                "the form in which these proxies report their client's address is missing",
                "add `client-address = \"x-forwarded-for\"`, `\"forwarded\"` or \
                 `\"proxy-protocol\"`, as the proxies are configured",
            );
        }
        if listen.client_address.is_some() && listen.trusted_proxies.is_empty() {
            self.conflict(
                "/listen/client-address",
                "this has no meaning without `trusted-proxies`",
                "remove it, or name the proxies in `trusted-proxies`",
            );
        }
        for (at, host) in listen.allowed_hosts.iter().enumerate() {
            let legal = host
                .parse::<http::uri::Authority>()
                .is_ok_and(|host| !host.as_str().contains('@') && !host.as_str().contains('*'));
            if !legal {
                self.bad(
                    &child("/listen/allowed-hosts", at),
                    format!("`{}` is not a host", brief(host)),
                    "write `name` or `name:port`, without a scheme",
                );
            }
        }
        for (at, origin) in listen.allowed_origins.iter().enumerate() {
            let legal = reqwest::Url::parse(origin)
                .is_ok_and(|url| url.has_host() && url.origin().ascii_serialization() == *origin);
            if !legal {
                self.bad(
                    &child("/listen/allowed-origins", at),
                    format!("`{}` is not an origin", brief(origin)),
                    "write `https://name` or `https://name:port` in lower case, without a path",
                );
            }
        }
    }

    fn connections(&mut self, built: &Built) {
        let limits = &built.config.limits.connections;
        let bounds = limits.bounds(usize::MAX);
        let at = "/limits/connections";
        for (key, written, used, room) in [
            ("unauthenticated", limits.unauthenticated, bounds.unauthenticated, "`total`"),
            (
                "unauthenticated-per-network",
                limits.unauthenticated_per_network,
                bounds.unauthenticated_per_network,
                "`unauthenticated`",
            ),
            (
                "per-client",
                limits.per_client,
                bounds.per_client,
                "`total` without `unauthenticated`",
            ),
        ] {
            if written.is_some_and(|written| written != used) {
                self.conflict(
                    &child(at, key),
                    format!("{room} leaves {used} here"),
                    "lower it to at most that, or remove the key",
                );
            }
        }
    }

    fn admin(&mut self, built: &Built) {
        let admin = &built.config.admin;
        if !admin.roles.is_empty() && admin.socket.is_none() {
            self.conflict(
                "/admin/roles",
                "users named here cannot open the socket in the state folder",
                "set `admin.socket`, such as \"/run/portcullis/admin.sock\"",
            );
        }
        if let Some(socket) = &admin.socket
            && (socket.as_os_str().is_empty()
                || socket.as_os_str().len() > crate::SOCKET_PATH_BYTES)
        {
            self.bad(
                "/admin/socket",
                format!("the path of a socket must have 1 to {SOCKET_PATH_BYTES} bytes"),
                "such as \"/run/portcullis/admin.sock\"",
            );
        }
        for (role, at, member) in admin.roles.members() {
            if admin.roles.with(role).iter().take(at).any(|other| other == member) {
                self.conflict(
                    &child(&format!("/admin/roles/{role}"), at),
                    format!("`{member}` is named twice"),
                    "remove one of the two",
                );
            }
        }
    }

    fn encryption(&mut self, built: &Built) {
        let Some(encryption) = &built.config.audit.encryption else { return };
        let at = "/audit/encryption";
        let old = encryption.old_keys.iter().enumerate();
        let old = old.map(|(i, key)| (child(&child(at, "old-keys"), i), key));
        let mut seen: Vec<&str> = Vec::new();
        for (pointer, key) in [(child(at, "key"), &encryption.key)].into_iter().chain(old) {
            // The text is not repeated, because it may be the key itself.
            if let Err(error) = Source::try_from(key) {
                self.bad(&pointer, error.to_string(), "such as `{ from = \"env:AUDIT_KEY\" }`");
            } else if seen.contains(&key.from.as_str()) {
                self.conflict(&pointer, "this key is named twice", "remove one of the two");
            }
            seen.push(&key.from);
        }
    }

    fn clients(&mut self, built: &Built) {
        let mut owners: HashMap<KeyHash, String> = HashMap::new();
        for (name, client) in &built.config.clients {
            let pointer = child(&child("/clients", name), "key-hash");
            match client.key_hash.parse::<KeyHash>() {
                Err(error) => self.bad(
                    &pointer,
                    error.to_string(),
                    "`portcullis client add NAME` creates a key and its hash",
                ),
                Ok(hash) => {
                    if let Some(other) = owners.insert(hash, name.to_string()) {
                        self.conflict(
                            &pointer,
                            format!("the clients `{other}` and `{name}` have the same key"),
                            "give each client its own key: the audit log distinguishes clients by \
                            key",
                        );
                    }
                }
            }
        }
    }

    /// Prefixes of two servers must be unambiguous: with `a` and `a__b`, the first server could
    /// offer `b__x`, which looks like the second's `x`. Nor may they look alike.
    fn prefixes(&mut self, built: &Built) {
        let mut owners: Vec<(&str, &ServerName)> = Vec::new();
        for (name, server) in &built.config.servers {
            let prefix = server.prefix.as_deref().unwrap_or(name.as_str());
            let at = child("/servers", name);
            let key = child(&at, "prefix");
            let pointer = if self.document.get(&key).is_some() { key } else { at };
            if prefix.len() > tool_names::MAX_PREFIX_CHARS {
                let message = format!(
                    "names with the prefix `{}` would be too long for some \
                        clients",
                    brief(prefix)
                );
                let help = format!(
                    "give it a `prefix` of at most {} characters",
                    tool_names::MAX_PREFIX_CHARS
                );
                self.conflict(&pointer, message, &help);
            } else if let Some((_, other)) =
                owners.iter().find(|(other, _)| tool_names::run_together(other, prefix))
            {
                let message = format!(
                    "names of `{name}` could be confused with names of `{other}` (line {})",
                    self.line_of(&child("/servers", other)),
                );
                self.conflict(&pointer, message, "give one of them another `prefix`");
            }
            owners.push((prefix, name));
        }
    }

    fn interceptors(&mut self, built: &Built) {
        let mut names: HashMap<&str, &str> = HashMap::new();
        let chain = built.config.chain();
        let defaults = chain.iter().filter(|member| member.at.is_none());
        let defaults: Vec<&str> = defaults.map(|member| member.entry.kind.as_str()).collect();
        for (entry, pointer) in built.config.interceptors.iter().zip(&built.interceptors) {
            let name = entry.name();
            let key = child(pointer, "name");
            let legal = (1..=64).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            if !legal {
                self.bad(
                    &key,
                    "this is not a legal name of an interceptor",
                    "use 1 to 64 letters, digits, `.`, `_` and `-`",
                );
            } else if BUILTIN.contains(&name) || name == "audit" {
                self.conflict(
                    &key,
                    format!(
                        "the name `{name}` belongs to the interceptor that is always in the \
                        chain"
                    ),
                    "choose another name",
                );
            }
            if defaults.contains(&name) {
                self.conflict(
                    &key,
                    format!("the name `{name}` belongs to an interceptor of the default chain"),
                    "choose another name",
                );
            }
            if let Some(other) = names.insert(name, pointer) {
                let message = format!(
                    "two interceptors are called `{}` (line {})",
                    brief(name),
                    self.line_of(other)
                );
                let finding = self.document.at_key(&key, Code::Conflict, message);
                self.add(finding.help("give each a distinct `name`, which records use"));
            }
            for (at, event) in entry.settings.events.iter().flatten().enumerate() {
                self.event(&child(&child(pointer, "events"), at), event);
            }
            if entry.settings.events.as_ref().is_some_and(Vec::is_empty) {
                self.bad(
                    &child(pointer, "events"),
                    "without an event the interceptor would never run",
                    "remove the key to keep the interceptor's own events",
                );
            }
            if let InterceptorKind::Plugin(plugin) = &entry.kind {
                self.plugin(plugin, pointer);
            }
            if let Some(Value::String(sha256)) = self.document.get(&child(pointer, "sha256"))
                && !is_sha256(sha256)
            {
                self.bad(
                    &child(pointer, "sha256"),
                    "this is not a SHA-256 digest",
                    "64 characters of 0-9 and a-f, as `sha256sum FILE` prints",
                );
            }
        }
    }

    fn plugin(&mut self, plugin: &plugin::Config, pointer: &str) {
        match (&plugin.path, &plugin.oci) {
            (None, None) => self.bad(
                pointer,
                "the location of the plugin is missing",
                "set its `path`, or `oci = \"HOST/REPOSITORY@sha256:…\"`",
            ),
            (Some(_), Some(_)) => self.conflict(
                &child(pointer, "oci"),
                "the plugin also has a `path`",
                "remove one of them",
            ),
            (None, Some(_)) if plugin.allow_unpinned => self.conflict(
                &child(pointer, "allow-unpinned"),
                "a plugin in a registry is always pinned by the digest in `oci`",
                "remove the key",
            ),
            (None, Some(text)) => {
                if let Err(error) = text.parse::<portcullis_oci::Reference>() {
                    self.bad(
                        &child(pointer, "oci"),
                        format!("`{}` is not a reference: {error}", brief(text)),
                        "write HOST/REPOSITORY[:TAG]@sha256:…",
                    );
                }
            }
            (Some(_), None) => {}
        }
    }

    fn event(&mut self, pointer: &str, event: &str) {
        if event == "*" || Method::KNOWN.contains(&event) {
            return;
        }
        let message = format!("`{}` is not a known method", brief(event));
        let finding = self.document.at_value(pointer, Code::BadValue, message).warning();
        self.add(match nearest(event, Method::KNOWN.iter().copied()) {
            Some(method) => finding.label(format!("did you mean `{method}`?")),
            None => finding,
        });
    }

    fn bundle(&mut self, built: &Built) {
        let policy = &built.config.policy;
        let keys = "/policy/bundle-keys";
        match &policy.bundle {
            Some(dir) if dir.as_os_str().is_empty() => {
                self.bad("/policy/bundle", "this path is empty", "name a folder");
            }
            Some(_) if policy.bundle_keys.is_empty() => self.conflict(
                "/policy/bundle",
                "no key is trusted to sign this bundle",
                "set the verifier keys: `bundle-keys = [\"NAME+HASH+BASE64\"]`, \
                 as `portcullis policy bundle key` prints them",
            ),
            None if !policy.bundle_keys.is_empty() => self.conflict(
                keys,
                "these keys have no meaning without `bundle`",
                "name the folder, `bundle = \"policies.bundle\"`, or remove them",
            ),
            _ => {}
        }
        if policy.bundle.is_some() && self.document.get("/policy/paths").is_some() {
            self.conflict(
                "/policy/paths",
                "policies come from a bundle or from files, not from both",
                "remove `paths`, or `bundle` and `bundle-keys`",
            );
        }
        for (at, key) in policy.bundle_keys.iter().enumerate() {
            // The text is not repeated, because it may be the signing key.
            if key.parse::<Verifier>().is_err() {
                self.bad(
                    &child(keys, at),
                    "this is not a verifier key",
                    "write NAME+HASH+BASE64, as `portcullis policy bundle key` prints it",
                );
            } else if policy.bundle_keys.iter().take(at).any(|other| other == key) {
                self.conflict(&child(keys, at), "this key is named twice", "remove one of the two");
            }
        }
    }

    fn rest(&mut self, built: &Built) {
        if let Some(filter) = &built.config.telemetry.log
            && let Err(error) = tracing_subscriber::EnvFilter::try_new(filter)
        {
            self.bad(
                "/telemetry/log",
                format!("this is not a log filter: {error}"),
                "write a level (`info`) or targets with levels (`portcullis=debug,info`)",
            );
        }
        if let Some(host) = &built.config.engine.host {
            let legal = match host.split_once("://") {
                Some(("unix", path)) => path.starts_with('/'),
                Some(("tcp" | "http", rest)) => !rest.is_empty(),
                _ => false,
            };
            if !legal {
                self.bad(
                    "/engine/host",
                    format!("`{}` is not the address of a container engine", brief(host)),
                    "such as `unix:///var/run/docker.sock`",
                );
            }
        }
        self.bundle(built);
        let mut seen = HashSet::new();
        for (at, path) in built.config.policy.paths.iter().enumerate() {
            if path.as_os_str().is_empty() {
                self.bad(
                    &child("/policy/paths", at),
                    "this path is empty",
                    "name a file or a folder",
                );
            } else if !seen.insert(path) {
                self.conflict(
                    &child("/policy/paths", at),
                    "this path is named twice",
                    "remove one of the two",
                );
            }
        }
        for (pointer, path) in [
            ("/state-dir", Some(&built.config.state_dir)),
            ("/audit/dir", built.config.audit.dir.as_ref()),
        ] {
            if path.is_some_and(|path| path.as_os_str().is_empty()) {
                self.bad(pointer, "this path is empty", "name a folder");
            }
        }
        for (at, witness) in built.config.audit.witness.iter().enumerate() {
            if witness.target().is_none() {
                self.bad(
                    &child("/audit/witness", at),
                    "this names either no witness or several",
                    "set one of `file = \"PATH\"`, `syslog = \"udp://HOST:PORT\"` (or `tcp://`, \
                     or `unix:///PATH`) and `url = \"https://…\"`",
                );
            }
        }
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
