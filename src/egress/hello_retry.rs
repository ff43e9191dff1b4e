//! The second beginning of TLS, which a server may ask for (HelloRetryRequest, RFC 8446, section
//! 4.1.4): it names a server once more, and there are servers that go by that name.
//!
//! Only a server's first answer can ask for it. Until that is here, the program hands on no other
//! message of the handshake; if it asks, the next one is held to be what the first one was held to be.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    sync::SetOnce,
};

use super::{
    Host, Refusal,
    client_hello::{self, HANDSHAKE, HEAD},
    limits::CHUNK,
    tunnel::{Direction, Stop},
};

/// The random of a ServerHello that asks for another ClientHello.
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
const SERVER_HELLO: u8 = 2;
/// Before the random: type, length and version.
const BEFORE: usize = 6;
/// Content of one record, encrypted or not.
const MOST: usize = (1 << 14) + 2048;
/// Records of other kinds than the handshake.
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const DATA: u8 = 23;

/// What both directions of a connection need to know of each other.
pub(crate) struct Retry {
    /// Whether the program speaks TLS, once it has said something.
    tls: SetOnce<bool>,
    /// The server said something before that.
    spoke: AtomicBool,
    /// Whether the server asks for another beginning, once it has answered the first.
    again: SetOnce<bool>,
}

/// What is read of a direction.
enum Read {
    /// A record, with its head.
    Record(Vec<u8>),
    /// What is none.
    Other(Vec<u8>),
    /// All that was left.
    Rest(Vec<u8>),
}

impl Retry {
    pub fn new() -> Self {
        Self { tls: SetOnce::new(), spoke: AtomicBool::new(false), again: SetOnce::new() }
    }

    /// The program is about to say something, in TLS or not.
    ///
    /// # Errors
    /// [`Refusal`] where TLS begins in the middle of something else, where nobody could tell which
    /// answer is the server's first.
    pub fn begins(&self, tls: bool) -> Result<(), Refusal> {
        if tls && self.spoke.load(Ordering::Relaxed) {
            return Err(Refusal::BrokenHello("the server has spoken before it".into()));
        }
        let _ = self.tls.set(tls);
        Ok(())
    }

    /// Hands on what a program says behind its ClientHello, until nothing can be asked of it any more.
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
                    let why = "what follows it is no TLS".to_owned();
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

    /// Hands on what a server says, until it has answered the beginning of TLS, or for as long as
    /// nobody knows whether there will be one.
    pub async fn down<W: AsyncWrite + Unpin>(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        lane: &mut Direction<'_, W>,
    ) -> Result<(), Stop> {
        let mut buffer = vec![0; CHUNK];
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
            // Before the program can know.
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

/// Whether a record of a server asks for another ClientHello; nothing where it says neither.
fn asks_again(record: &[u8]) -> Result<Option<bool>, Refusal> {
    match record {
        [CHANGE_CIPHER_SPEC | ALERT, ..] => Ok(None),
        [HANDSHAKE, ..] => {
            let content = record.get(HEAD..).unwrap_or_default();
            let random = content.get(BEFORE..BEFORE + RETRY.len());
            match (content.first(), random) {
                (Some(&SERVER_HELLO), Some(random)) => Ok(Some(random == RETRY)),
                _ => Err(Refusal::BrokenHello("the server's answer to it is not readable".into())),
            }
        }
        _ => Ok(Some(false)),
    }
}

/// Reads a record, or what is none.
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
    if length > MOST {
        return Ok(Read::Other(bytes));
    }
    if fill(from, &mut bytes, HEAD + length).await? {
        return Ok(Read::Rest(bytes));
    }
    Ok(Read::Record(bytes))
}

/// Reads until there are so many bytes; tells whether it ended before.
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
