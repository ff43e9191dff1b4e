//! First message of TLS: which server it names.

use std::io;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{Host, Refusal};

/// Bytes before a record's content.
pub(crate) const HEAD: usize = 5;
/// Type of handshake records.
pub(crate) const HANDSHAKE: u8 = 22;
/// Limit of a record's content in bytes (RFC 8446, section 5.1).
const MAX_RECORD_BYTES: usize = 1 << 14;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
/// `encrypted_client_hello` (RFC 9849), and `encrypted_server_name` of earlier drafts.
const ENCRYPTED: [u16; 2] = [0xfe0d, 0xffce];

/// Reads the first record, whose first bytes have been read already.
///
/// # Errors
/// [`Refusal`] if it does not begin TLS for the host.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    first: &[u8],
    host: &Host,
) -> Result<Vec<u8>, Refusal> {
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Refusal::BrokenHello("it is incomplete".into()),
        _ => Refusal::BrokenHello("the connection was closed".into()),
    };
    let mut record = first.to_vec();
    if record.is_empty() {
        record.push(stream.read_u8().await.map_err(broken)?);
    }
    if record.first() != Some(&HANDSHAKE) {
        return Err(Refusal::NotTls(host.clone()));
    }
    let have = record.len();
    record.resize(HEAD.max(have), 0);
    stream.read_exact(&mut record[have..]).await.map_err(broken)?;
    let length = match record[..] {
        [_, 3, _, high, low] => usize::from(u16::from_be_bytes([high, low])),
        _ => return Err(Refusal::NotTls(host.clone())),
    };
    if !(4..=MAX_RECORD_BYTES).contains(&length) {
        return Err(Refusal::BrokenHello("the length of its first record is not legal".into()));
    }
    record.resize(HEAD + length, 0);
    stream.read_exact(&mut record[HEAD..]).await.map_err(broken)?;
    check(&record, host)?;
    Ok(record)
}

/// Checks that a record is a complete ClientHello for a host.
pub(crate) fn check(record: &[u8], host: &Host) -> Result<(), Refusal> {
    let broken = |why: &str| Refusal::BrokenHello(why.to_owned());
    let [HANDSHAKE, 3, _, _, _, kind, a, b, c, ..] = *record else {
        return Err(broken("it is not a handshake"));
    };
    if kind != CLIENT_HELLO {
        return Err(broken("it is not a ClientHello"));
    }
    let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
    // A server that reads only the first record would see a part of the name. No library sends
    // that.
    if length != record.len() - HEAD - 4 {
        return Err(broken("its ClientHello does not fill exactly one record"));
    }
    let extensions = extensions(&record[HEAD + 4..])
        .ok_or_else(|| broken("the extensions of its ClientHello are not legal"))?;
    if extensions.iter().any(|(kind, _)| ENCRYPTED.contains(kind)) {
        return Err(Refusal::EncryptedServerName);
    }
    let mut names = extensions.iter().filter(|(kind, _)| *kind == SERVER_NAME);
    let requested = match (names.next(), names.next()) {
        (None, _) => None,
        (Some((_, content)), None) => {
            let name = server_name(content);
            Some(name.ok_or_else(|| broken("its server name (SNI) is not exactly one legal name"))?)
        }
        (Some(_), Some(_)) => return Err(broken("it names two servers")),
    };
    // A strict parser reads the name, too: a message that both accept is unambiguous.
    let mut acceptor = Acceptor::default();
    let mut rest = record;
    while !rest.is_empty() {
        match acceptor.read_tls(&mut rest) {
            Ok(read) if read > 0 => {}
            _ => return Err(broken("its ClientHello is not legal")),
        }
    }
    let name = match acceptor.accept() {
        Ok(Some(accepted)) => accepted.client_hello().server_name().map(str::to_owned),
        Ok(None) => return Err(broken("its ClientHello is incomplete")),
        Err((error, _)) => return Err(broken(&error.to_string())),
    };
    if name.as_deref() != requested {
        return Err(broken("its server name (SNI) is ambiguous"));
    }
    match (host, requested) {
        (Host::Name(name), Some(requested)) if requested.eq_ignore_ascii_case(name) => Ok(()),
        // Addresses are never named (RFC 6066, section 3).
        (Host::Address(_), None) => Ok(()),
        (host, Some(requested)) => {
            Err(Refusal::OtherServerName { requested: requested.to_owned(), host: host.clone() })
        }
        (host, None) => Err(Refusal::NoServerName(host.clone())),
    }
}

