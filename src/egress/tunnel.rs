//! Forwarding between a program and a permitted host.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    End, Host, Refusal, Wire,
    client_hello::{self, HANDSHAKE},
    connect::{AttemptGuard, Connection, Shared},
    direction::{Activity, Direction, Stop},
    hello_retry::Retry,
    limits,
};

/// Time for a program to read its refusal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Limit of the program's bytes that are discarded meanwhile.
const MAX_DRAINED_BYTES: u64 = 64 << 10;

/// Beginning of a connection.
#[derive(Clone, Copy)]
pub(crate) enum Opening<'a> {
    /// Plain text.
    Clear,
    /// A ClientHello for this host, already read and checked.
    Hello(&'a [u8], &'a Host),
    /// Unknown. Data that looks like TLS is for this host.
    Unknown(&'a Host),
}

/// Forwards a connection from its first to its last byte, and returns how it ended. `begun` is data
/// that was already read and checked.
pub(crate) async fn carry(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    direction: Connection,
    begun: Option<Vec<u8>>,
    shared: &Shared,
) {
    let Connection { stream: mut upstream, host, wire, ticket } = direction;
    let begun = match (wire, begun) {
        (Wire::Tls, None) => {
            let read = client_hello::read(&mut client, &[], &host);
            tokio::select! {
                read = timeout(shared.limits.handshake, read) => {
                    read.unwrap_or(Err(Refusal::Slow)).map(Some)
                }
                why = ticket.revoked() => return ticket.ended(End::Revoked(why)),
                () = shared.stop.cancelled() => return ticket.ended(End::Stopped),
            }
        }
        (_, begun) => Ok(begun),
    };
    let begun = match begun {
        Ok(begun) => begun,
        Err(refusal) => {
            ticket.refused(&refusal);
            drop(upstream);
            write_refusal(client, &refusal).await;
            return;
        }
    };
    let opening = match (&begun, wire) {
        (Some(hello), _) => Opening::Hello(hello, &host),
        (None, Wire::Http) => Opening::Clear,
        (None, Wire::Tls | Wire::Tcp) => Opening::Unknown(&host),
    };
    let end = splice(&mut client, &mut upstream, opening, &ticket, shared).await;
    ticket.ended(end.clone());
    drop(upstream);
    if let End::Refused(refusal) = &end {
        write_refusal(client, refusal).await;
    }
}

/// Refuses a TLS connection with an alert, which the program's error shows.
pub(crate) async fn write_refusal(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    refusal: &Refusal,
) {
    let _ = timeout(DRAIN_TIMEOUT, async {
        client.write_all(&client_hello::alert(refusal)).await?;
        client.shutdown().await?;
        // Unread data would cause a reset, and the alert would be lost.
        tokio::io::copy(&mut client.take(MAX_DRAINED_BYTES), &mut tokio::io::sink()).await
    })
    .await;
}

/// Forwards bytes in both directions until both have ended.
pub(crate) async fn splice<C, U>(
    client: &mut C,
    upstream: &mut U,
    opening: Opening<'_>,
    ticket: &AttemptGuard,
    shared: &Shared,
) -> End
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let (mut client_read, client_write) = tokio::io::split(client);
    let (mut upstream_read, upstream_write) = tokio::io::split(upstream);
    let activity = Activity::new();
    let retry = Retry::new();
    let mut there = Direction {
        to: upstream_write,
        direction: limits::FlowDirection::Up,
        count: &ticket.up,
        activity: &activity,
        shared,
    };
    let mut back = Direction {
        to: client_write,
        direction: limits::FlowDirection::Down,
        count: &ticket.down,
        activity: &activity,
        shared,
    };
    let up = async {
        let unknown;
        let (first, host) = match opening {
            Opening::Clear => (&[][..], None),
            Opening::Hello(hello, host) => (hello, Some(host)),
            Opening::Unknown(host) => {
                unknown = begin(&mut client_read, host, shared).await?;
                let is_tls = unknown.first() == Some(&HANDSHAKE);
                (unknown.as_slice(), is_tls.then_some(host))
            }
        };
        retry.begins(host.is_some()).map_err(Stop::Refused)?;
        if !first.is_empty() {
            there.deliver(first).await?;
        }
        if let Some(host) = host {
            retry.up(&mut client_read, &mut there, host).await?;
        }
        there.rest(&mut client_read).await
    };
    let down = async {
        retry.down(&mut upstream_read, &mut back).await?;
        back.rest(&mut upstream_read).await
    };
    let both = async { tokio::try_join!(up, down) };
    tokio::select! {
        // Revocation first: no byte is forwarded after it.
        biased;
        () = shared.stop.cancelled() => End::Stopped,
        why = ticket.revoked() => End::Revoked(why),
        done = both => match done {
            Ok(_) => End::Closed,
            Err(Stop::Broken) => End::Broken,
            Err(Stop::Refused(refusal)) => End::Refused(refusal),
        },
        () = activity.idle(shared) => End::Idle,
    }
}

/// Reads the beginning of a connection of unknown protocol: if it is TLS, it is for this host.
async fn begin(
    client: &mut (impl AsyncRead + Unpin),
    host: &Host,
    shared: &Shared,
) -> Result<Vec<u8>, Stop> {
    let mut first = vec![0];
    if client.read(&mut first).await? == 0 {
        return Ok(Vec::new());
    }
    if first != [HANDSHAKE] {
        return Ok(first);
    }
    // For any claimed version, because some TLS parsers ignore it.
    let rest = timeout(shared.limits.handshake, client_hello::read(client, &first, host)).await;
    rest.unwrap_or(Err(Refusal::Slow)).map_err(Stop::Refused)
}
