//! What goes wrong with registries, for the operator.

use std::{error::Error as Fault, fmt, io, time::Duration};

use rustls::{CertificateError, Error as Tls};

use super::{Digest, reference::IllegalReference};

/// Bytes of the causes of a fault.
const CAUSES: usize = 512;

/// Who was asked, as errors call it. The name of a host that a registry leads to is of the registry's
/// choice, and could be a login: it is not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The host that the operator named.
    Itself(String),
    /// One that this host leads to.
    LedTo {
        /// The host that the operator named.
        by: String,
    },
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself(host) => write!(f, "`{host}`"),
            Self::LedTo { by } => write!(f, "a host that `{by}` leads to"),
        }
    }
}

impl From<&str> for Asked {
    fn from(host: &str) -> Self {
        Self::Itself(host.to_owned())
    }
}

/// Why an artifact was not pulled, pushed or listed. No text holds a login, a token, or words of a
/// registry: it could repeat there what it was sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reference is none.
    #[error("`{text}` is not a reference to an artifact: {why}")]
    Reference {
        /// What was written.
        text: String,
        /// What is wrong with it.
        why: IllegalReference,
    },
    /// It has no digest, and what it names could change.
    #[error("`{0}` is not pinned: it has no digest")]
    Unpinned(String),
    /// It has no tag, which a push needs.
    #[error("`{0}` has no tag to push to")]
    Untagged(String),
    /// The registry could not be reached, or broke off.
    #[error("{host} does not answer: {why}")]
    Unreachable {
        /// The host asked.
        host: Asked,
        /// The fault, without addresses or words of the other side.
        why: String,
    },
    /// It was silent for too long, or slow for too long.
    #[error("{host} did not finish within {within:?}")]
    Late {
        /// The host asked.
        host: Asked,
        /// The time that it had.
        within: Duration,
    },
    /// It does not have it.
    #[error("`{0}` is not in the registry, or not shown to you")]
    Missing(String),
    /// It wants a login, and there is none.
    #[error("`{host}` wants a login, and there is none")]
    NoLogin {
        /// The registry.
        host: String,
    },
    /// It does not take the login, or the login may not do that.
    #[error("`{host}` does not let you {what}")]
    Denied {
        /// The registry.
        host: String,
        /// What was asked for.
        what: &'static str,
        /// Whether a login was sent.
        with_login: bool,
    },
    /// The logins could not be read.
    #[error("the login for `{host}` cannot be read: {why}")]
    Login {
        /// The registry.
        host: String,
        /// The fault, without any of the login.
        why: String,
    },
    /// It leads to where nobody should be sent.
    #[error("{host} leads elsewhere in a way that is not followed: {why}")]
    Astray {
        /// The host asked.
        host: Asked,
        /// Which way.
        why: &'static str,
    },
    /// It says something that the protocol does not have.
    #[error("{host} does not speak as a registry does: {why}")]
    Protocol {
        /// The host asked.
        host: Asked,
        /// What was wrong.
        why: String,
    },
    /// It answers with a fault.
    #[error("{host} answers {status}{}", bracketed(.code))]
    Failed {
        /// The host asked.
        host: Asked,
        /// The HTTP status.
        status: u16,
        /// The registry's code for it, if it is one of the specification's.
        code: Option<&'static str>,
    },
    /// The bytes are not those that the digest names.
    #[error("{what} is not what its digest says: {actual} came for {expected}")]
    Digest {
        /// Manifest or blob.
        what: &'static str,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// It is larger than it may be.
    #[error("{what} is larger than {most} bytes")]
    TooLarge {
        /// Manifest, blob or answer.
        what: &'static str,
        /// The bound.
        most: u64,
    },
    /// The manifest is none, or not one of an artifact.
    #[error("`{reference}` is not an artifact: {why}")]
    NoArtifact {
        /// The artifact.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
    /// It lists artifacts, one for each platform.
    #[error("`{0}` is a list of artifacts, one for each platform")]
    Index(String),
    /// There is none for this machine.
    #[error("`{reference}` is not available for {wanted}, only for: {there}")]
    Elsewhere {
        /// The image.
        reference: String,
        /// The platform asked for.
        wanted: String,
        /// Those that exist.
        there: String,
    },
    /// Several of those that it lists could be taken for this machine's.
    #[error(
        "`{reference}` lists several images for {wanted}, or names one ambiguously: which one runs cannot be determined"
    )]
    Ambiguous {
        /// The image.
        reference: String,
        /// The platform asked for.
        wanted: String,
    },
    /// What was kept is not what was put there.
    #[error("what is kept as {digest} in `{folder}` was changed")]
    Changed {
        /// What was asked for.
        digest: Digest,
        /// The folder of the store.
        folder: String,
    },
    /// The store could not be read or written.
    #[error("what was pulled cannot be kept in `{folder}`: {why}")]
    Store {
        /// The folder of the store.
        folder: String,
        /// The fault.
        why: std::io::Error,
    },
    /// The CA file is none.
    #[error("the certificates of authorities in `{file}` cannot be read: {why}")]
    Authorities {
        /// The file.
        file: String,
        /// The fault.
        why: String,
    },
}

