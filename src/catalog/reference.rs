//! References to servers: `catalog://`, `docker://`, `https://`, `file://`, and plain paths.

use std::{fmt, path::PathBuf, str::FromStr};

use url::Url;

use crate::{report::brief, server::Image};

/// Location of a description of servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// Servers of a catalog: an added one, by name, or an artifact of a registry.
    Catalog { catalog: String, servers: Vec<String> },
    /// An image.
    Image(Image),
    /// A remote file.
    Url(Url),
    /// A local file.
    File(PathBuf),
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoReference {
    #[error("write `catalog://CATALOG/SERVER`, with `+` between several servers")]
    Catalog,
    #[error("{0}")]
    Image(String),
    #[error("`{}` is not a URL: {why}", brief(.url))]
    Url { url: String, why: String },
    #[error("this URL has a login in it, which would stand in the lock file: remove it")]
    Login,
    #[error("a file of another machine cannot be read: write `file:///PATH`")]
    Host,
    #[error("`{}` is not a reference: `catalog://`, `docker://`, `https://`, `file://` or a path", brief(.0))]
    Scheme(String),
    #[error(
        "say which servers: `catalog://CATALOG/SERVER`, `docker://IMAGE`, `https://…`, `file://…` or a path"
    )]
    Empty,
}

impl FromStr for Reference {
    type Err = NoReference;

    fn from_str(text: &str) -> Result<Self, NoReference> {
        if text.is_empty() || text.chars().any(char::is_control) || text.len() > 4_096 {
            return Err(NoReference::Empty);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::File(text.into()));
        };
        match scheme {
            "catalog" => {
                let (catalog, servers) = rest.rsplit_once('/').ok_or(NoReference::Catalog)?;
                let servers: Vec<String> = servers.split('+').map(str::to_owned).collect();
                let legal =
                    |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
                if !legal(catalog)
                    || !servers.iter().all(|server| legal(server))
                    || servers.len() > 100
                {
                    return Err(NoReference::Catalog);
                }
                Ok(Self::Catalog { catalog: catalog.to_owned(), servers })
            }
            "docker" => rest
                .parse()
                .map(Self::Image)
                .map_err(|error: crate::NoImage| NoReference::Image(error.to_string())),
            "https" | "http" => {
                let url = Url::parse(text).map_err(|error| NoReference::Url {
                    url: text.to_owned(),
                    why: error.to_string(),
                })?;
                if !url.username().is_empty() || url.password().is_some() {
                    return Err(NoReference::Login);
                }
                let loopback = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
                if scheme == "http" && !loopback {
                    let why = "what comes over plain HTTP can be changed on its way: use https";
                    return Err(NoReference::Url { url: text.to_owned(), why: why.to_owned() });
                }
                Ok(Self::Url(url))
            }
            "file" => match rest.split_once('/') {
                Some(("" | "localhost", path)) => Ok(Self::File(format!("/{path}").into())),
                // `file://./x.yaml`, which some people write.
                _ if rest.starts_with('.') => Ok(Self::File(rest.into())),
                _ => Err(NoReference::Host),
            },
            _ => Err(NoReference::Scheme(text.to_owned())),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalog { catalog, servers } => {
                write!(f, "catalog://{catalog}/{}", servers.join("+"))
            }
            Self::Image(image) => write!(f, "docker://{image}"),
            Self::Url(url) => f.write_str(url.as_str()),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_parsed_or_refused() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for text in [
            "catalog://team/github",
            "catalog://registry.example.com:5000/team/catalog:1/github+slack",
            "docker://mcp/fetch:1",
            &format!("docker://mcp/fetch@{digest}"),
            "https://registry.example.com/v0/servers/x",
            "http://127.0.0.1:9/x",
            "./server.yaml",
            "/srv/catalog.yaml",
            "catalog.json",
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
        assert_eq!("file:///srv/x.yaml".parse(), Ok(Reference::File("/srv/x.yaml".into())));
        assert_eq!("file://./x.yaml".parse(), Ok(Reference::File("./x.yaml".into())));
        for text in [
            "",
            "catalog://",
            "catalog://x",
            "catalog://x/",
            "catalog://x/a+",
            "docker://",
            "docker://-v",
            "http://example.com/x",
            "https://user:word@example.com/",
            "ftp://x/y",
            "file://host/x",
            "a\nb",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
