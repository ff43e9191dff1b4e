//! Runtime of a server, and its program.

use super::image_signatures::SignedBy;

/// Runtime of a server, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// A container of an image, or of a packed program.
    Container {
        why: String,
    },
    Sandbox {
        why: String,
    },
    Remote {
        /// Origin of the URL, from [`origin`]: `https://mcp.example.com`.
        url: String,
    },
}

/// Scheme, host and port of a server's URL. The rest is not shown, because the path of a hosted
/// server's URL can be a key.
pub fn origin(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(url) => url.origin().ascii_serialization(),
        Err(_) => "a URL that cannot be read".to_owned(),
    }
}

impl Placement {
    /// Name of the runtime.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Container { .. } => "container",
            Self::Sandbox { .. } => "sandbox",
            Self::Remote { .. } => "remote",
        }
    }

    /// Reason for the runtime; for a remote server, its origin.
    pub fn why(&self) -> &str {
        match self {
            Self::Container { why } | Self::Sandbox { why } => why,
            Self::Remote { url } => url,
        }
    }
}

/// Program of a server.
#[derive(Debug)]
pub struct Program {
    /// Image as in the config, path of the program, or URL.
    pub name: String,
    /// Digest of the image in its registry, id of a local image, or digest of a local program's
    /// file.
    pub digest: Option<String>,
    /// Config keys that deviate from the hardened profile.
    pub deviations: Vec<&'static str>,
    /// Signers of the image.
    pub signed: SignedBy,
}

impl Program {
    /// The program for policies, with this runtime.
    pub fn for_policies(&self, placement: &Placement) -> portcullis_policy::Program {
        portcullis_policy::Program {
            runtime: placement.kind(),
            name: self.name.clone(),
            digest: self.digest.clone(),
            deviations: self.deviations.iter().map(|key| (*key).to_owned()).collect(),
            signers: self.signed.signers.clone(),
            attested: self.signed.attested.clone(),
        }
    }
}
