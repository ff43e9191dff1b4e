//! Allowed redirects of registries, and the names of their targets in errors.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderMap, header};
use portcullis_egress::is_public;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::{Error, error::ContactedHost, reference::is_loopback};

/// Origin of requests: a registry, or the host of a file.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub url: Url,
    /// Name that the operator uses.
    pub name: String,
    /// Whether its address is private, so that it may redirect to other private addresses.
    /// Determined from a connection to it, because it could answer DNS queries arbitrarily.
    pub private: bool,
}

impl Origin {
    pub fn is_at(&self, url: &Url) -> bool {
        self.url.origin() == url.origin()
    }

    /// Name of a URL's host in errors.
    pub fn contacted_host(&self, url: &Url) -> ContactedHost {
        match self.is_at(url) {
            true => ContactedHost::Named(self.name.clone()),
            false => ContactedHost::RedirectTarget { by: self.name.clone() },
        }
    }

    pub fn astray(&self, from: &Url, why: &'static str) -> Error {
        Error::RedirectRefused { host: self.contacted_host(from), why }
    }

    /// Target of a `Location` header.
    pub fn next(&self, from: &Url, headers: &HeaderMap) -> Result<Url, Error> {
        let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let to = location
            .and_then(|location| from.join(location).ok())
            .ok_or_else(|| self.astray(from, "redirect without a target"))?;
        self.follow(from, &to)?;
        Ok(to)
    }

    /// Whether to follow a redirect. The target must use TLS, unless the registry is contacted
    /// without; then it must be the same host, or this machine from this machine. The target's
    /// addresses are checked when connecting ([`PublicResolver`]).
    pub fn follow(&self, from: &Url, to: &Url) -> Result<(), Error> {
        let astray = |why| Err(self.astray(from, why));
        if !to.username().is_empty() || to.password().is_some() {
            return astray("redirect to a URL that contains a login");
        }
        match to.scheme() {
            "https" => {}
            "http" if self.url.scheme() == "http" => {
                if !(self.is_at(to) || is_local(&self.url) && is_local(to)) {
                    return astray("redirect to a host without TLS");
                }
            }
            "http" => return astray("redirect from TLS to plain HTTP"),
            _ => return astray("redirect to a scheme other than HTTP"),
        }
        let public = match to.host() {
            Some(Host::Ipv4(address)) => is_public(address.into()),
            Some(Host::Ipv6(address)) => is_public(address.into()),
            _ => true,
        };
        if public || self.private || self.is_at(to) { Ok(()) } else { astray(INWARD) }
    }
}

const INWARD: &str = "redirect from a public address to one that is not";

/// Whether a URL is on this machine.
pub(crate) fn is_local(url: &Url) -> bool {
    url.host_str().is_some_and(is_loopback)
}

/// Resolves names that a public registry redirects to, and returns only public addresses. The
/// connection uses exactly these addresses.
pub(crate) struct PublicResolver;

impl PublicResolver {
    pub fn resolver() -> Arc<Self> {
        Arc::new(Self)
    }

    /// Whether a request failed because no public address was found.
    pub fn refused(error: &reqwest::Error) -> Option<&'static str> {
        let mut cause: Option<&dyn std::error::Error> = Some(error);
        while let Some(one) = cause {
            if one.is::<Internal>() {
                return Some(INWARD);
            }
            cause = one.source();
        }
        None
    }
}

#[derive(Debug, thiserror::Error)]
#[error("it has no public address")]
struct Internal;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|found| is_public(found.ip())).collect();
            if public.is_empty() {
                return Err(Internal.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use http::Method;

    use super::*;
    use crate::{
        Logins, Settings,
        transport::{Request, Right, Transport},
    };

    fn refused(home: &str, private: bool, to: &str) -> Option<String> {
        let url: Url = home.parse().unwrap();
        let home = Origin { url: url.clone(), name: "registry.example.com".into(), private };
        home.follow(&url, &to.parse().unwrap()).err().map(|error| error.to_string())
    }

    #[test]
    fn forbidden_redirects_are_not_followed() {
        let (tls, plain) = ("https://registry.example.com/v2/", "http://127.0.0.1:5000/v2/");
        for (home, to, why) in [
            (tls, "http://cdn.example.com/a", "redirect from TLS to plain HTTP"),
            (tls, "http://registry.example.com/a", "redirect from TLS to plain HTTP"),
            (tls, "http://127.0.0.1/a", "redirect from TLS to plain HTTP"),
            (tls, "https://u:p@cdn.example.com/a", "contains a login"),
            (tls, "ftp://cdn.example.com/a", "other than HTTP"),
            (plain, "http://cdn.example.com/a", "without TLS"),
            ("http://10.0.0.1:5000/v2/", "http://10.0.0.1:5001/a", "without TLS"),
            ("http://10.0.0.1:5000/v2/", "http://127.0.0.1:5000/a", "without TLS"),
        ] {
            for private in [false, true] {
                let message = refused(home, private, to);
                assert!(
                    message.as_ref().is_some_and(|message| message.contains(why)),
                    "{to}: {message:?}"
                );
            }
        }
        for inward in [
            "https://127.0.0.1/a",
            "https://169.254.169.254/latest",
            "https://10.1.2.3/a",
            "https://0xa.1/a",
            "https://[::1]/a",
            "https://[fd00::1]/a",
            "https://[::ffff:10.0.0.1]/a",
        ] {
            let message = refused(tls, false, inward);
            assert!(
                message.as_ref().is_some_and(|message| message.contains(INWARD)),
                "{inward}: {message:?}"
            );
            assert_eq!(refused(tls, true, inward), None);
        }
        assert_eq!(refused(tls, false, "https://cdn.example.com/a"), None);
        assert_eq!(refused(tls, false, "https://1.1.1.1/a"), None);
        assert_eq!(refused(plain, true, "http://127.0.0.1:6000/a"), None);
        assert_eq!(refused("https://10.0.0.1/v2/", false, "https://10.0.0.1/a"), None);
    }

    #[tokio::test]
    async fn names_with_private_addresses_are_refused() {
        let here = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let transport =
            Transport::new(Settings { logins: Logins::Nobody, ..Settings::default() }).unwrap();
        let to = "registry.example.com/acme/words:1".parse().unwrap();
        let request = |from_private| Request {
            to: &to,
            right: Right::Pull,
            method: Method::GET,
            url: format!("https://localhost:{}/", here.local_addr().unwrap().port())
                .parse()
                .unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            until: Instant::now() + Duration::from_secs(60),
            from_private,
        };
        let error = transport.send(request(false)).await.err().unwrap();
        assert!(
            matches!(error, Error::RedirectRefused { why: INWARD, .. })
                && error.to_string().contains("registry.example.com"),
            "{error}"
        );
        // A registry with a private address may redirect there.
        tokio::select! {
            heard = here.accept() => drop(heard.unwrap()),
            answered = transport.send(request(true)) => panic!("{:?}", answered.err()),
        }
    }
}
