//! Events made of what becomes of servers.

use super::{
    Egress, HandedBy, Happening, Imaged, LaunchRefused, Launched, Launching, PlaceKind,
    SecretHanded, SecretSource,
    bounds::bare_uri,
    build::{era, micros, rule},
};
use crate::{
    identity::PrincipalKind,
    names::ServerName,
    refusal,
    upstream::{self, By, Handing, Place, Started, process::Origin},
    vault::Source,
};

impl Launched {
    /// This start of a server.
    pub fn of(server: &ServerName, started: Started) -> Self {
        let Started { launch, place, process, origin, party, revision, server_info, took } =
            started;
        let Origin { program, image_ref, image, profile, deviations } = origin;
        Self {
            launch,
            server: server.to_string(),
            kind: (&place).into(),
            reason: match &place {
                Place::Remote { .. } => "the config names a URL".to_owned(),
                Place::Container { why } | Place::Sandbox { why } => why.clone(),
            },
            place: match &place {
                Place::Remote { url } => bare_uri(url),
                Place::Container { .. } | Place::Sandbox { .. } => process,
            },
            program,
            image_ref,
            image,
            profile,
            deviations,
            principal: party.as_ref().map(PrincipalKind::name),
            era: era(revision),
            revision: revision.to_string(),
            server_info,
            took_us: micros(took),
        }
    }
}

impl Happening {
    /// All that is on record of a start of a server before it is made.
    pub fn launching(
        server: &ServerName,
        launching: &upstream::Launching,
        rules: &[refusal::Rule],
        revision: &str,
    ) -> Vec<Self> {
        let upstream::Launching { launch, place, program, party, way, handing, resolved } =
            launching;
        let (launch, server) = (*launch, server.to_string());
        let principal = party.as_ref().map(PrincipalKind::name);
        let found_out = resolved.as_ref().map(|(image, digest)| {
            Self::ImageResolved(Imaged {
                launch,
                server: server.clone(),
                image: image.clone(),
                digest: digest.clone(),
                platform: None,
                size: None,
                took_us: None,
                reason: None,
            })
        });
        let mut all: Vec<Self> = found_out.into_iter().collect();
        all.push(Self::ServerLaunching(Launching {
            launch,
            server: server.clone(),
            kind: place.into(),
            program: bare_uri(&program.name),
            digest: program.digest.clone(),
            deviations: program.deviations.iter().map(|key| (*key).to_owned()).collect(),
            signers: program.signed.signers.clone(),
            attested: program.signed.attested.clone(),
            principal: principal.clone(),
            rules: rules.iter().map(rule).collect(),
            policy_revision: revision.to_owned(),
        }));
        all.extend(way.as_ref().map(|way| {
            Self::EgressOpened(Egress {
                launch,
                server: server.clone(),
                principal: principal.clone(),
                encrypted: way.url.starts_with("https://"),
                url: bare_uri(&way.url),
                protocol: way.protocol.to_owned(),
            })
        }));
        if !handing.is_empty() {
            let secrets = handing.iter().map(SecretHanded::from).collect();
            all.push(Self::SecretsHanded { launch, server, principal, secrets });
        }
        all
    }

    /// What became of the pull of an image.
    pub fn pulled(server: &ServerName, pulling: upstream::Pulling) -> Self {
        let upstream::Pulling { launch, image, digest, outcome } = pulling;
        let (pulled, reason) = match outcome {
            Ok(pulled) => (Some(pulled), None),
            Err(failed) => (None, Some(failed.to_string())),
        };
        let imaged = Imaged {
            launch,
            server: server.to_string(),
            image,
            digest,
            platform: pulled.as_ref().map(|pulled| pulled.platform.clone()),
            size: pulled.as_ref().map(|pulled| pulled.size),
            took_us: pulled.as_ref().map(|pulled| micros(pulled.took)),
            reason,
        };
        if pulled.is_some() { Self::ImagePulled(imaged) } else { Self::ImagePullFailed(imaged) }
    }

    /// What is on record before a server that runs is handed its files of secrets again.
    pub fn handed_again(server: &ServerName, launching: &upstream::Launching) -> Self {
        let files = launching.handing.iter().filter(|handing| handing.by == By::File);
        Self::SecretsHanded {
            launch: launching.launch,
            server: server.to_string(),
            principal: launching.party.as_ref().map(PrincipalKind::name),
            secrets: files.map(SecretHanded::from).collect(),
        }
    }

    /// What is on record where policies do not permit what a start takes: an action, and of what.
    pub fn launch_refused(
        server: &ServerName,
        launching: &upstream::Launching,
        (action, target): (&str, &str),
        rules: &[refusal::Rule],
        revision: &str,
    ) -> Self {
        Self::ServerLaunchRefused(LaunchRefused {
            launch: launching.launch,
            server: server.to_string(),
            kind: (&launching.place).into(),
            principal: launching.party.as_ref().map(PrincipalKind::name),
            action: action.to_owned(),
            target: bare_uri(target),
            rules: rules.iter().map(rule).collect(),
            policy_revision: revision.to_owned(),
        })
    }
}

impl From<&Place> for PlaceKind {
    fn from(place: &Place) -> Self {
        match place {
            Place::Container { .. } => Self::Container,
            Place::Sandbox { .. } => Self::Sandbox,
            Place::Remote { .. } => Self::Remote,
        }
    }
}

impl From<&Source> for SecretSource {
    fn from(source: &Source) -> Self {
        match source {
            Source::Env(_) => Self::Env,
            Source::File(_) => Self::File,
            Source::Dotenv { .. } => Self::Dotenv,
            Source::Keyring { .. } => Self::Keyring,
            Source::Keyctl(_) => Self::Keyctl,
            Source::DockerPass(_) => Self::DockerPass,
            Source::DockerCredential { .. } => Self::DockerCredential,
            Source::Vault { .. } => Self::Vault,
            Source::Age { .. } => Self::Age,
        }
    }
}

impl From<&Handing> for SecretHanded {
    fn from(handing: &Handing) -> Self {
        Self {
            secret: handing.secret.clone(),
            source: (&handing.source).into(),
            by: match handing.by {
                By::Environment => HandedBy::Environment,
                By::File => HandedBy::File,
                By::Header => HandedBy::Header,
            },
        }
    }
}
