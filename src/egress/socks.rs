//! SOCKS5 (RFC 1928): the request before a connection.
//!
//! It consists of two short messages. The crates for it bring servers with their own policies,
//! resolvers and sockets.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Host, Refusal};

pub(crate) const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NONE_ACCEPTED: u8 = 0xff;
const CONNECT: u8 = 1;

/// Failure to read a request.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The program gets an answer with the refusal.
    Refused(Refusal),
    /// The program has gone.
    Gone,
}

impl From<io::Error> for Fault {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

fn malformed(why: &str) -> Fault {
    Fault::Refused(Refusal::Malformed(why.to_owned()))
}

/// Reads the requested target. User and password, which some programs always send, are ignored:
/// reaching this socket is sufficient.
pub(crate) async fn question(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> Result<(Host, u16), Fault> {
    if stream.read_u8().await? != VERSION {
        return Err(Fault::Gone);
    }
    let methods = sized(stream).await?;
    let chosen = [NO_AUTHENTICATION, USER_AND_PASSWORD]
        .into_iter()
        .find(|method| methods.contains(method))
        .unwrap_or(NONE_ACCEPTED);
    stream.write_all(&[VERSION, chosen]).await?;
    stream.flush().await?;
    match chosen {
        NONE_ACCEPTED => return Err(Fault::Gone),
        USER_AND_PASSWORD => {
            // RFC 1929.
            if stream.read_u8().await? != 1 {
                return Err(Fault::Gone);
            }
            sized(stream).await?;
            sized(stream).await?;
            stream.write_all(&[1, 0]).await?;
            stream.flush().await?;
        }
        _ => {}
    }
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [version, command, _, kind] = head;
    if version != VERSION {
        return Err(malformed("this is not a SOCKS5 request"));
    }
    let host = match kind {
        1 => {
            let mut address = [0; 4];
            stream.read_exact(&mut address).await?;
            Ok(Host::of(Ipv4Addr::from(address).into()))
        }
        4 => {
            let mut address = [0; 16];
            stream.read_exact(&mut address).await?;
            Ok(Host::of(Ipv6Addr::from(address).into()))
        }
        3 => {
            let name = sized(stream).await?;
            std::str::from_utf8(&name)
                .ok()
                .and_then(|name| name.parse().ok())
                .ok_or_else(|| malformed("this is neither the name of a host nor an address"))
        }
        _ => return Err(malformed("this address type is unknown")),
    };
    let port = stream.read_u16().await?;
    if command != CONNECT {
        let why = "only CONNECT is supported, not BIND or UDP";
        return Err(Fault::Refused(Refusal::Unsupported(why)));
    }
    if port == 0 {
        return Err(malformed("port 0 is not allowed"));
    }
    Ok((host?, port))
}

/// Bytes after their length.
async fn sized(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; stream.read_u8().await?.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Answers a request; 0 means success.
pub(crate) async fn answer(stream: &mut (impl AsyncWrite + Unpin), reply: u8) -> io::Result<()> {
    // The source address of the connection is not revealed.
    stream.write_all(&[VERSION, reply, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(bytes: &[u8]) -> (Result<(Host, u16), Fault>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut reply = Vec::new();
            let mut both = tokio::io::join(bytes, &mut reply);
            let read = question(&mut both).await;
            (read, reply)
        })
    }

    #[test]
    fn requests_are_parsed_or_refused() {
        let name = [&[5, 1, 0, 5, 1, 0, 3, 9][..], b"a.example", &[1, 187]].concat();
        let (read, answer) = ask(&name);
        assert_eq!(read.unwrap(), ("a.example".parse().unwrap(), 443));
        assert_eq!(answer, [5, 0]);
        let user = [&[5, 1, 2, 1, 1, b'u', 0, 5, 1, 0, 1, 10, 0, 0, 1, 0, 80][..]].concat();
        let (read, answer) = ask(&user);
        assert_eq!(read.unwrap(), ("10.0.0.1".parse().unwrap(), 80));
        assert_eq!(answer, [5, 2, 1, 0]);
        for (bytes, reply) in [
            (&[5, 1, 0, 5, 2, 0, 1, 1, 1, 1, 1, 0, 80][..], 7),
            (&[5, 1, 0, 5, 3, 0, 1, 1, 1, 1, 1, 0, 80], 7),
            (&[5, 1, 0, 5, 1, 0, 9, 1, 1, 1, 1, 0, 80], 1),
            (&[5, 1, 0, 5, 1, 0, 1, 1, 1, 1, 1, 0, 0], 1),
            (&[5, 1, 0, 5, 1, 0, 3, 1, b'/', 0, 80], 1),
            (&[5, 1, 0, 5, 1, 0, 3, 1, 0xff, 0, 80], 1),
            (&[5, 1, 0, 4, 1, 0, 1, 1, 1, 1, 1, 0, 80], 1),
        ] {
            let Err(Fault::Refused(refusal)) = ask(bytes).0 else { panic!("{bytes:?}") };
            assert_eq!(refusal.reply(), reply, "{bytes:?}");
        }
        for bytes in [&[4, 1, 0, 80][..], &[5, 1, 1], &[5, 0], &[5, 1, 2, 2, 0, 0], &[5]] {
            assert!(matches!(ask(bytes).0, Err(Fault::Gone)), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = ask(&bytes);
            let _ = ask(&[&[5, 1, 0, 5][..], &bytes].concat());
        }
    }
}
