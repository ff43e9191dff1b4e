//! Where a registry may lead, and what such a place is called.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderMap, header};
use portcullis_egress::is_public;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::{Error, error::Asked, reference::is_loopback};

/// Where requests begin: at a registry, or at whoever has a file.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub url: Url,
    /// What the operator calls it.
    pub name: String,
    /// Whether its own address is none of the whole Internet: it may lead to the others around it.
    /// Told by a connection that was made to it, since it could answer the DNS as it likes.
    pub private: bool,
}

impl Origin {
    pub fn is_at(&self, url: &Url) -> bool {
        self.url.origin() == url.origin()
    }

    /// What errors call the host of a URL.
    pub fn asked(&self, url: &Url) -> Asked {
        match self.is_at(url) {
            true => Asked::Itself(self.name.clone()),
            false => Asked::LedTo { by: self.name.clone() },
        }
    }

    pub fn astray(&self, from: &Url, why: &'static str) -> Error {
        Error::Astray { host: self.asked(from), why }
    }

    /// Where a `Location` leads.
    pub fn next(&self, from: &Url, headers: &HeaderMap) -> Result<Url, Error> {
        let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let to = location
            .and_then(|location| from.join(location).ok())
            .ok_or_else(|| self.astray(from, "it does not say where to"))?;
        self.follow(from, &to)?;
        Ok(to)
    }

    /// Whether to go there: by TLS; without it where the registry itself is asked without, and then
    /// no further than to the same host, or this machine from this machine. What a name stands for is
    /// looked at when it is connected to ([`Public`]).
    pub fn follow(&self, from: &Url, to: &Url) -> Result<(), Error> {
        let astray = |why| Err(self.astray(from, why));
        if !to.username().is_empty() || to.password().is_some() {
            return astray("to a URL with a login in it");
        }
        match to.scheme() {
            "https" => {}
            "http" if self.url.scheme() == "http" => {
                if !(self.is_at(to) || is_local(&self.url) && is_local(to)) {
                    return astray("to a host without TLS");
                }
            }
            "http" => return astray("from TLS to none"),
            _ => return astray("to what is not HTTP"),
        }
        let public = match to.host() {
            Some(Host::Ipv4(address)) => is_public(address.into()),
            Some(Host::Ipv6(address)) => is_public(address.into()),
            _ => true,
        };
        if public || self.private || self.is_at(to) { Ok(()) } else { astray(INWARD) }
    }
}

const INWARD: &str = "to an address that is not public, as its own is";

/// Whether a URL is of this machine.
pub(crate) fn is_local(url: &Url) -> bool {
    url.host_str().is_some_and(is_loopback)
}

/// Finds addresses of names that a public registry leads to, and gives the public ones alone. The
/// connection is made to what was looked at here.
pub(crate) struct Public;

impl Public {
    pub fn resolver() -> Arc<Self> {
        Arc::new(Self)
    }

    /// Whether it is for want of one that a request failed.
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

impl Resolve for Public {
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
    fn where_nobody_is_led() {
        let (tls, plain) = ("https://registry.example.com/v2/", "http://127.0.0.1:5000/v2/");
        for (home, to, why) in [
            (tls, "http://cdn.example.com/a", "from TLS to none"),
            (tls, "http://registry.example.com/a", "from TLS to none"),
            (tls, "http://127.0.0.1/a", "from TLS to none"),
            (tls, "https://u:p@cdn.example.com/a", "a login in it"),
            (tls, "ftp://cdn.example.com/a", "not HTTP"),
            (plain, "http://cdn.example.com/a", "without TLS"),
            ("http://10.0.0.1:5000/v2/", "http://10.0.0.1:5001/a", "without TLS"),
            ("http://10.0.0.1:5000/v2/", "http://127.0.0.1:5000/a", "without TLS"),
        ] {
            for private in [false, true] {
                let told = refused(home, private, to);
                assert!(told.as_ref().is_some_and(|told| told.contains(why)), "{to}: {told:?}");
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
            let told = refused(tls, false, inward);
            assert!(told.as_ref().is_some_and(|told| told.contains(INWARD)), "{inward}: {told:?}");
            assert_eq!(refused(tls, true, inward), None);
        }
        assert_eq!(refused(tls, false, "https://cdn.example.com/a"), None);
        assert_eq!(refused(tls, false, "https://1.1.1.1/a"), None);
        assert_eq!(refused(plain, true, "http://127.0.0.1:6000/a"), None);
        assert_eq!(refused("https://10.0.0.1/v2/", false, "https://10.0.0.1/a"), None);
    }

    #[tokio::test]
    async fn names_of_private_addresses_are_not_connected_to() {
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
            matches!(error, Error::Astray { why: INWARD, .. })
                && error.to_string().contains("registry.example.com"),
            "{error}"
        );
        // A registry of a private address may.
        tokio::select! {
            heard = here.accept() => drop(heard.unwrap()),
            answered = transport.send(request(true)) => panic!("{:?}", answered.err()),
        }
    }
}
