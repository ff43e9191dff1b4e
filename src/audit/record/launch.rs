//! Events made of what becomes of servers.

use super::{
    HandedBy, Launched, PlaceKind, SecretHanded, SecretSource,
    bounds::bare_uri,
    build::{era, micros},
};
use crate::{
    identity::PrincipalKind,
    names::ServerName,
    upstream::{Handing, Place, Started, process::Origin},
    vault::Source,
};

impl Launched {
    /// This start of a server.
    pub fn of(server: &ServerName, started: Started) -> Self {
        let Started { place, process, origin, party, revision, claims, took } = started;
        let Origin { program, image_ref, image, profile, deviations } = origin;
        Self {
            server: server.to_string(),
            kind: (&place).into(),
            why: match &place {
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
            claims,
            took_us: micros(took),
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
        }
    }
}

impl From<&Handing> for SecretHanded {
    fn from(handing: &Handing) -> Self {
        Self {
            secret: handing.secret.clone(),
            source: (&handing.source).into(),
            by: if handing.header { HandedBy::Header } else { HandedBy::Environment },
        }
    }
}
