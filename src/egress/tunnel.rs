//! Bytes between a program and where it was let through to.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, sleep_until, timeout},
};

use super::{
    End, Host, Refusal, Wire,
    hello::{self, HANDSHAKE},
    limits::{self, CHUNK},
    way::{Shared, Ticket, Way},
};

/// For a program to read why it was refused.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes of it that are thrown away meanwhile.
const THROWN_AWAY: u64 = 64 << 10;

/// Carries a connection from its first byte to its last, and says how it ended. `begun` is what was
/// read of it already and was checked.
pub(crate) async fn carry(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    way: Way,
    begun: Option<Vec<u8>>,
    shared: &Shared,
) {
    let Way { stream: mut upstream, host, wire, ticket } = way;
    let first = match (wire, begun) {
        (_, Some(begun)) => Ok(begun),
        (Wire::Tls, None) => {
            let read = hello::read(&mut client, &[], &host);
            tokio::select! {
                read = timeout(shared.limits.handshake, read) => read.unwrap_or(Err(Refusal::Slow)),
                () = shared.stop.cancelled() => return ticket.ended(End::Stopped),
            }
        }
        (Wire::Http | Wire::Tcp, None) => Ok(Vec::new()),
    };
    let first = match first {
        Ok(first) => first,
        Err(refusal) => {
            ticket.refused(&refusal);
            drop(upstream);
            turn_away(client, &refusal).await;
            return;
        }
    };
    // Of a protocol that is not known, TLS is what looks like it.
    let perhaps_tls = (wire == Wire::Tcp && first.is_empty()).then_some(&host);
    let end = splice(&mut client, &mut upstream, &first, perhaps_tls, &ticket, shared).await;
    if let End::Refused(refusal) = &end {
        drop(upstream);
        ticket.ended(end.clone());
        turn_away(client, refusal).await;
    } else {
        ticket.ended(end);
    }
}

/// Ends what began, or should have begun, as TLS, in a way that shows in the program's error.
pub(crate) async fn turn_away(mut client: impl AsyncRead + AsyncWrite + Unpin, refusal: &Refusal) {
    let _ = timeout(LAST_WORDS, async {
        client.write_all(&hello::alert(refusal)).await?;
        client.shutdown().await?;
        // What was not read would make a reset of the end, and the alert would be lost.
        tokio::io::copy(&mut client.take(THROWN_AWAY), &mut tokio::io::sink()).await
    })
    .await;
}

/// Why bytes go no further.
enum Stop {
    Refused(Refusal),
    Broken,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

impl From<limits::Spent> for Stop {
    fn from(_: limits::Spent) -> Self {
        Self::Refused(Refusal::Spent)
    }
}

/// When something was last said.
struct Activity {
    since: Instant,
    last: AtomicU64,
    half: AtomicBool,
}

impl Activity {
    fn new() -> Self {
        Self { since: Instant::now(), last: AtomicU64::new(0), half: AtomicBool::new(false) }
    }

    fn touch(&self) {
        let elapsed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(elapsed, Ordering::Relaxed);
    }

    /// Waits until nothing was said for too long.
    async fn idle(&self, shared: &Shared) {
        loop {
            let patience = match self.half.load(Ordering::Relaxed) {
                true => shared.limits.half_closed,
                false => shared.limits.idle,
            };
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let until = self.since + last + patience;
            if until <= Instant::now() {
                return;
            }
            // One side may have said all before that, which shortens it.
            let look = Instant::now() + shared.limits.half_closed.min(patience);
            sleep_until(until.min(look)).await;
        }
    }
}

/// Hands bytes on in both directions until both have ended.
pub(crate) async fn splice<C, U>(
    client: &mut C,
    upstream: &mut U,
    first: &[u8],
    perhaps_tls: Option<&Host>,
    ticket: &Ticket,
    shared: &Shared,
) -> End
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut upstream_read, mut upstream_write) = tokio::io::split(upstream);
    let activity = Activity::new();
    let up = async {
        let opening;
        let first = match perhaps_tls {
            Some(host) => {
                opening = begin(&mut client_read, host, shared).await?;
                opening.as_slice()
            }
            None => first,
        };
        let (way, count) = (limits::Way::Up, &ticket.up);
        if !first.is_empty() {
            shared.meter.take(way, first.len()).await?;
            upstream_write.write_all(first).await?;
            upstream_write.flush().await?;
            count.fetch_add(bytes(first.len()), Ordering::Relaxed);
            activity.touch();
        }
        pump(&mut client_read, &mut upstream_write, way, count, &activity, shared).await
    };
    let down = pump(
        &mut upstream_read,
        &mut client_write,
        limits::Way::Down,
        &ticket.down,
        &activity,
        shared,
    );
    let both = async { tokio::try_join!(up, down) };
    tokio::select! {
        done = both => match done {
            Ok(_) => End::Closed,
            Err(Stop::Broken) => End::Broken,
            Err(Stop::Refused(refusal)) => End::Refused(refusal),
        },
        () = activity.idle(shared) => End::Idle,
        () = shared.stop.cancelled() => End::Stopped,
    }
}

/// Reads the beginning of something of which only this is known: if it is TLS, it is for this host.
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
    // Whatever version it claims: there are readers of TLS that do not look at that.
    let rest = timeout(shared.limits.handshake, hello::read(client, &first, host)).await;
    rest.unwrap_or(Err(Refusal::Slow)).map_err(Stop::Refused)
}

/// Hands on in one direction until that has ended.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    way: limits::Way,
    count: &AtomicU64,
    activity: &Activity,
    shared: &Shared,
) -> Result<(), Stop> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            activity.half.store(true, Ordering::Relaxed);
            // The other side may have gone already.
            let _ = to.shutdown().await;
            return Ok(());
        }
        activity.touch();
        shared.meter.take(way, read).await?;
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        count.fetch_add(bytes(read), Ordering::Relaxed);
        activity.touch();
    }
}

fn bytes(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
