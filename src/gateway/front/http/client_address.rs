//! The address of the client behind a trusted proxy.
//!
//! INVARIANT: only trusted proxies are believed, and only in the form that the config names. If a
//! trusted proxy's address of the client is missing or malformed, the request is refused: a policy
//! may permit more to the proxy's own address than to the client.
//!
//! INVARIANT: a request that a trusted proxy forwards never counts as a local call, whatever its
//! address, and no trusted proxy of another machine can make a client's address loopback.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;

use portcullis_config::{ClientAddressSource, Listen, ProxyNetwork};
use portcullis_protocol::refusal::{Code, Refusal};

const FORWARDED: &str = "forwarded";
const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// Headers that reverse proxies add.
const OF_PROXIES: [&str; 9] = [
    FORWARDED,
    X_FORWARDED_FOR,
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-forwarded-by",
    "x-real-ip",
    "via",
];

/// Limit in bytes of all lines of a header with the client's address, which is read before
/// authentication. An address takes about 40.
const MAX_BYTES: usize = 8 * 1_024;
/// Limit of parameters in one element of a `Forwarded` header. RFC 7239 defines four.
const MAX_PARAMETERS: usize = 16;

/// Marks a request that a trusted proxy forwards.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByTrustedProxy;

/// Whether a request has a header that reverse proxies add. Some add none.
pub(super) fn is_forwarded(headers: &HeaderMap) -> bool {
    OF_PROXIES.iter().any(|name| headers.contains_key(*name))
}

/// The address from a trusted proxy, unless it is another machine's loopback.
///
/// # Errors
/// If it is, since another machine's loopback address is not local here.
pub(super) fn refuse_foreign_loopback(
    proxy: SocketAddr,
    client: SocketAddr,
) -> Result<SocketAddr, ForwardingFault> {
    if client.ip().is_loopback() && !proxy.ip().to_canonical().is_loopback() {
        return Err(ForwardingFault::Loopback);
    }
    Ok(client)
}

/// The trusted reverse proxies, and the way in which they name their client.
#[derive(Debug)]
pub(super) struct TrustedProxies {
    networks: Vec<ProxyNetwork>,
    pub source: ClientAddressSource,
}

/// Cause why a trusted proxy's information about its client cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ForwardingFault {
    #[error("a trusted proxy sent no `{0}` header")]
    Missing(&'static str),
    #[error("a trusted proxy sent a `{0}` header that cannot be read")]
    Malformed(&'static str),
    #[error("a trusted proxy sent a `{0}` header of more than {MAX_BYTES} bytes")]
    TooLong(&'static str),
    #[error("a trusted proxy sent a `Forwarded` header that names no address")]
    Hidden,
    #[error("a trusted proxy's header of the PROXY protocol names no address")]
    Unnamed,
    #[error("a trusted proxy of another machine named a loopback address")]
    Loopback,
}

impl From<ForwardingFault> for Refusal {
    fn from(fault: ForwardingFault) -> Self {
        Refusal::new(Code::InvalidRequest, "the client's address cannot be determined").detail(format!(
            "{fault}: set listen.client-address to the header that the proxies of listen.trusted-proxies send"
        ))
    }
}

impl TrustedProxies {
    /// The trusted proxies of a config, if any.
    pub fn of(listen: &Listen) -> Option<Self> {
        let source = listen.client_address?;
        Some(Self { networks: listen.trusted_proxies.clone(), source })
    }

    /// Whether this is the address of a trusted proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }

    /// The client's address from the headers of a trusted proxy's request: the last one that is not
    /// a trusted proxy's. The client may have written everything before it. If all are trusted
    /// proxies', it is the first one that is not loopback. So a client in a trusted network cannot
    /// appear as a local caller: a loopback address before another machine's never counts. The port
    /// is 0 if the header has none.
    ///
    /// # Errors
    /// If the header is missing or too long, or the resulting address is malformed or the loopback
    /// address of another machine.
    pub fn client(
        &self,
        proxy: SocketAddr,
        headers: &HeaderMap,
    ) -> Result<SocketAddr, ForwardingFault> {
        let (name, lines) = match self.source {
            ClientAddressSource::XForwardedFor => ("X-Forwarded-For", X_FORWARDED_FOR),
            ClientAddressSource::Forwarded => ("Forwarded", FORWARDED),
            // Sent at the start of the connection, not in its requests.
            ClientAddressSource::ProxyProtocol => return Err(ForwardingFault::Missing("PROXY")),
        };
        let bytes: usize = headers.get_all(lines).iter().map(|line| line.len()).sum();
        if bytes > MAX_BYTES {
            return Err(ForwardingFault::TooLong(name));
        }
        let nodes: Vec<Node> = match self.source {
            ClientAddressSource::Forwarded => {
                forwarded(headers).ok_or(ForwardingFault::Malformed(name))?
            }
            _ => x_forwarded_for(headers),
        };
        let (mut first, mut first_elsewhere) = (None, None);
        for node in nodes.iter().rev() {
            let node = node.as_deref().ok_or(ForwardingFault::Hidden)?;
            let address = parse_node(node).ok_or(ForwardingFault::Malformed(name))?;
            let is_loopback = address.ip().is_loopback();
            if !self.contains(address.ip()) {
                // Another machine's loopback address is not local here.
                let address = first_elsewhere.filter(|_| is_loopback).unwrap_or(address);
                return refuse_foreign_loopback(proxy, address);
            }
            first = Some(address);
            if !is_loopback {
                first_elsewhere = first;
            }
        }
        let address = first_elsewhere.or(first).ok_or(ForwardingFault::Missing(name))?;
        refuse_foreign_loopback(proxy, address)
    }
}

/// Address text of an element of a header; `None` if it has none.
type Node = Option<String>;

/// The elements of all `X-Forwarded-For` headers in order. Text that is not ASCII becomes an
/// element that is not an address.
fn x_forwarded_for(headers: &HeaderMap) -> Vec<Node> {
    let elements = headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','));
    let text = |element| String::from_utf8_lossy(element).trim_matches([' ', '\t']).to_owned();
    elements.map(|element| Some(text(element))).collect()
}

