//! Events of servers' starts, image pulls and secret deliveries.

use portcullis_audit::record::{
    CommandUser, DeliveredSecret, DeliveryKind, EgressOpened, Event, ImageAction, ImageEvent,
    ImageResolved, RuntimeKind, SecretSource, SecretsDelivered, ServerLaunchRefused,
    ServerLaunched, ServerLaunching, bare_uri, era, micros, rule,
};
use portcullis_protocol::{identity::PrincipalKind, names::ServerName, refusal};
use portcullis_runtime::process::Origin;
use portcullis_upstream::{
    DeliveryMethod, Placement, SecretDelivery, Started,
    images::{ImageError, Pulled},
};
use portcullis_vault::Source;

/// The event of a server's start.
pub(crate) fn launched(server: &ServerName, started: Started) -> ServerLaunched {
    let Started { launch, placement, process, origin, party, revision, server_info, took } =
        started;
    let Origin { program, image_ref, image, profile, deviations, egress_tried } = origin;
    ServerLaunched {
        launch,
        server: server.to_string(),
        kind: kind(&placement),
        reason: match &placement {
            Placement::Remote { .. } => "the config names a URL".to_owned(),
            Placement::Container { why } | Placement::Sandbox { why } => why.clone(),
        },
        place: match &placement {
            Placement::Remote { url } => url.clone(),
            Placement::Container { .. } | Placement::Sandbox { .. } => process,
        },
        program,
        image_ref,
        image,
        profile,
        deviations,
        egress_tried,
        principal: party.as_ref().map(PrincipalKind::name),
        era: era(revision),
        revision: revision.to_string(),
        server_info,
        took_us: micros(took),
    }
}

/// The events that are recorded before a server is started.
pub(crate) fn launching(
    server: &ServerName,
    launching: &portcullis_upstream::LaunchRequest,
    rules: &[refusal::Rule],
    revision: &str,
) -> Vec<Event> {
    let portcullis_upstream::LaunchRequest {
        launch,
        placement,
        program,
        party,
        connecting,
        deliveries,
        resolved,
    } = launching;
    let (launch, server) = (*launch, server.to_string());
    let principal = party.as_ref().map(PrincipalKind::name);
    let found_out = resolved.as_ref().map(|(image, digest)| {
        let (server, image, digest) = (server.clone(), image.clone(), digest.clone());
        ImageResolved { launch, server, image, digest }.into()
    });
    let mut all: Vec<Event> = found_out.into_iter().collect();
    let starting = ServerLaunching {
        launch,
        server: server.clone(),
        kind: kind(placement),
        program: match placement {
            Placement::Remote { url } => url.clone(),
            Placement::Container { .. } | Placement::Sandbox { .. } => bare_uri(&program.name),
        },
        digest: program.digest.clone(),
        deviations: program.deviations.iter().map(|key| (*key).to_owned()).collect(),
        signers: program.signed.signers.clone(),
        attested: program.signed.attested.clone(),
        principal: principal.clone(),
        rules: rules.iter().map(rule).collect(),
        policy_revision: revision.to_owned(),
    };
    all.push(starting.into());
    all.extend(connecting.as_ref().map(|remote| {
        Event::from(EgressOpened {
            launch,
            server: server.clone(),
            principal: principal.clone(),
            encrypted: remote.url.starts_with("https://"),
            url: remote.url.clone(),
            protocol: remote.protocol.to_owned(),
        })
    }));
    if !deliveries.is_empty() {
        let secrets = deliveries.iter().map(recorded).collect();
        all.push(SecretsDelivered { launch, server, principal, secrets }.into());
    }
    all
}

/// The event of a finished image pull.
pub(crate) fn pulled(server: &ServerName, pulling: portcullis_upstream::Pulling) -> Event {
    let portcullis_upstream::Pulling { launch, image, digest, outcome } = pulling;
    let what = pull_outcome(outcome);
    ImageEvent { server: server.clone(), image, digest, what }
        .on_record(Some(launch), CommandUser::default())
}

/// The outcome of a pull, as in records.
pub fn pull_outcome(outcome: Result<Pulled, ImageError>) -> ImageAction {
    match outcome {
        Ok(Pulled { platform, size, took }) => {
            ImageAction::Pulled { platform, size, took_us: micros(took) }
        }
        Err(failed) => ImageAction::NotPulled { reason: failed.to_string() },
    }
}

/// The event before a running server gets new values of secrets in files.
pub(crate) fn redelivered(
    server: &ServerName,
    launching: &portcullis_upstream::LaunchRequest,
    secrets: &[String],
) -> SecretsDelivered {
    let files = launching.deliveries.iter().filter(|delivery| {
        delivery.by == DeliveryMethod::File && secrets.contains(&delivery.secret)
    });
    SecretsDelivered {
        launch: launching.launch,
        server: server.to_string(),
        principal: launching.party.as_ref().map(PrincipalKind::name),
        secrets: files.map(recorded).collect(),
    }
}

/// The event of a start that policies refuse: the refused action and its target.
pub(crate) fn launch_refused(
    server: &ServerName,
    launching: &portcullis_upstream::LaunchRequest,
    (action, target): (&str, &str),
    rules: &[refusal::Rule],
    revision: &str,
) -> ServerLaunchRefused {
    ServerLaunchRefused {
        launch: launching.launch,
        server: server.to_string(),
        kind: kind(&launching.placement),
        principal: launching.party.as_ref().map(PrincipalKind::name),
        action: action.to_owned(),
        target: bare_uri(target),
        rules: rules.iter().map(rule).collect(),
        policy_revision: revision.to_owned(),
    }
}

/// The source of a secret, as in records.
pub(crate) fn source(source: &Source) -> SecretSource {
    match source {
        Source::Env(_) => SecretSource::Env,
        Source::File(_) => SecretSource::File,
        Source::Dotenv { .. } => SecretSource::Dotenv,
        Source::Keyring { .. } => SecretSource::Keyring,
        Source::Keyctl(_) => SecretSource::Keyctl,
        Source::DockerPass(_) => SecretSource::DockerPass,
        Source::DockerCredential { .. } => SecretSource::DockerCredential,
        Source::Vault { .. } => SecretSource::Vault,
        Source::Age { .. } => SecretSource::Age,
    }
}

/// The runtime of a server, as in records.
pub(crate) fn kind(placement: &Placement) -> RuntimeKind {
    match placement {
        Placement::Container { .. } => RuntimeKind::Container,
        Placement::Sandbox { .. } => RuntimeKind::Sandbox,
        Placement::Remote { .. } => RuntimeKind::Remote,
    }
}

fn recorded(delivery: &SecretDelivery) -> DeliveredSecret {
    DeliveredSecret {
        secret: delivery.secret.clone(),
        source: source(&delivery.source),
        by: match delivery.by {
            DeliveryMethod::Environment => DeliveryKind::Environment,
            DeliveryMethod::File => DeliveryKind::File,
            DeliveryMethod::Header => DeliveryKind::Header,
        },
        own: delivery.client.is_some(),
    }
}
