//! Where a server runs, and what runs there.

use super::image_signatures::SignedBy;

/// Where a server is to run, and why there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// In a container of an image, or of the packed program.
    Container {
        why: String,
    },
    Sandbox {
        why: String,
    },
    Remote {
        /// Where, without more: `https://mcp.example.com`, as [`origin`] has it.
        url: String,
    },
}

/// Scheme, host and port of a server's URL. The rest is not shown, because the path of a hosted server's URL
/// can be a key.
pub fn origin(url: &str) -> String {
    match reqwest::Url::parse(url) {
        Ok(url) => url.origin().ascii_serialization(),
        Err(_) => "a URL that cannot be read".to_owned(),
    }
}

impl Placement {
    /// The kind in one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Container { .. } => "container",
            Self::Sandbox { .. } => "sandbox",
            Self::Remote { .. } => "remote",
        }
    }

    /// Why there.
    pub fn why(&self) -> &str {
        match self {
            Self::Container { why } | Self::Sandbox { why } => why,
            Self::Remote { url } => url,
        }
    }
}

/// What is to run.
#[derive(Debug)]
pub struct Program {
    /// The image as the config has it, the program, or the URL.
    pub name: String,
    /// Of the image, in its registry, or its id where it is of none; of the program's file, where it is one of this
    /// machine.
    pub digest: Option<String>,
    /// The keys of the config by which it deviates from the hardened profile.
    pub deviations: Vec<&'static str>,
    /// Who signed the image.
    pub signed: SignedBy,
}

impl Program {
    /// It as policies see it, where it is to run there.
    pub fn for_policies(&self, place: &Placement) -> portcullis_policy::Program {
        portcullis_policy::Program {
            runtime: place.kind(),
            name: self.name.clone(),
            digest: self.digest.clone(),
            deviations: self.deviations.iter().map(|key| (*key).to_owned()).collect(),
            signers: self.signed.signers.clone(),
            attested: self.signed.attested.clone(),
        }
    }
}
