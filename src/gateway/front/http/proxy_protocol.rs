//! The PROXY protocol header, versions 1 and 2, that a trusted proxy sends at the start of a
//! connection (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>).

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Start of each header of version 2 (section 2.2). Headers of version 1 are not shorter.
const SIGNATURE: &[u8] = v2::PROTOCOL_PREFIX;
/// Start of each header of version 1 (section 2.1).
const PREFIX: &[u8] = b"PROXY ";
/// Largest size of a version 1 header with its line break (section 2.1).
const MAX_V1_BYTES: usize = 107;
/// Largest size of a version 2 header. Addresses take 36 bytes; the rest are extensions, which are
/// ignored.
const MAX_V2_BYTES: usize = 4_096;
/// Bytes of a header of version 2 before its addresses.
const V2_START_BYTES: usize = 16;

/// Cause why a connection has no usable header.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyProtocolFault {
    #[error("it does not begin with a header of the PROXY protocol")]
    Missing,
    #[error("its header of the PROXY protocol is malformed")]
    Malformed,
    #[error("its header of the PROXY protocol names no TCP client")]
    NoAddress,
    #[error("it ended within its header of the PROXY protocol: {0}")]
    Io(#[from] io::Error),
}

/// Reads a header and nothing after it. Returns the client's address, or `None` if the proxy names
/// no client (`LOCAL`, `UNKNOWN`), as in its health checks.
///
/// # Errors
/// If there is no header, or if it does not name a TCP client.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<SocketAddr>, ProxyProtocolFault> {
    let mut header = vec![0; SIGNATURE.len()];
    stream.read_exact(&mut header).await?;
    if header == SIGNATURE {
        header.resize(V2_START_BYTES, 0);
        stream.read_exact(&mut header[SIGNATURE.len()..]).await?;
        let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if V2_START_BYTES + length > MAX_V2_BYTES {
            return Err(ProxyProtocolFault::Malformed);
        }
        header.resize(V2_START_BYTES + length, 0);
        stream.read_exact(&mut header[V2_START_BYTES..]).await?;
        return parse_v2(&header);
    }
    if !header.starts_with(PREFIX) {
        return Err(ProxyProtocolFault::Missing);
    }
    // Byte by byte, since the data after the line is the client's.
    while !header.ends_with(b"\n") {
        if header.len() >= MAX_V1_BYTES {
            return Err(ProxyProtocolFault::Malformed);
        }
        header.push(stream.read_u8().await?);
    }
    parse_v1(&header)
}

fn parse_v1(header: &[u8]) -> Result<Option<SocketAddr>, ProxyProtocolFault> {
    let header = v1::Header::try_from(header).map_err(|_| ProxyProtocolFault::Malformed)?;
    Ok(match header.addresses {
        v1::Addresses::Tcp4(tcp) => Some(address(tcp.source_address, tcp.source_port)),
        v1::Addresses::Tcp6(tcp) => Some(address(tcp.source_address, tcp.source_port)),
        v1::Addresses::Unknown => None,
    })
}

fn parse_v2(header: &[u8]) -> Result<Option<SocketAddr>, ProxyProtocolFault> {
    let header = v2::Header::try_from(header).map_err(|_| ProxyProtocolFault::Malformed)?;
    if header.command == v2::Command::Local {
        return Ok(None);
    }
    match (header.protocol, header.addresses) {
        (v2::Protocol::Stream, v2::Addresses::IPv4(tcp)) => {
            Ok(Some(address(tcp.source_address, tcp.source_port)))
        }
        (v2::Protocol::Stream, v2::Addresses::IPv6(tcp)) => {
            Ok(Some(address(tcp.source_address, tcp.source_port)))
        }
        _ => Err(ProxyProtocolFault::NoAddress),
    }
}

