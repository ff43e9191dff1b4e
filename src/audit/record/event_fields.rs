//! What an event is about, and the texts in it that others chose.

use super::Orphan;
use super::{
    AdminAction, By, ByHand, Dropped, Egress, EgressClosed, EgressConnecting, EgressEnd, Event,
    ImageLockFailed, ImageLocked, ImagePullFailed, ImagePulled, ImagePulling, ImageResolved,
    LaunchRefused, Launched, Launching, LeftBehind, PluginLoaded, RefusalGroup, SessionOpened,
    Stopped, SummarizedRefusals, Who,
    v1::{Decision, Rule},
};

impl Event {
    /// The value of `event`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ProxyStarted { .. } => "proxy-started",
            Self::ProxyStartFailed { .. } => "proxy-start-failed",
            Self::ProxyStopped { .. } => "proxy-stopped",
            Self::ConfigLoaded { .. } => "config-loaded",
            Self::ConfigReloaded { .. } => "config-reloaded",
            Self::ConfigRejected { .. } => "config-rejected",
            Self::PolicyLoaded { .. } => "policy-loaded",
            Self::PolicyRejected { .. } => "policy-rejected",
            Self::PluginLoaded(_) => "plugin-loaded",
            Self::PluginRefused { .. } => "plugin-refused",
            Self::PluginHttpSent { .. } => "plugin-http-sent",
            Self::ClientSeen(_) => "client-seen",
            Self::SessionOpened(_) => "session-opened",
            Self::SessionEnded { .. } => "session-ended",
            Self::ServerLaunching(_) => "server-launching",
            Self::ServerLaunchRefused(_) => "server-launch-refused",
            Self::ImageResolved(_) => "image-resolved",
            Self::ImageLocked(_) => "image-locked",
            Self::ImageLockFailed(_) => "image-lock-failed",
            Self::ImagePulling(_) => "image-pulling",
            Self::ImagePulled(_) => "image-pulled",
            Self::ImagePullFailed(_) => "image-pull-failed",
            Self::ServerLaunched(_) => "server-launched",
            Self::ServerLaunchFailed { .. } => "server-launch-failed",
            Self::ServerStopped(_) => "server-stopped",
            Self::OrphansRemoving(_) => "orphans-removing",
            Self::OrphansRemoved(_) => "orphans-removed",
            Self::EgressOpened(_) => "egress-opened",
            Self::EgressConnecting(_) => "egress-connecting",
            Self::EgressClosed(_) => "egress-closed",
            Self::SecretsDelivered { .. } => "secrets-delivered",
            Self::SecretUnresolved { .. } => "secret-unresolved",
            Self::SecretsStale { .. } => "secrets-stale",
            Self::MessagesDropped(_) => "messages-dropped",
            Self::ApprovalRequested { .. } => "approval-requested",
            Self::ApprovalWebhookFailed { .. } => "approval-webhook-failed",
            Self::ApprovalDecided { .. } => "approval-decided",
            Self::ClientAdded { .. } => "client-added",
            Self::ClientRemoved { .. } => "client-removed",
            Self::AdminAction(_) => "admin-action",
            Self::RefusalSummaryOpened(_) => "refusal-summary-opened",
            Self::RefusalsSummarized(_) => "refusals-summarized",
            Self::RecordsLost { .. } => "records-lost",
            Self::RecordsDropped { .. } => "records-dropped",
            Self::SegmentDropped { .. } => "segment-dropped",
            Self::KeyRotated { .. } => "key-rotated",
            Self::StoreBackedUp { .. } => "store-backed-up",
        }
    }

    /// What the refusals have in common that it stands for, if it stands for refusals.
    pub fn refusals(&self) -> Option<&RefusalGroup> {
        match self {
            Self::RefusalSummaryOpened(group) => Some(group),
            Self::RefusalsSummarized(summarized) => Some(&summarized.group),
            _ => None,
        }
    }

    /// The server that it is about.
    pub fn server(&self) -> Option<&str> {
        match self {
            Self::RefusalSummaryOpened(_) | Self::RefusalsSummarized(_) => {
                self.refusals()?.server.as_deref()
            }
            Self::ServerLaunching(launching) => Some(&launching.server),
            Self::ServerLaunchRefused(refused) => Some(&refused.server),
            Self::ImageResolved(resolved) => Some(&resolved.server),
            Self::ImageLocked(locked) => Some(&locked.server),
            Self::ImageLockFailed(failed) => Some(&failed.server),
            Self::ImagePulling(pulling) => Some(&pulling.server),
            Self::ImagePulled(pulled) => Some(&pulled.server),
            Self::ImagePullFailed(failed) => Some(&failed.server),
            Self::ServerLaunched(launched) => Some(&launched.server),
            Self::ServerStopped(stopped) => Some(&stopped.server),
            Self::EgressOpened(egress) => Some(&egress.server),
            Self::EgressConnecting(reaching) => Some(&reaching.server),
            Self::EgressClosed(reached) => Some(&reached.server),
            Self::MessagesDropped(dropped) => Some(&dropped.server),
            Self::ApprovalRequested { server, .. }
            | Self::ApprovalWebhookFailed { server, .. }
            | Self::ApprovalDecided { server, .. } => server.as_deref(),
            Self::ServerLaunchFailed { server, .. }
            | Self::SecretsDelivered { server, .. }
            | Self::SecretsStale { server, .. }
            | Self::SecretUnresolved { server, .. } => Some(server),
            _ => None,
        }
    }

    /// The principal that it is about.
    pub fn principal(&self) -> Option<&str> {
        match self {
            Self::RefusalSummaryOpened(_) | Self::RefusalsSummarized(_) => {
                self.refusals()?.principal.as_deref()
            }
            Self::ClientSeen(who) => Some(&who.principal),
            Self::SessionOpened(opened) => Some(&opened.who.principal),
            Self::SessionEnded { principal, .. }
            | Self::ApprovalRequested { principal, .. }
            | Self::ApprovalWebhookFailed { principal, .. }
            | Self::ApprovalDecided { principal, .. } => Some(principal),
            Self::ClientAdded { client, .. } | Self::ClientRemoved { client, .. } => Some(client),
            Self::ServerLaunching(launching) => launching.principal.as_deref(),
            Self::ServerLaunchRefused(refused) => refused.principal.as_deref(),
            Self::EgressOpened(egress) => egress.principal.as_deref(),
            Self::EgressConnecting(reaching) => reaching.principal.as_deref(),
            Self::EgressClosed(reached) => reached.principal.as_deref(),
            Self::ServerLaunched(launched) => launched.principal.as_deref(),
            Self::ServerLaunchFailed { principal, .. }
            | Self::SecretsDelivered { principal, .. }
            | Self::SecretsStale { principal, .. }
            | Self::SecretUnresolved { principal, .. } => principal.as_deref(),
            Self::ServerStopped(stopped) => stopped.principal.as_deref(),
            Self::MessagesDropped(dropped) => dropped.principal.as_deref(),
            _ => None,
        }
    }

    /// The session that it is about.
    pub fn session(&self) -> Option<&str> {
        match self {
            Self::SessionOpened(opened) => Some(&opened.session),
            Self::SessionEnded { session, .. } => Some(session),
            _ => None,
        }
    }

    /// What was decided, where it is a decision.
    pub fn decision(&self) -> Option<Decision> {
        match self {
            Self::AdminAction(action) => Some(action.decision),
            Self::ServerLaunchRefused(_)
            | Self::RefusalSummaryOpened(_)
            | Self::RefusalsSummarized(_) => Some(Decision::Refused),
            Self::EgressConnecting(_) => Some(Decision::Allowed),
            Self::EgressClosed(reached) if reached.end == EgressEnd::Refused => {
                Some(Decision::Refused)
            }
            Self::ApprovalDecided { allowed: true, .. } => Some(Decision::Allowed),
            Self::ApprovalDecided { allowed: false, .. } => Some(Decision::Refused),
            _ => None,
        }
    }

    /// Cuts the lists of what an operator wrote, who may have written much.
    pub(super) fn shorten(&mut self, most: usize) {
        match self {
            Self::ConfigLoaded { chain: list, .. }
            | Self::PolicyLoaded { keeping: list, .. }
            | Self::PluginHttpSent { requests: list, .. }
            | Self::ApprovalRequested { rules: list, .. }
            | Self::ClientAdded { groups: list, .. } => list.truncate(most),
            Self::ConfigReloaded { added, changed, removed, waiting, .. } => {
                [added, changed, removed, waiting].into_iter().for_each(|list| list.truncate(most));
            }
            Self::ServerLaunching(launching) => {
                launching.deviations.truncate(most);
                launching.signers.truncate(most);
                launching.attested.truncate(most);
                launching.rules.truncate(most);
            }
            Self::ServerLaunched(launched) => launched.deviations.truncate(most),
            Self::EgressConnecting(reaching) => reaching.rules.truncate(most),
            Self::EgressClosed(reached) => reached.rules.truncate(most),
            Self::SecretsDelivered { secrets, .. } => secrets.truncate(most),
            Self::SecretsStale { secrets, .. } => secrets.truncate(most),
            Self::OrphansRemoving(behind) | Self::OrphansRemoved(behind) => {
                behind.left.truncate(most);
            }
            _ => {}
        }
    }

    /// Shows every text that is not a word of these types.
    pub(super) fn texts(&mut self, mut change: impl FnMut(&mut String)) {
        match self {
            Self::ProxyStarted { version, dry_run: _ } => change(version),
            Self::ProxyStartFailed { version, reason } => {
                change(version);
                change(reason);
            }
            Self::ProxyStopped { reason } => reason.iter_mut().for_each(change),
            Self::ConfigLoaded { file, revision, servers: _, chain } => {
                change(file);
                change(revision);
                chain.iter_mut().for_each(change);
            }
            Self::PolicyLoaded { revision, keeping, bundle, .. } => {
                std::iter::once(revision).chain(bundle).chain(keeping).for_each(change);
            }
            Self::ConfigReloaded {
                file,
                revision,
                servers: _,
                added,
                changed,
                removed,
                waiting,
            } => {
                let lists = [added, changed, removed, waiting].into_iter().flatten();
                [file, revision].into_iter().chain(lists).for_each(change);
            }
            Self::ConfigRejected { file, reason } => {
                [file, reason].into_iter().for_each(change);
            }
            Self::PolicyRejected { reason } => change(reason),
            Self::PluginLoaded(loaded) => {
                let PluginLoaded { plugin, file, digest, manifest, grants, signed_by, .. } = loaded;
                let all = [plugin, file, digest, manifest].into_iter().chain(grants);
                all.chain(signed_by).for_each(change);
            }
            Self::PluginRefused { plugin, file, reason } => {
                [plugin, file, reason].into_iter().for_each(change);
            }
            Self::PluginHttpSent { plugin, call: _, requests } => {
                std::iter::once(plugin).chain(requests).for_each(change);
            }
            Self::ClientSeen(who) => who.texts(change),
            Self::SessionOpened(SessionOpened { session, who, revision, client_info }) => {
                [session, revision].into_iter().chain(client_info).for_each(&mut change);
                who.texts(change);
            }
            Self::SessionEnded { session, principal, requests: _, reason } => {
                [session, principal, reason].into_iter().for_each(change);
            }
            Self::ServerLaunching(Launching {
                launch: _,
                server,
                kind: _,
                program,
                digest,
                deviations,
                signers,
                attested,
                principal,
                rules,
                policy_revision,
            }) => {
                let named = [server, program, policy_revision];
                named
                    .into_iter()
                    .chain(digest)
                    .chain(deviations)
                    .chain(signers)
                    .chain(attested.iter_mut().flat_map(|one| [&mut one.by, &mut one.of_type]))
                    .chain(principal)
                    .for_each(&mut change);
                texts_of(rules, change);
            }
            Self::ServerLaunchRefused(LaunchRefused {
                launch: _,
                server,
                kind: _,
                principal,
                action,
                target,
                rules,
                policy_revision,
            }) => {
                let named = [server, action, target, policy_revision];
                named.into_iter().chain(principal).for_each(&mut change);
                texts_of(rules, change);
            }
            Self::ImageResolved(ImageResolved { launch: _, server, image, digest }) => {
                [server, image, digest].into_iter().for_each(change);
            }
            Self::ImageLocked(ImageLocked { server, image, digest, was, by }) => {
                let more = was.iter_mut().chain(&mut by.user);
                [server, image, digest].into_iter().chain(more).for_each(change);
            }
            Self::ImageLockFailed(ImageLockFailed { server, image, digest, reason, by }) => {
                [server, image, digest, reason].into_iter().chain(&mut by.user).for_each(change);
            }
            Self::ImagePulling(ImagePulling { server, image, digest, by }) => {
                [server, image, digest].into_iter().chain(&mut by.user).for_each(change);
            }
            Self::ImagePulled(ImagePulled {
                launch: _,
                server,
                image,
                digest,
                platform,
                size: _,
                took_us: _,
                by: ByHand { uid: _, user },
            }) => {
                [server, image, digest, platform].into_iter().chain(user).for_each(change);
            }
            Self::ImagePullFailed(ImagePullFailed {
                launch: _,
                server,
                image,
                digest,
                reason,
                by: ByHand { uid: _, user },
            }) => [server, image, digest, reason].into_iter().chain(user).for_each(change),
            Self::ServerLaunched(launched) => launched.texts(change),
            Self::ServerLaunchFailed { launch: _, server, kind: _, principal, reason } => {
                [server, reason].into_iter().chain(principal).for_each(change);
            }
            Self::ServerStopped(stopped) => {
                let Stopped {
                    launch: _,
                    server,
                    place,
                    principal,
                    reason,
                    exit_code: _,
                    exit_reason,
                } = stopped;
                let more = principal.iter_mut().chain(exit_reason);
                [server, place, reason].into_iter().chain(more).for_each(change);
            }
            Self::OrphansRemoving(behind) | Self::OrphansRemoved(behind) => {
                let LeftBehind { left, by: ByHand { uid: _, user } } = behind;
                let texts = left.iter_mut().flat_map(|Orphan { kind: _, name, server, error }| {
                    std::iter::once(name).chain(server).chain(error)
                });
                texts.chain(user).for_each(change);
            }
            Self::EgressOpened(Egress { server, principal, url, protocol, .. }) => {
                [server, url, protocol].into_iter().chain(principal).for_each(change);
            }
            Self::EgressConnecting(reaching) => {
                let EgressConnecting {
                    server,
                    principal,
                    host,
                    protocol,
                    rules,
                    policy_revision,
                    ..
                } = reaching;
                let named = [server, host, protocol, policy_revision];
                named.into_iter().chain(principal).for_each(&mut change);
                texts_of(rules, change);
            }
            Self::EgressClosed(reached) => {
                let EgressClosed {
                    launch: _,
                    server,
                    principal,
                    connection: _,
                    host,
                    port: _,
                    protocol,
                    address,
                    up: _,
                    down: _,
                    took_us: _,
                    end: _,
                    code,
                    reason,
                    rules,
                    policy_revision,
                } = &mut **reached;
                let more = principal.iter_mut().chain(host).chain(protocol).chain(address);
                let more = more.chain(code).chain(reason).chain(policy_revision);
                std::iter::once(server).chain(more).for_each(&mut change);
                texts_of(rules, change);
            }
            Self::SecretsDelivered { launch: _, server, principal, secrets } => {
                let names = secrets.iter_mut().map(|handed| &mut handed.secret);
                std::iter::once(server).chain(principal).chain(names).for_each(change);
            }
            Self::SecretUnresolved { server, secret, source: _, principal, kept: _, reason } => {
                [server, secret, reason].into_iter().chain(principal).for_each(change);
            }
            Self::SecretsStale { launch: _, server, principal, secrets } => {
                std::iter::once(server).chain(principal).chain(secrets).for_each(change);
            }
            Self::MessagesDropped(Dropped { server, principal, .. }) => {
                std::iter::once(server).chain(principal).for_each(change);
            }
            Self::ApprovalRequested { call: _, principal, server, rules, until: _, webhook } => {
                let all = std::iter::once(principal).chain(server).chain(webhook).chain(rules);
                all.for_each(change);
            }
            Self::ApprovalWebhookFailed { call: _, principal, server, reason } => {
                [principal, reason].into_iter().chain(server).for_each(change);
            }
            Self::ApprovalDecided { call: _, principal, server, allowed: _, by, reason } => {
                [principal, by].into_iter().chain(server).chain(reason).for_each(change);
            }
            Self::ClientAdded { client, key_id, groups, by: By { uid: _, user, reason } } => {
                let more = groups.iter_mut().chain(user).chain(reason);
                [client, key_id].into_iter().chain(more).for_each(change);
            }
            Self::ClientRemoved { client, key_id, by: By { uid: _, user, reason } } => {
                [client, key_id].into_iter().chain(user).chain(reason).for_each(change);
            }
            Self::AdminAction(AdminAction { user, verb, target, code, .. }) => {
                user.iter_mut().chain([verb]).chain(target).chain(code).for_each(change);
            }
            Self::RecordsLost { reason, .. } => reason.iter_mut().for_each(change),
            Self::RefusalSummaryOpened(group)
            | Self::RefusalsSummarized(SummarizedRefusals { group, count: _, since: _ }) => {
                let RefusalGroup { code, principal, server, network, others: _ } = group;
                let more = principal.iter_mut().chain(server).chain(network);
                std::iter::once(code).chain(more).for_each(change);
            }
            Self::RecordsDropped { .. } => {}
            Self::SegmentDropped { reason: one, .. }
            | Self::KeyRotated { key_id: one }
            | Self::StoreBackedUp { to: one, .. } => change(one),
        }
    }
}

impl Who {
    fn texts(&mut self, change: impl FnMut(&mut String)) {
        let Self { principal, groups, key_id, .. } = self;
        std::iter::once(principal).chain(groups).chain(key_id).for_each(change);
    }
}

impl Launched {
    fn texts(&mut self, change: impl FnMut(&mut String)) {
        let Self {
            launch: _,
            server,
            kind: _,
            place,
            reason,
            program,
            image_ref,
            image,
            profile,
            deviations,
            egress_tried: _,
            principal,
            era: _,
            revision,
            server_info,
            took_us: _,
        } = self;
        [server, place, reason, revision]
            .into_iter()
            .chain(program)
            .chain(image_ref)
            .chain(image)
            .chain(profile)
            .chain(deviations)
            .chain(principal)
            .chain(server_info)
            .for_each(change);
    }
}

/// Rules are operators' words, but a file's name is whatever they have.
fn texts_of(rules: &mut [Rule], change: impl FnMut(&mut String)) {
    let texts = rules.iter_mut().flat_map(|rule| {
        std::iter::once(&mut rule.id).chain(&mut rule.file).chain(&mut rule.reason)
    });
    texts.for_each(change);
}