fn bracketed(code: &Option<&'static str>) -> String {
    code.map(|code| format!(" ({code})")).unwrap_or_default()
}

impl Error {
    /// What to do about it.
    pub fn help(&self) -> String {
        match self {
            Self::Reference { .. } => "write HOST/REPOSITORY:TAG or HOST/REPOSITORY@sha256:…".into(),
            Self::Unpinned(_) => "write its digest behind it: REFERENCE@sha256:…".into(),
            Self::Untagged(_) => "write HOST/REPOSITORY:TAG".into(),
            Self::Unreachable { why, .. } if why.contains("certificate") => {
                "if its certificate is of an authority of your own, name that one's file in \
                 `SSL_CERT_FILE`"
                    .into()
            }
            Self::Unreachable { .. } => {
                "see that the host is right and can be reached; a registry without TLS is asked on \
                 this machine alone, unless it is named for that"
                    .into()
            }
            Self::Late { .. } => "try again; if it stays so, see what is between you and it".into(),
            Self::Missing(_) => {
                "see that the name is right, and log in (`docker login HOST`) if it is private".into()
            }
            Self::NoLogin { host } => format!("log in with `docker login {host}`"),
            Self::Denied { host, with_login: false, .. } => {
                format!("log in with `docker login {host}`")
            }
            Self::Denied { .. } => "ask the registry's owner for the right, or log in again".into(),
            Self::Login { .. } => {
                "see `config.json` in `~/.docker` or `DOCKER_CONFIG`, and the helper that it names"
                    .into()
            }
            Self::Astray { .. } => "ask the registry's owner why it does so; do not go around".into(),
            Self::Protocol { .. } => "see that the host is a registry".into(),
            Self::Failed { .. } => "try again; if it stays so, ask the registry's owner".into(),
            Self::Digest { .. } => {
                "something changed it on its way: do not use what came, and ask the registry's owner"
                    .into()
            }
            Self::TooLarge { .. } => "see that the reference is right: no such thing is so large".into(),
            Self::NoArtifact { .. } => "see that the reference is right".into(),
            Self::Index(_) => "name the digest of the one that you mean".into(),
            Self::Elsewhere { .. } => {
                "name an image for this platform, or use an engine of another".into()
            }
            Self::Ambiguous { .. } => {
                "name the digest of the image that you mean, and report the fault to the list's author".into()
            }
            Self::Changed { folder, .. } => format!(
                "find out who changed it; it is pulled again when you have removed `{folder}`"
            ),
            Self::Store { .. } => "see that the folder is the proxy's and has room".into(),
            Self::Authorities { .. } => "name a file of certificates in PEM".into(),
        }
    }
}

/// The codes of the distribution specification: no other word of an answer is repeated.
const CODES: [&str; 14] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
];

/// The first code of the specification in the body of a failed answer.
pub(crate) fn known_code(body: &[u8]) -> Option<&'static str> {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        code: String,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    let first = body.errors.into_iter().next()?;
    CODES.into_iter().find(|code| *code == first.code)
}

/// Where JSON of a registry is wrong, and in which way. The fault's own words repeat what is there.
pub(crate) fn json_fault(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    let what = match error.classify() {
        Category::Syntax | Category::Io => "it is no JSON",
        Category::Eof => "its JSON ends too early",
        Category::Data => "it is JSON of another shape",
    };
    format!("{what}: line {}, column {}", error.line(), error.column())
}

/// The causes of a fault, outermost first, without the URL: one of a redirect can hold a token.
pub(crate) fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = Vec::<String>::new();
    let mut cause: Option<&(dyn Fault + 'static)> = Some(&error);
    while let Some(one) = cause {
        let said = if is_of_other_names(one) {
            "its certificate is of other names".to_owned()
        } else {
            one.to_string()
        };
        if !words.iter().any(|word| word.contains(&said)) {
            words.push(said);
        }
        cause = one.source();
    }
    let mut words = words.join(": ");
    if words.len() > CAUSES {
        words.truncate(words.floor_char_boundary(CAUSES));
        words.push('…');
    }
    words
}

/// Whether this is the fault that lists the names which were asked for and shown.
fn is_of_other_names(fault: &(dyn Fault + 'static)) -> bool {
    let inner = fault.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let tls = fault.downcast_ref::<Tls>().or_else(|| inner?.downcast_ref());
    matches!(tls, Some(Tls::InvalidCertificate(CertificateError::NotValidForNameContext { .. })))
}

/// Stands for what is not shown.
pub(crate) struct Hidden;

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}
