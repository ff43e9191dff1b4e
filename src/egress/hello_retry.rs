//! Second ClientHello, which a server can request (HelloRetryRequest, RFC 8446, section 4.1.4). It
//! names a server again, and some servers use that name.
//!
//! Only a server's first answer can request it. Until that answer arrives, no other handshake
//! message of the program is forwarded. If the server requests one, the second ClientHello is
//! checked like the first.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    sync::SetOnce,
};

use super::{
    Host, Refusal,
    client_hello::{self, HANDSHAKE, HEAD},
    direction::{Direction, Stop},
    limits::CHUNK_BYTES,
};

/// Random of a ServerHello that requests another ClientHello.
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
const SERVER_HELLO: u8 = 2;
/// Bytes before the random: type, length and version.
const RANDOM_OFFSET: usize = 6;
/// Limit of a record's content in bytes, encrypted or not.
const MAX_RECORD_BYTES: usize = (1 << 14) + 2048;
/// Types of records other than the handshake.
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const DATA: u8 = 23;

/// State that both directions of a connection share.
pub(crate) struct Retry {
    /// Whether the program uses TLS, known after its first byte.
    tls: SetOnce<bool>,
    /// Whether the server sent data before that.
    spoke: AtomicBool,
    /// Whether the server requests another ClientHello, known after its first answer.
    again: SetOnce<bool>,
}

/// Data read from one direction.
enum Read {
    /// A record with its header.
    Record(Vec<u8>),
    /// Data that is not a record.
    Other(Vec<u8>),
    /// All remaining data.
    Rest(Vec<u8>),
}

impl Retry {
    pub fn new() -> Self {
        Self { tls: SetOnce::new(), spoke: AtomicBool::new(false), again: SetOnce::new() }
    }

    /// The program is about to send data, with or without TLS.
    ///
    /// # Errors
    /// [`Refusal`] if TLS begins after other data, because the server's first answer could not be
    /// determined.
    pub fn begins(&self, tls: bool) -> Result<(), Refusal> {
        if tls && self.spoke.load(Ordering::Relaxed) {
            return Err(Refusal::BrokenHello("the server sent data before it".into()));
        }
        let _ = self.tls.set(tls);
        Ok(())
    }

    /// Forwards the program's data after its ClientHello, until the server can no longer request
    /// another one.
    pub async fn up<W: AsyncWrite + Unpin>(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        lane: &mut Direction<'_, W>,
        host: &Host,
    ) -> Result<(), Stop> {
        while self.again.get() != Some(&false) {
            let record = match record(from).await? {
                Read::Record(record) => record,
                Read::Rest(rest) if rest.is_empty() => return Ok(()),
                Read::Other(_) | Read::Rest(_) => {
                    let why = "it is not followed by TLS".to_owned();
                    return Err(Stop::Refused(Refusal::BrokenHello(why)));
                }
            };
            let is_second = record.first() == Some(&HANDSHAKE) && *self.again.wait().await;
            if is_second {
                client_hello::check(&record, host).map_err(Stop::Refused)?;
            }
            lane.deliver(&record).await?;
            if is_second {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Forwards the server's data until it has answered the ClientHello, or while it is unknown
    /// whether there will be one.
    pub async fn down<W: AsyncWrite + Unpin>(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        lane: &mut Direction<'_, W>,
    ) -> Result<(), Stop> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let tls = loop {
            tokio::select! {
                biased;
                tls = self.tls.wait() => break *tls,
                read = from.read(&mut buffer) => {
                    self.spoke.store(true, Ordering::Relaxed);
                    match read? {
                        0 => return Ok(()),
                        read => lane.deliver(&buffer[..read]).await?,
                    }
                }
            }
        };
        while tls && self.again.get().is_none() {
            let (bytes, again) = match record(from).await? {
                Read::Record(record) => {
                    let again = asks_again(&record).map_err(Stop::Refused)?;
                    (record, again)
                }
                Read::Other(bytes) | Read::Rest(bytes) => (bytes, Some(false)),
            };
            // Before the program can know it.
            if let Some(again) = again {
                let _ = self.again.set(again);
            }
            if !bytes.is_empty() {
                lane.deliver(&bytes).await?;
            }
        }
        Ok(())
    }
}

/// Whether a server's record requests another ClientHello. `None` if it does not decide that.
fn asks_again(record: &[u8]) -> Result<Option<bool>, Refusal> {
    match record {
        [CHANGE_CIPHER_SPEC | ALERT, ..] => Ok(None),
        [HANDSHAKE, ..] => {
            let content = record.get(HEAD..).unwrap_or_default();
            let random = content.get(RANDOM_OFFSET..RANDOM_OFFSET + RETRY.len());
            match (content.first(), random) {
                (Some(&SERVER_HELLO), Some(random)) => Ok(Some(random == RETRY)),
                _ => Err(Refusal::BrokenHello("the server's answer to it cannot be parsed".into())),
            }
        }
        _ => Ok(Some(false)),
    }
}

/// Reads a record, or data that is not one.
async fn record(from: &mut (impl AsyncRead + Unpin)) -> Result<Read, Stop> {
    let mut bytes = Vec::with_capacity(HEAD);
    if fill(from, &mut bytes, HEAD).await? {
        return Ok(Read::Rest(bytes));
    }
    let length = match bytes[..] {
        [CHANGE_CIPHER_SPEC..=DATA, 3, _, high, low] => {
            usize::from(u16::from_be_bytes([high, low]))
        }
        _ => return Ok(Read::Other(bytes)),
    };
    if length > MAX_RECORD_BYTES {
        return Ok(Read::Other(bytes));
    }
    if fill(from, &mut bytes, HEAD + length).await? {
        return Ok(Read::Rest(bytes));
    }
    Ok(Read::Record(bytes))
}

/// Reads until this number of bytes is available. Returns whether the stream ended before.
async fn fill(
    from: &mut (impl AsyncRead + Unpin),
    bytes: &mut Vec<u8>,
    size: usize,
) -> Result<bool, Stop> {
    let missing = size.saturating_sub(bytes.len());
    let missing = u64::try_from(missing).unwrap_or(u64::MAX);
    let read = from.take(missing).read_to_end(bytes).await?;
    Ok(u64::try_from(read).unwrap_or(u64::MAX) < missing)
}
