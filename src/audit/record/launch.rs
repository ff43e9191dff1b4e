//! Events made of what becomes of servers.

use serde::{Deserialize, Serialize};

use super::{
    ByHand, Egress, HandedBy, Happening, ImageLockFailed, ImageLocked, ImagePullFailed,
    ImagePulled, ImagePulling, ImageResolved, LaunchRefused, Launched, Launching, LeftBehind,
    PlaceKind, SecretHanded, SecretSource,
    bounds::bare_uri,
    build::{era, micros, rule},
};
use crate::{
    identity::PrincipalKind,
    names::{DecisionId, ServerName},
    refusal,
    upstream::{
        self, By, Handing, Left, Place, Started,
        images::{Failed, Pulled},
        process::Origin,
    },
    vault::Source,
};

impl Launched {
    /// This start of a server.
    pub fn of(server: &ServerName, started: Started) -> Self {
        let Started { launch, place, process, origin, party, revision, server_info, took } =
            started;
        let Origin { program, image_ref, image, profile, deviations, egress_tried } = origin;
        Self {
            launch,
            server: server.to_string(),
            kind: (&place).into(),
            reason: match &place {
                Place::Remote { .. } => "the config names a URL".to_owned(),
                Place::Container { why } | Place::Sandbox { why } => why.clone(),
            },
            place: match &place {
                Place::Remote { url } => url.clone(),
                Place::Container { .. } | Place::Sandbox { .. } => process,
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
            let (server, image, digest) = (server.clone(), image.clone(), digest.clone());
            Self::ImageResolved(ImageResolved { launch, server, image, digest })
        });
        let mut all: Vec<Self> = found_out.into_iter().collect();
        all.push(Self::ServerLaunching(Launching {
            launch,
            server: server.clone(),
            kind: place.into(),
            program: match place {
                Place::Remote { url } => url.clone(),
                Place::Container { .. } | Place::Sandbox { .. } => bare_uri(&program.name),
            },
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
                url: way.url.clone(),
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
        let what = ImageDid::of(outcome);
        ImageDone { server: server.clone(), image, digest, what }
            .on_record(Some(launch), ByHand::default())
    }

    /// What is on record before a server that runs is handed secrets again that it has as files.
    pub fn handed_again(
        server: &ServerName,
        launching: &upstream::Launching,
        secrets: &[String],
    ) -> Self {
        let files = launching
            .handing
            .iter()
            .filter(|handing| handing.by == By::File && secrets.contains(&handing.secret));
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

/// What was done, or is about to be, with the image of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageDone {
    /// Whose image it is.
    pub server: ServerName,
    /// As the config has it.
    pub image: String,
    /// `sha256:…`
    pub digest: String,
    /// What was done with it.
    pub what: ImageDid,
}

/// What is done with an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum ImageDid {
    /// It is locked.
    Locked {
        /// What was locked before.
        was: Option<String>,
    },
    /// It is on record as locked, and was not.
    NotLocked {
        /// Why.
        reason: String,
    },
    /// The engine is to pull it.
    Pulling,
    /// The engine pulled it.
    Pulled {
        /// What it is for.
        platform: String,
        /// Its bytes.
        size: u64,
        /// Microseconds that this took.
        took_us: u64,
    },
    /// The engine did not.
    NotPulled {
        /// Why.
        reason: String,
    },
}

impl ImageDid {
    /// What came of a pull.
    pub fn of(outcome: Result<Pulled, Failed>) -> Self {
        match outcome {
            Ok(Pulled { platform, size, took }) => {
                Self::Pulled { platform, size, took_us: micros(took) }
            }
            Err(failed) => Self::NotPulled { reason: failed.to_string() },
        }
    }
}

impl ImageDone {
    /// It as somebody did it at the command line.
    pub fn by(self, by: ByHand) -> Happening {
        self.on_record(None, by)
    }

    fn on_record(self, launch: Option<DecisionId>, by: ByHand) -> Happening {
        let Self { server, image, digest, what } = self;
        let server = server.to_string();
        match what {
            ImageDid::Locked { was } => {
                Happening::ImageLocked(ImageLocked { server, image, digest, was, by })
            }
            ImageDid::NotLocked { reason } => {
                Happening::ImageLockFailed(ImageLockFailed { server, image, digest, reason, by })
            }
            ImageDid::Pulling => {
                Happening::ImagePulling(ImagePulling { server, image, digest, by })
            }
            ImageDid::Pulled { platform, size, took_us } => Happening::ImagePulled(ImagePulled {
                launch,
                server,
                image,
                digest,
                platform,
                size,
                took_us,
                by,
            }),
            ImageDid::NotPulled { reason } => Happening::ImagePullFailed(ImagePullFailed {
                launch,
                server,
                image,
                digest,
                reason,
                by,
            }),
        }
    }
}

/// What somebody removes at the command line of what proxies have left that are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reaping {
    /// At most [`MEMBERS`](super::MEMBERS).
    pub left: Vec<Left>,
    /// Whether it was done; else it is about to be.
    pub done: bool,
}

impl Reaping {
    /// It as that person's.
    pub fn by(self, by: ByHand) -> Happening {
        let Self { left, done } = self;
        let behind = LeftBehind { left, by };
        match done {
            true => Happening::LeftoversRemoved(behind),
            false => Happening::LeftoversRemoving(behind),
        }
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
            own: handing.client.is_some(),
        }
    }
}