fn address(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into().to_canonical(), port)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The result of reading these bytes, and the unread rest.
    fn take(bytes: &[u8]) -> (Result<Option<String>, String>, Vec<u8>) {
        let mut rest = bytes;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(read(&mut rest));
        let found = found.map(|found| found.map(|address| address.to_string()));
        (found.map_err(|fault| fault.to_string()), rest.to_vec())
    }

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[0x20 | command, family], &length, payload].concat()
    }

    const V4: [u8; 12] = [203, 0, 113, 9, 10, 0, 0, 1, 0x12, 0x67, 0x22, 0x6b];

    #[test]
    fn headers_name_the_client_and_leave_its_bytes() {
        let v6 = [
            [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        ];
        let v6 = [v6.concat(), vec![0x12, 0x67, 0x22, 0x6b]].concat();
        let mapped = [[0; 10].as_slice(), &[0xff, 0xff, 203, 0, 113, 9]].concat();
        let mapped = [mapped.clone(), mapped, vec![0, 1, 0, 2]].concat();
        let with_tlv = [V4.as_slice(), &[0x04, 0, 2, 0, 0]].concat();
        for (header, address) in [
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 8811\r\n".to_vec(), Some("203.0.113.9:4711")),
            (b"PROXY TCP6 2001:db8::1 fd00::2 4711 8811\r\n".to_vec(), Some("[2001:db8::1]:4711")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff:: ffff:: 65535 65535\r\n".to_vec(), None),
            (v2(1, 0x11, &V4), Some("203.0.113.9:4711")),
            (v2(1, 0x11, &with_tlv), Some("203.0.113.9:4711")),
            (v2(1, 0x21, &v6), Some("[2001:db8::1]:4711")),
            (v2(1, 0x21, &mapped), Some("203.0.113.9:1")),
            (v2(0, 0x00, &[]), None),
            (v2(0, 0x11, &V4), None),
        ] {
            let bytes = [header.as_slice(), b"GET / HTTP/1.1\r\n"].concat();
            let (found, rest) = take(&bytes);
            assert_eq!(found, Ok(address.map(str::to_owned)), "{header:?}");
            assert_eq!(rest, b"GET / HTTP/1.1\r\n", "{header:?}");
        }
    }

    #[test]
    fn other_prefixes_are_refused() {
        let long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200], b"\r\n"].concat();
        let huge = [SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat();
        for bytes in [
            b"GET /mcp HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            b"proxy TCP4 203.0.113.9 10.0.0.1 4711 8811\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 8811\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 4711\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 fd00::2 4711 8811\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.09 10.0.0.1 4711 8811\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 70000 8811\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 8811 x\r\n".to_vec(),
            b"PROXY UDP4 203.0.113.9 10.0.0.1 4711 8811\r\n".to_vec(),
            long,
            huge,
            b"PROXY TCP4 203.0.113.9".to_vec(),
            b"".to_vec(),
            // Version 2: too short for its addresses, UDP, a local socket, no address, version 3.
            v2(1, 0x11, &V4[..8]),
            v2(1, 0x12, &V4),
            v2(1, 0x31, &[0; 216]),
            v2(1, 0x00, &[]),
            [SIGNATURE, &[0x31, 0x11, 0, 12], &V4].concat(),
        ] {
            let (found, _) = take(&bytes);
            assert!(found.is_err(), "{bytes:?}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn parser_consumes_at_most_one_header(
            start in prop_oneof![
                Just(SIGNATURE.to_vec()),
                Just(b"PROXY TCP".to_vec()),
                Just(Vec::new()),
            ],
            more in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = [start, more].concat();
            let (found, rest) = take(&bytes);
            let taken = &bytes[..bytes.len() - rest.len()];
            if found.is_ok() {
                prop_assert!(taken.starts_with(SIGNATURE) || taken.ends_with(b"\r\n"));
            }
            prop_assert!(taken.len() <= MAX_V2_BYTES);
        }

        #[test]
        fn addresses_round_trip(ip in any::<[u8; 4]>(), port in any::<u16>(), v6 in any::<u128>()) {
            let v4 = std::net::Ipv4Addr::from(ip);
            let line = format!("PROXY TCP4 {v4} 192.0.2.1 {port} 1\r\n");
            prop_assert_eq!(take(line.as_bytes()).0, Ok(Some(format!("{v4}:{port}"))));
            let payload = [&ip[..], &[0; 4], &port.to_be_bytes(), &[0; 2]].concat();
            prop_assert_eq!(take(&v2(1, 0x11, &payload)).0, Ok(Some(format!("{v4}:{port}"))));
            let wanted = address(std::net::Ipv6Addr::from_bits(v6), port).to_string();
            let payload = [&v6.to_be_bytes()[..], &[0; 16], &port.to_be_bytes(), &[0; 2]].concat();
            prop_assert_eq!(take(&v2(1, 0x21, &payload)).0, Ok(Some(wanted)));
        }
    }
}