/// Name in a server name extension: exactly one host name. Anything else would be ambiguous.
fn server_name(content: &[u8]) -> Option<&str> {
    let (length, list) = content.split_first_chunk()?;
    let [0, high, low, name @ ..] = list else { return None };
    let fills = usize::from(u16::from_be_bytes(*length)) == list.len()
        && usize::from(u16::from_be_bytes([*high, *low])) == name.len();
    let name = std::str::from_utf8(name).ok().filter(|_| fills)?;
    // Without the root's dot, which `Host` accepts.
    let legal = !name.ends_with('.') && matches!(name.parse(), Ok(Host::Name(_)));
    legal.then_some(name)
}

/// Extensions of a ClientHello: kind and content.
fn extensions(hello: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    fn take<'a>(from: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = from.split_at_checked(bytes)?;
        *from = rest;
        Some(taken)
    }
    fn number(from: &mut &[u8], bytes: usize) -> Option<usize> {
        Some(take(from, bytes)?.iter().fold(0, |all, byte| all << 8 | usize::from(*byte)))
    }
    let mut rest = hello;
    // Version and random; then session, cipher suites and compression, each after its length.
    take(&mut rest, 34)?;
    for size in [1, 2, 1] {
        let length = number(&mut rest, size)?;
        take(&mut rest, length)?;
    }
    if rest.is_empty() {
        return Some(Vec::new());
    }
    let length = number(&mut rest, 2)?;
    let mut rest = (rest.len() == length).then_some(rest)?;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let kind = u16::try_from(number(&mut rest, 2)?).ok()?;
        let length = number(&mut rest, 2)?;
        all.push((kind, take(&mut rest, length)?));
    }
    Some(all)
}

/// TLS alert that ends the connection with a readable error: `unrecognized_name` or
/// `access_denied`.
pub(crate) fn alert(refusal: &Refusal) -> [u8; 7] {
    let code = match refusal {
        Refusal::NoServerName(_) | Refusal::OtherServerName { .. } => 112,
        _ => 49,
    };
    [21, 3, 3, 0, 2, 2, code]
}

