//! Events in words, one line each.

use std::fmt;

use super::{
    egress::{EgressClosed, EgressConnecting, EgressEnd},
    event::{
        By, DropReason, Event, HandedBy, ImageLockFailed, ImageLocked, ImagePullFailed,
        ImagePulled, ImagePulling, ImageResolved, LaunchRefused, Launched, LeftBehind,
        RefusalGroup, SummarizedRefusals,
    },
};

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProxyStarted { version, dry_run: false } => {
                write!(f, "proxy started, version {version}")
            }
            Self::ProxyStarted { version, dry_run: true } => {
                write!(f, "dry run began, version {version}")
            }
            Self::ProxyStartFailed { reason, .. } => write!(f, "proxy did not start: {reason}"),
            Self::ProxyStopped { reason: Some(reason) } => write!(f, "proxy stopped: {reason}"),
            Self::ProxyStopped { reason: None } => f.write_str("proxy stopped"),
            Self::ConfigLoaded { file, revision, servers, .. } => {
                write!(f, "config loaded: {file}, {servers} servers, revision {revision}")
            }
            Self::ConfigReloaded { file, added, changed, removed, waiting, .. } => {
                write!(f, "config loaded again: {file}")?;
                for (what, names) in [
                    ("added", added),
                    ("changed", changed),
                    ("removed", removed),
                    ("not before a restart", waiting),
                ] {
                    if !names.is_empty() {
                        write!(f, "; {what}: {}", names.join(", "))?;
                    }
                }
                Ok(())
            }
            Self::ConfigRejected { reason, .. } => write!(f, "config rejected: {reason}"),
            Self::PolicyLoaded { revision, policies, bundle, bundle_version, .. } => {
                write!(f, "policies loaded: {policies}, revision {revision}")?;
                match (bundle, bundle_version) {
                    (Some(name), Some(version)) => {
                        write!(f, ", bundle {name} version {version}")
                    }
                    _ => Ok(()),
                }
            }
            Self::PolicyRejected { reason } => write!(f, "policies rejected: {reason}"),
            Self::PluginLoaded(loaded) => {
                write!(f, "plugin {} loaded: {}, {}", loaded.plugin, loaded.file, loaded.digest)
            }
            Self::PluginRefused { plugin, file, reason } => {
                write!(f, "plugin {plugin} not loaded: {file}: {reason}")
            }
            Self::PluginHttpSent { plugin, call, requests } => {
                let requests = requests.join(", ");
                write!(f, "plugin {plugin} sent for {call}, which was withdrawn: {requests}")
            }
            Self::ClientSeen(who) => {
                write!(f, "{} came in", who.principal)?;
                match who.client_addr {
                    Some(address) => write!(f, " from {address}"),
                    None => Ok(()),
                }
            }
            Self::SessionOpened(opened) => {
                write!(f, "{} opened session {}", opened.who.principal, opened.session)
            }
            Self::SessionEnded { session, principal, requests, reason } => {
                write!(
                    f,
                    "session {session} of {principal} ended after {requests} requests: {reason}"
                )
            }
            Self::ServerLaunching(launching) => {
                write!(f, "server {} is being started", launching.server)
            }
            Self::ServerLaunchRefused(refused) => {
                let LaunchRefused { server, action, target, .. } = refused;
                write!(f, "policy does not permit server {server} to be started: {action} {target}")
            }
            Self::ImageResolved(ImageResolved { server, image, digest, .. }) => {
                write!(f, "the image {image} of server {server} is {digest}")
            }
            Self::ImageLocked(ImageLocked { server, image, digest, was, by }) => {
                write!(f, "the image {image} of server {server} is {digest} from now on")?;
                if let Some(was) = was {
                    write!(f, ", and was {was}")?;
                }
                by_whom(by.user.as_deref(), by.uid, f)
            }
            Self::ImageLockFailed(ImageLockFailed { server, image, digest, reason, by }) => {
                write!(
                    f,
                    "the image {image} of server {server} is not {digest} after all: {reason}"
                )?;
                by_whom(by.user.as_deref(), by.uid, f)
            }
            Self::ImagePulling(ImagePulling { server, image, digest, by }) => {
                write!(f, "the image {image} of server {server} is being pulled ({digest})")?;
                by_whom(by.user.as_deref(), by.uid, f)
            }
            Self::ImagePulled(ImagePulled { server, image, digest, .. }) => {
                write!(f, "the image {image} of server {server} was pulled ({digest})")
            }
            Self::ImagePullFailed(ImagePullFailed { server, image, reason, .. }) => {
                write!(f, "the image {image} of server {server} was not pulled: {reason}")
            }
            Self::ServerLaunched(launched) => started(launched, f),
            Self::ServerLaunchFailed { server, reason, .. } => {
                write!(f, "server {server} could not be started: {reason}")
            }
            Self::ServerStopped(stopped) => {
                write!(f, "server {} stopped: {}", stopped.server, stopped.reason)
            }
            Self::OrphansRemoving(LeftBehind { left, by }) => {
                let names: Vec<_> = left.iter().map(|left| left.name.as_str()).collect();
                let names = names.join(", ");
                write!(f, "what proxies have left that are gone is being removed: {names}")?;
                by_whom(by.user.as_deref(), by.uid, f)
            }
            Self::OrphansRemoved(LeftBehind { left, by }) => {
                let all = left.iter().map(|left| match &left.error {
                    Some(why) => format!("not {} ({why})", left.name),
                    None => left.name.clone(),
                });
                let all = all.collect::<Vec<_>>().join(", ");
                write!(f, "what proxies had left that are gone was removed: {all}")?;
                by_whom(by.user.as_deref(), by.uid, f)
            }
            Self::EgressOpened(egress) => {
                write!(f, "server {}: connects to {}", egress.server, egress.url)
            }
            Self::EgressConnecting(reaching) => {
                let EgressConnecting { server, host, port, protocol, .. } = reaching;
                write!(f, "server {server} is connected to {host}:{port} ({protocol})")
            }
            Self::EgressClosed(reached) => {
                let EgressClosed { server, host, port, up, down, end, reason, .. } = &**reached;
                write!(f, "server {server}: its connection")?;
                if let (Some(host), Some(port)) = (host, port) {
                    write!(f, " to {host}:{port}")?;
                }
                match (end, reason) {
                    (EgressEnd::Refused, Some(reason)) => write!(f, " was refused: {reason}"),
                    _ => write!(f, " ended after {up} bytes out and {down} in"),
                }
            }
            Self::SecretsDelivered { server, secrets, .. } => {
                write!(f, "server {server} is handed secrets:")?;
                for handed in secrets {
                    let by = match handed.by {
                        HandedBy::Environment => "environment",
                        HandedBy::File => "file",
                        HandedBy::Header => "header",
                    };
                    write!(f, " {} ({by})", handed.secret)?;
                }
                Ok(())
            }
            Self::SecretUnresolved { server, secret, principal, kept, reason, .. } => {
                write!(f, "server {server}: secret {secret}")?;
                if let Some(principal) = principal {
                    write!(f, " of {principal}")?;
                }
                let kept = if *kept { ", and the old value goes on being used" } else { "" };
                write!(f, " does not resolve{kept}: {reason}")
            }
            Self::SecretsStale { server, secrets, .. } => {
                let secrets = secrets.join(", ");
                write!(f, "server {server} has old values until its next start: {secrets}")
            }
            Self::MessagesDropped(dropped) => {
                let why = match dropped.reason {
                    DropReason::Flood => "came too fast",
                    DropReason::Level => "were below the level that the client asked for",
                    DropReason::Unread => "were not read by the client",
                };
                let (server, count) = (&dropped.server, dropped.count);
                write!(f, "server {server}: {count} of its messages {why} and were dropped")
            }
            Self::ApprovalRequested { call, principal, rules, .. } => {
                let rules = rules.join(", ");
                write!(f, "a person is asked whether {principal} may ({rules}): {call}")
            }
            Self::ApprovalWebhookFailed { call, reason, .. } => {
                write!(f, "the webhook for approvals was not reached: {reason}: {call}")
            }
            Self::ApprovalDecided { call, principal, allowed, by, .. } => {
                let word = if *allowed { "allowed" } else { "denied" };
                write!(f, "{by} {word} what {principal} asked for: {call}")
            }
            Self::ClientAdded { client, key_id, by, .. } => {
                write!(f, "client {client} added, key {key_id}")?;
                said(by, f)
            }
            Self::ClientRemoved { client, key_id, by } => {
                write!(f, "client {client} removed, key {key_id}")?;
                said(by, f)
            }
            Self::AdminAction(action) => {
                match &action.user {
                    Some(user) => write!(f, "{user} asked: {}", action.verb)?,
                    None => write!(f, "user {} asked: {}", action.uid, action.verb)?,
                }
                if let Some(target) = &action.target {
                    write!(f, " {target}")?;
                }
                match &action.code {
                    Some(code) => write!(f, ", refused: {code}"),
                    None => Ok(()),
                }
            }
            Self::RefusalSummaryOpened(group) => {
                write!(
                    f,
                    "too many refusals to record each: from here on those {group} share this id"
                )
            }
            Self::RefusalsSummarized(SummarizedRefusals { group, count, since }) => {
                write!(f, "{count} refusals {group} since {since} share this id")
            }
            Self::RecordsLost { from, until, reason } => {
                let reason = reason.as_deref().unwrap_or("they are gone from the disk");
                write!(
                    f,
                    "audit records {from} to {} are lost: {reason}",
                    until.0.saturating_sub(1)
                )
            }
            Self::RecordsDropped { since, until, intents, outcomes, refusals, events } => write!(
                f,
                "not recorded from {since} to {until}: {intents} intents, {outcomes} outcomes, \
                 {refusals} refusals and {events} events"
            ),
            Self::SegmentDropped { first, last, reason, .. } => {
                write!(f, "audit records {first} to {last} dropped: {reason}")
            }
            Self::KeyRotated { key_id } => {
                write!(f, "audit records are encrypted by key {key_id} now")
            }
            Self::StoreBackedUp { to, first, last } => {
                write!(f, "audit records {first} to {last} copied to {to}")
            }
        }
    }
}

/// `with unauthenticated from 192.0.2.1`.
impl fmt::Display for RefusalGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, principal, server, network, others } = self;
        write!(f, "with {code}")?;
        for (word, name) in [("of", principal), ("of server", server), ("from", network)] {
            if let Some(name) = name {
                write!(f, " {word} {name}")?;
            }
        }
        if *others { f.write_str(" from other places") } else { Ok(()) }
    }
}

/// Who did it, by name or else by number.
fn by_whom(user: Option<&str>, uid: Option<u32>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match (user, uid) {
        (Some(user), _) => write!(f, ", by {user}"),
        (None, Some(uid)) => write!(f, ", by user {uid}"),
        (None, None) => Ok(()),
    }
}

/// Who did it, and why where that is to be said.
fn said(by: &By, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    by_whom(by.user.as_deref(), by.uid, f)?;
    match &by.reason {
        Some(reason) => write!(f, ": {reason}"),
        None => Ok(()),
    }
}

fn started(launched: &Launched, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "server {} started: {}", launched.server, launched.place)?;
    if let Some(image) = &launched.image {
        write!(f, ", image {image}")?;
    }
    match &launched.principal {
        Some(principal) => write!(f, ", for {principal} alone"),
        None => Ok(()),
    }
}