/// An address as proxies write it: with or without a port, IPv6 with or without brackets.
fn parse_node(text: &str) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let (address, port) = if let Ok(address) = text.parse::<SocketAddr>() {
        (address.ip(), address.port())
    } else if let Some(bare) = bare {
        (IpAddr::V6(bare.parse().ok()?), 0)
    } else {
        (text.parse::<IpAddr>().ok()?, 0)
    };
    Some(SocketAddr::new(address.to_canonical(), port))
}

/// The `for` of each element of all `Forwarded` headers in order (RFC 7239, section 4). `None` if
/// they violate the grammar.
fn forwarded(headers: &HeaderMap) -> Option<Vec<Node>> {
    let lines: Option<Vec<_>> =
        headers.get_all(FORWARDED).iter().map(|value| value.to_str().ok()).collect();
    // As one list, so that a quote opened by the client does not hide what follows.
    let text = lines?.join(", ");
    let mut rest = text.trim_matches([' ', '\t']);
    let mut elements = Vec::new();
    while !rest.is_empty() {
        let (element, after) = element(rest)?;
        // A list may have empty elements (RFC 9110, section 5.6.1).
        elements.extend(element);
        rest = after;
    }
    Some(elements)
}

/// The first element of a list, and the rest. The element is `None` if it is empty.
fn element(text: &str) -> Option<(Option<Node>, &str)> {
    let mut seen: Vec<String> = Vec::new();
    let mut node = None;
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if let Some((name, after)) = token(rest) {
            let (value, after) = value(after.strip_prefix('=')?)?;
            let name = name.to_ascii_lowercase();
            // Each parameter at most once (section 4).
            if seen.len() >= MAX_PARAMETERS || seen.contains(&name) {
                return None;
            }
            if name == "for" {
                node = Some(value);
            }
            seen.push(name);
            rest = after.trim_start_matches([' ', '\t']);
        }
        match rest.chars().next() {
            Some(';') => rest = &rest[1..],
            Some(',') => {
                let found = (!seen.is_empty()).then_some(node);
                return Some((found, rest[1..].trim_start_matches([' ', '\t'])));
            }
            None => return Some(((!seen.is_empty()).then_some(node), "")),
            Some(_) => return None,
        }
    }
}