#[cfg(test)]
#[path = "tests/egress/hellos.rs"]
#[allow(clippy::unwrap_used)]
mod hellos;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        hellos::{hello, with_ech, with_extension},
        *,
    };

    #[test]
    fn server_name_must_be_that_of_the_host() {
        let (name, address) = ("a.example", "192.0.2.1");
        let host = |text: &str| text.parse::<Host>().unwrap();
        assert_eq!(check(&hello(name), &host("A.example.")), Ok(()));
        assert_eq!(check(&hello(address), &host(address)), Ok(()));
        assert_eq!(
            check(&hello(name), &host("b.example")),
            Err(Refusal::OtherServerName { requested: name.into(), host: host("b.example") })
        );
        assert_eq!(check(&hello(address), &host(name)), Err(Refusal::NoServerName(host(name))));
        assert!(matches!(
            check(&hello(name), &host(address)),
            Err(Refusal::OtherServerName { .. })
        ));
    }

    #[test]
    fn encrypted_names_are_refused() {
        let host = "a.example".parse().unwrap();
        let plain = hello("a.example");
        assert_eq!(check(&with_extension(&plain, 0x7777, b"x"), &host), Ok(()));
        for kind in ENCRYPTED {
            let encrypted = with_extension(&plain, kind, &[0; 40]);
            let refused = check(&encrypted, &host).unwrap_err();
            // Malformed ECH is left to the strict parser.
            assert!(
                matches!(refused, Refusal::EncryptedServerName | Refusal::BrokenHello(_)),
                "{refused}"
            );
        }
        assert_eq!(check(&with_ech(&plain), &host), Err(Refusal::EncryptedServerName));
        let twice = with_extension(&plain, SERVER_NAME, &named(&[(0, "b.example")]));
        assert!(matches!(check(&twice, &host), Err(Refusal::BrokenHello(_))));
    }

    /// A hello for an address has no name; one for a host has exactly one.
    #[test]
    fn additional_names_are_refused() {
        let address = hello("192.0.2.1");
        let (name, number) = ("a.example".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let with = |content: &[u8]| with_extension(&address, SERVER_NAME, content);
        assert_eq!(check(&with(&named(&[(0, "a.example")])), &name), Ok(()));
        let one = named(&[(0, "a.example")]);
        for content in [
            &[][..],
            &[0, 0],
            &named(&[(0, "a.example"), (0, "b.example")]),
            &named(&[(0, "a.example"), (1, "b.example")]),
            &named(&[(1, "b.example"), (0, "a.example")]),
            &named(&[(1, "a.example")]),
            &named(&[(0, "a.example.")]),
            &named(&[(0, "a.example\0b.example")]),
            &named(&[(0, "192.0.2.2")]),
            &named(&[(0, "")]),
            &[&one[..], b"b.example"].concat(),
            &one[..one.len() - 1],
        ] {
            for host in [&name, &number] {
                let refused = check(&with(content), host);
                assert!(matches!(refused, Err(Refusal::BrokenHello(_))), "{content:?} {refused:?}");
            }
        }
        assert!(matches!(check(&with(&one), &number), Err(Refusal::OtherServerName { .. })));
    }

    /// Content of a server name extension with these kinds and names.
    fn named(names: &[(u8, &str)]) -> Vec<u8> {
        let mut list = Vec::new();
        for (kind, name) in names {
            list.push(*kind);
            list.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
            list.extend(name.as_bytes());
        }
        [&u16::try_from(list.len()).unwrap().to_be_bytes()[..], &list].concat()
    }

    #[test]
    fn incomplete_hello_is_refused() {
        let host = "a.example".parse().unwrap();
        let plain = hello("a.example");
        for length in 0..plain.len() {
            assert!(check(&plain[..length], &host).is_err(), "{length}");
            // With the record's length corrected, so that it looks complete.
            if length > HEAD + 4 {
                let mut record = plain[..length].to_vec();
                let short = u16::try_from(length - HEAD).unwrap().to_be_bytes();
                record[3..5].copy_from_slice(&short);
                assert!(check(&record, &host).is_err(), "{length}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_changed_byte_passes_another_name(at in 0usize..400, byte in any::<u8>()) {
            let mut record = hello("a.example");
            let at = at % record.len();
            record[at] = byte;
            if check(&record, &"b.example".parse().unwrap()).is_ok() {
                // One changed byte can turn `a.example` into `b.example`.
                prop_assert!(record.windows(9).any(|part| part.eq_ignore_ascii_case(b"b.example")));
            }
        }

        #[test]
        fn arbitrary_bytes_cause_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let host = "a.example".parse().unwrap();
            let _ = check(&bytes, &host);
            let mut framed = vec![22, 3, 1, 0, 0, 1, 0, 0, 0];
            framed.extend(&bytes);
            let length = framed.len() - HEAD;
            framed[3..5].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            framed[6..9].copy_from_slice(&u32::try_from(length - 4).unwrap().to_be_bytes()[1..]);
            let _ = check(&framed, &host);
        }
    }
}
