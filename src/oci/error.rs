//! Errors of registry requests, for the operator.

use std::{error::Error as Fault, fmt, io, time::Duration};

use rustls::{CertificateError, Error as Tls};

use super::{Digest, reference::IllegalReference};

/// Limit in bytes for the causes of an error.
const MAX_CAUSE_BYTES: usize = 512;

/// Contacted host, as errors name it. The name of a host that a registry redirects to is the
/// registry's choice and could contain a login, so it is not shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContactedHost {
    /// Host named by the operator.
    Named(String),
    /// Host that this host redirects to.
    RedirectTarget {
        /// Host named by the operator.
        by: String,
    },
}

impl fmt::Display for ContactedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(host) => write!(f, "`{host}`"),
            Self::RedirectTarget { by } => write!(f, "a host that `{by}` redirects to"),
        }
    }
}

impl From<&str> for ContactedHost {
    fn from(host: &str) -> Self {
        Self::Named(host.to_owned())
    }
}

/// Failure to pull, push or list an artifact. No text contains a login, a token, or a registry's
/// text, which could repeat them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reference is invalid.
    #[error("`{text}` is not a reference to an artifact: {why}")]
    Reference {
        /// Text as written.
        text: String,
        /// Cause.
        why: IllegalReference,
    },
    /// The reference has no digest, so its target could change.
    #[error("`{0}` is not pinned: it has no digest")]
    Unpinned(String),
    /// The reference has no tag, which a push needs.
    #[error("`{0}` has no tag to push to")]
    Untagged(String),
    /// The registry is unreachable, or closed the connection.
    #[error("{host} does not answer: {why}")]
    Unreachable {
        /// Contacted host.
        host: ContactedHost,
        /// Cause, without addresses or the registry's text.
        why: String,
    },
    /// The registry did not answer in time.
    #[error("{host} did not finish within {within:?}")]
    Late {
        /// Contacted host.
        host: ContactedHost,
        /// Time limit.
        within: Duration,
    },
    /// The registry does not have the artifact.
    #[error("`{0}` is not in the registry, or not visible to you")]
    Missing(String),
    /// The registry requires a login, and none is configured.
    #[error("`{host}` requires a login, and none is configured")]
    NoLogin {
        /// Registry.
        host: String,
    },
    /// The registry refuses the login, or the login lacks the right.
    #[error("`{host}` does not permit you to {what}")]
    Denied {
        /// Registry.
        host: String,
        /// Refused action.
        what: &'static str,
        /// Whether a login was sent.
        with_login: bool,
    },
    /// The login cannot be read.
    #[error("the login for `{host}` cannot be read: {why}")]
    Login {
        /// Registry.
        host: String,
        /// Cause, without any part of the login.
        why: String,
    },
    /// The registry redirects to a place that is not allowed.
    #[error("{host}: request not allowed: {why}")]
    RedirectRefused {
        /// Contacted host.
        host: ContactedHost,
        /// Reason.
        why: &'static str,
    },
    /// The answer violates the protocol.
    #[error("{host} does not follow the protocol of registries: {why}")]
    Protocol {
        /// Contacted host.
        host: ContactedHost,
        /// Cause.
        why: String,
    },
    /// The registry answered with an error.
    #[error("{host} answered {status}{}", bracketed(.code))]
    Failed {
        /// Contacted host.
        host: ContactedHost,
        /// HTTP status.
        status: u16,
        /// Error code of the registry, if it is one of the specification's.
        code: Option<&'static str>,
    },
    /// The content does not match the digest.
    #[error("{what} does not match its digest: expected {expected}, got {actual}")]
    Digest {
        /// Manifest or blob.
        what: &'static str,
        /// Requested digest.
        expected: Digest,
        /// Digest of the received bytes.
        actual: Digest,
    },
    /// The content exceeds a limit.
    #[error("{what} is larger than {most} bytes")]
    TooLarge {
        /// Manifest, blob or answer.
        what: &'static str,
        /// Limit in bytes.
        most: u64,
    },
    /// The manifest is invalid, or not that of an artifact.
    #[error("`{reference}` is not an artifact: {why}")]
    NoArtifact {
        /// Artifact.
        reference: String,
        /// Cause.
        why: String,
    },
    /// The reference names an index of artifacts, one for each platform.
    #[error("`{0}` is a list of artifacts, one for each platform")]
    Index(String),
    /// The image is not available for this platform.
    #[error("`{reference}` is not available for {wanted}, only for: {there}")]
    Elsewhere {
        /// Image.
        reference: String,
        /// Requested platform.
        wanted: String,
        /// Available platforms.
        there: String,
    },
    /// Several images of the index match this platform.
    #[error(
        "`{reference}` lists several images for {wanted}, or names one ambiguously: it is not \
        clear which one would run"
    )]
    Ambiguous {
        /// Image.
        reference: String,
        /// Requested platform.
        wanted: String,
    },
    /// Stored content was changed.
    #[error("the stored content of {digest} in `{folder}` was changed")]
    Changed {
        /// Requested digest.
        digest: Digest,
        /// Folder of the store.
        folder: String,
    },
    /// The store cannot be read or written.
    #[error("pulled content cannot be stored in `{folder}`: {why}")]
    Store {
        /// Folder of the store.
        folder: String,
        /// Cause.
        why: std::io::Error,
    },
    /// The file of authorities is invalid.
    #[error("the certificates of authorities in `{file}` cannot be read: {why}")]
    Authorities {
        /// File.
        file: String,
        /// Cause.
        why: String,
    },
}