/// A token, and the rest (RFC 9110, section 5.6.2).
fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// The value of a parameter without its quotes, and the rest.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        return token(text).map(|(value, rest)| (value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    /// A trusted proxy of this machine.
    const HERE: &str = "127.0.0.1:4711";

    fn proxies(source: ClientAddressSource) -> TrustedProxies {
        let networks = ["127.0.0.1", "10.0.0.0/8", "fd00::/8"];
        TrustedProxies { networks: networks.map(|text| text.parse().unwrap()).into(), source }
    }

    fn client(
        source: ClientAddressSource,
        name: &'static str,
        values: &[&str],
    ) -> Result<String, ForwardingFault> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, value.parse().unwrap());
        }
        proxies(source).client(HERE.parse().unwrap(), &headers).map(|address| address.to_string())
    }

    fn by_x_forwarded_for(values: &[&str]) -> Result<String, ForwardingFault> {
        client(ClientAddressSource::XForwardedFor, X_FORWARDED_FOR, values)
    }

    fn by_forwarded(values: &[&str]) -> Result<String, ForwardingFault> {
        client(ClientAddressSource::Forwarded, FORWARDED, values)
    }

    #[test]
    fn x_forwarded_for_is_read_from_the_right() {
        for (values, address) in [
            (&["203.0.113.9"][..], "203.0.113.9:0"),
            (&["203.0.113.9:4711"], "203.0.113.9:4711"),
            (&["2001:db8::1"], "[2001:db8::1]:0"),
            (&["[2001:db8::1]"], "[2001:db8::1]:0"),
            (&["[2001:db8::1]:99"], "[2001:db8::1]:99"),
            (&["::ffff:203.0.113.9"], "203.0.113.9:0"),
            // Before the proxy's own element is text of the client.
            (&["127.0.0.1, 203.0.113.9"], "203.0.113.9:0"),
            (&["127.0.0.1", "203.0.113.9"], "203.0.113.9:0"),
            (&["junk\"(, 203.0.113.9"], "203.0.113.9:0"),
            // Trusted hops are skipped in every spelling.
            (&["198.51.100.1, 203.0.113.9 ,10.1.2.3, ::ffff:10.9.9.9"], "203.0.113.9:0"),
            // A client in a trusted network.
            (&["10.1.2.3, 127.0.0.1"], "10.1.2.3:0"),
            (&["127.0.0.1, 127.0.0.1"], "127.0.0.1:0"),
            (&["::1, 127.0.0.1"], "[::1]:0"),
            // A client that writes a loopback address before its own.
            (&["127.0.0.1, 10.1.2.3"], "10.1.2.3:0"),
            (&["::1, 10.1.2.3"], "10.1.2.3:0"),
            (&["203.0.113.9, 127.0.0.9, 10.1.2.3, 127.0.0.1"], "10.1.2.3:0"),
            (&["127.0.0.1, ::ffff:127.0.0.1, 10.1.2.3, 127.0.0.1"], "10.1.2.3:0"),
        ] {
            assert_eq!(by_x_forwarded_for(values).as_deref(), Ok(address), "{values:?}");
        }
    }

    #[test]
    fn malformed_addresses_are_refused() {
        assert_eq!(by_x_forwarded_for(&[]), Err(ForwardingFault::Missing("X-Forwarded-For")));
        for text in [
            "",
            "unknown",
            "203.0.113.9, ",
            "203.0.113.9 10.0.0.1",
            "0x7f.1",
            "1.2.3",
            "example.com",
        ] {
            let found = by_x_forwarded_for(&[text]);
            assert_eq!(found, Err(ForwardingFault::Malformed("X-Forwarded-For")), "{text}");
        }
        let mut headers = HeaderMap::new();
        let bytes = HeaderValue::from_bytes(b"203.0.113.9\xff").unwrap();
        headers.insert(X_FORWARDED_FOR, bytes);
        let here = HERE.parse().unwrap();
        assert!(proxies(ClientAddressSource::XForwardedFor).client(here, &headers).is_err());
    }

    #[test]
    fn forwarded_is_read_from_the_right() {
        for (values, address) in [
            (&["for=203.0.113.9"][..], "203.0.113.9:0"),
            (&["For=\"203.0.113.9:4711\";proto=https;by=10.0.0.1"], "203.0.113.9:4711"),
            (&["proto=http; for=\"[2001:db8:cafe::17]:47\""], "[2001:db8:cafe::17]:47"),
            (&["for=\"\\[2001:db8::1\\]\""], "[2001:db8::1]:0"),
            (&["for=127.0.0.1, for=203.0.113.9, for=10.0.0.1"], "203.0.113.9:0"),
            (&["for=127.0.0.1", "for=203.0.113.9;proto=https"], "203.0.113.9:0"),
            (&["for=unknown, , for=203.0.113.9,"], "203.0.113.9:0"),
            (&["for=127.0.0.1, for=10.1.2.3"], "10.1.2.3:0"),
            (&["for=127.0.0.1, for=127.0.0.1"], "127.0.0.1:0"),
        ] {
            assert_eq!(by_forwarded(values).as_deref(), Ok(address), "{values:?}");
        }
        assert_eq!(by_forwarded(&[]), Err(ForwardingFault::Missing("Forwarded")));
        assert_eq!(by_forwarded(&["proto=https"]), Err(ForwardingFault::Hidden));
        for values in [
            &["for=unknown"][..],
            &["for=_hidden"],
            &["for=203.0.113.9;for=198.51.100.1"],
            &["for=[2001:db8::1]"],
            &["for = 203.0.113.9"],
            &["for=\"203.0.113.9"],
            // A quote opened by the client, before the proxy's own element.
            &["for=\"127.0.0.1", "for=203.0.113.9"],
            &["for=\"127.0.0.1, for=\"203.0.113.9\""],
            &["for=127.0.0.1;x=\"", "for=\"[2001:db8::1]\""],
            &["203.0.113.9"],
        ] {
            let found = by_forwarded(values);
            assert_eq!(found, Err(ForwardingFault::Malformed("Forwarded")), "{values:?}");
        }
    }

    #[test]
    fn oversized_header_is_refused() {
        let elements = |count| vec!["for=203.0.113.9"; count].join(", ");
        let (most, more) = (elements(MAX_BYTES / 17), elements(MAX_BYTES / 17 + 2));
        assert_eq!(by_forwarded(&[&most]).as_deref(), Ok("203.0.113.9:0"));
        assert_eq!(by_forwarded(&[&more]), Err(ForwardingFault::TooLong("Forwarded")));
        // All lines of a header count.
        let half = vec!["203.0.113.9"; MAX_BYTES / 26].join(", ");
        assert_eq!(by_x_forwarded_for(&[&half]).as_deref(), Ok("203.0.113.9:0"));
        assert_eq!(
            by_x_forwarded_for(&[&half, &half, "203.0.113.9"]),
            Err(ForwardingFault::TooLong("X-Forwarded-For"))
        );
        let parameters = |count| {
            let others: String = (1..count).map(|n| format!(";p{n}=1")).collect();
            by_forwarded(&[&format!("for=203.0.113.9{others}")])
        };
        assert_eq!(parameters(MAX_PARAMETERS).as_deref(), Ok("203.0.113.9:0"));
        let refused = Err(ForwardingFault::Malformed("Forwarded"));
        assert_eq!(parameters(MAX_PARAMETERS + 1), refused);
    }

    #[test]
    fn remote_proxy_cannot_name_a_loopback_client() {
        use ClientAddressSource::{Forwarded, XForwardedFor};
        for proxy in ["10.0.0.1:1", "[fd00::1]:1", "[::ffff:10.0.0.1]:1"] {
            for (source, name, value, found) in [
                (XForwardedFor, X_FORWARDED_FOR, "127.0.0.1", Err(ForwardingFault::Loopback)),
                (XForwardedFor, X_FORWARDED_FOR, "127.0.0.9", Err(ForwardingFault::Loopback)),
                (XForwardedFor, X_FORWARDED_FOR, "::1, 127.0.0.1", Err(ForwardingFault::Loopback)),
                (
                    XForwardedFor,
                    X_FORWARDED_FOR,
                    "::ffff:127.0.0.9",
                    Err(ForwardingFault::Loopback),
                ),
                (Forwarded, FORWARDED, "for=127.0.0.1", Err(ForwardingFault::Loopback)),
                (Forwarded, FORWARDED, "for=\"[::1]\"", Err(ForwardingFault::Loopback)),
                (Forwarded, FORWARDED, "for=127.0.0.1, for=10.1.2.3", Ok("10.1.2.3:0")),
                (XForwardedFor, X_FORWARDED_FOR, "127.0.0.1, 203.0.113.9", Ok("203.0.113.9:0")),
            ] {
                let mut headers = HeaderMap::new();
                headers.insert(name, value.parse().unwrap());
                let client = proxies(source).client(proxy.parse().unwrap(), &headers);
                let found = found.map(|address| address.parse().unwrap());
                assert_eq!(client, found, "{proxy} {value}");
            }
        }
        for proxy in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.2]:1"] {
            let client = "127.0.0.9:1".parse().unwrap();
            assert_eq!(refuse_foreign_loopback(proxy.parse().unwrap(), client), Ok(client));
        }
    }

    proptest! {
        /// Only the element that the proxy appends counts.
        #[test]
        fn client_cannot_choose_its_address(
            written in "[ -~]{0,40}",
            apart in any::<bool>(),
            quoted in any::<bool>(),
        ) {
            let own = "203.0.113.9";
            let list = |appended: String| match (written.trim(), apart) {
                ("", _) => vec![appended],
                (written, true) => vec![written.to_owned(), appended],
                (written, false) => vec![format!("{written}, {appended}")],
            };
            let lines = list(own.to_owned());
            let lines: Vec<_> = lines.iter().map(String::as_str).collect();
            prop_assert_eq!(by_x_forwarded_for(&lines), Ok(format!("{own}:0")));
            let lines =
                list(if quoted { format!("for=\"{own}:1\"") } else { format!("for={own}") });
            let lines: Vec<_> = lines.iter().map(String::as_str).collect();
            if let Ok(found) = by_forwarded(&lines) {
                prop_assert!(found.starts_with(own), "{found}");
            }
        }

        #[test]
        fn arbitrary_headers_cause_no_panic(text in "\\PC{0,60}") {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
                headers.append(FORWARDED, value.clone());
                headers.append(X_FORWARDED_FOR, value);
            }
            let here = HERE.parse().unwrap();
            let _ = proxies(ClientAddressSource::Forwarded).client(here, &headers);
            let _ = proxies(ClientAddressSource::XForwardedFor).client(here, &headers);
        }
    }
}