fn bracketed(code: &Option<&'static str>) -> String {
    code.map(|code| format!(" ({code})")).unwrap_or_default()
}

impl Error {
    /// Remedy.
    pub fn help(&self) -> String {
        match self {
            Self::Reference { .. } => {
                "write HOST/REPOSITORY:TAG or HOST/REPOSITORY@sha256:…".into()
            }
            Self::Unpinned(_) => "append its digest: REFERENCE@sha256:…".into(),
            Self::Untagged(_) => "write HOST/REPOSITORY:TAG".into(),
            Self::Unreachable { why, .. } if why.contains("certificate") => {
                "if your own authority signed its certificate, set the authority's file in \
                 `SSL_CERT_FILE`"
                    .into()
            }
            Self::Unreachable { .. } => {
                "check that the host is right and reachable; a registry without TLS is accepted on \
                 this machine only, or if the config names it"
                    .into()
            }
            Self::Late { .. } => "try again; if it fails again, check the network to the \
                host"
                .into(),
            Self::Missing(_) => {
                "check the name, and log in (`docker login HOST`) if it is private".into()
            }
            Self::NoLogin { host } => format!("log in with `docker login {host}`"),
            Self::Denied { host, with_login: false, .. } => {
                format!("log in with `docker login {host}`")
            }
            Self::Denied { .. } => "ask the registry's owner for the right, or log in again".into(),
            Self::Login { .. } => {
                "check `config.json` in `~/.docker` or `DOCKER_CONFIG`, and the helper that it \
                names"
                    .into()
            }
            Self::RedirectRefused { .. } => {
                "ask the registry's owner about the redirect; do not work \
                around it"
                    .into()
            }
            Self::Protocol { .. } => "check that the host is a registry".into(),
            Self::Failed { .. } => "try again; if it fails again, ask the registry's owner".into(),
            Self::Digest { .. } => {
                "it was changed in transit: do not use it, and ask the registry's owner".into()
            }
            Self::TooLarge { .. } => "check the reference: the content is larger than \
                expected"
                .into(),
            Self::NoArtifact { .. } => "check the reference".into(),
            Self::Index(_) => "use the digest of one artifact of the list".into(),
            Self::Elsewhere { .. } => {
                "use an image for this platform, or an engine on another platform".into()
            }
            Self::Ambiguous { .. } => {
                "use the digest of one image, and report the fault to the list's author".into()
            }
            Self::Changed { folder, .. } => {
                format!("find out who changed it, then remove `{folder}`; it will be pulled again")
            }
            Self::Store { .. } => "check that the folder belongs to the proxy and has free \
                space"
                .into(),
            Self::Authorities { .. } => "use a file of certificates in PEM".into(),
        }
    }
}

/// Error codes of the distribution specification. No other text of an answer is repeated.
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

/// First code of the specification in the body of an error answer.
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

/// Position and kind of an error in a registry's JSON. The parser's own text would repeat the
/// content.
pub(crate) fn json_fault(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    let what = match error.classify() {
        Category::Syntax | Category::Io => "it is not JSON",
        Category::Eof => "its JSON ends too early",
        Category::Data => "it is JSON of another form",
    };
    format!("{what}: line {}, column {}", error.line(), error.column())
}

/// Causes of an error, outermost first, without the URL: that of a redirect can contain a token.
pub(crate) fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = Vec::<String>::new();
    let mut cause: Option<&(dyn Fault + 'static)> = Some(&error);
    while let Some(one) = cause {
        let text = if is_of_other_names(one) {
            "its certificate is for other names".to_owned()
        } else {
            one.to_string()
        };
        if !words.iter().any(|word| word.contains(&text)) {
            words.push(text);
        }
        cause = one.source();
    }
    let mut words = words.join(": ");
    if words.len() > MAX_CAUSE_BYTES {
        words.truncate(words.floor_char_boundary(MAX_CAUSE_BYTES));
        words.push('…');
    }
    words
}

/// Whether this is the error that lists the requested and the presented names.
fn is_of_other_names(fault: &(dyn Fault + 'static)) -> bool {
    let inner = fault.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let tls = fault.downcast_ref::<Tls>().or_else(|| inner?.downcast_ref());
    matches!(tls, Some(Tls::InvalidCertificate(CertificateError::NotValidForNameContext { .. })))
}

/// Placeholder for text that is not shown.
pub(crate) struct Redacted;

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}
