//! Event streams of streamable HTTP: the stream of a call, which is resumed after an interruption,
//! and the standalone stream, on which a legacy server sends messages without a call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{
        call_error::CallError,
        multiplexer::{PendingCall, StreamKind},
        transport::Reply,
    },
    Line,
    client::{EVENTS, Response, content_type},
    sse_reader::{Events, Resume},
};

/// Maximum number of consecutive failed attempts to resume a call's stream.
const TRIES: u32 = 5;
/// Minimum pause before the standalone stream is opened again, also for the server's own value.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// Age from which a stream without events does not count as failed.
const LONG_LIVED: Duration = Duration::from_secs(30);

impl Line {
    /// Reads events until the response. Each event is a message, and is parsed as strictly as any
    /// other.
    pub(super) async fn answer_stream(
        &self,
        begun: &PendingCall,
        response: Response,
    ) -> Result<Reply, CallError> {
        let mut events = Events::of(response, self.multiplexer.caps.bytes);
        let mut resume = Resume::default();
        loop {
            match events.next().await {
                Some(Ok(event)) => {
                    resume.note(&event);
                    if event.data.is_empty() {
                        continue;
                    }
                    if let Some(reply) = self.text(begun, event.data, "an event of it").await? {
                        return Ok(reply);
                    }
                }
                Some(Err(failure @ CallError::Misbehaved(_))) => return Err(failure),
                Some(Err(failure)) => events = self.resumed(&resume, failure).await?,
                None => {
                    let why = "its event stream ended before the answer";
                    events = self.resumed(&resume, CallError::Unavailable(why.into())).await?;
                }
            }
        }
    }

    /// Resumes a call's stream after the last event. The call's deadline bounds all
    /// attempts.
    async fn resumed(&self, resume: &Resume, ended: CallError) -> Result<Events, CallError> {
        let Some(last) = resume.last.as_ref().filter(|_| !self.modern()) else {
            return Err(ended);
        };
        for failed in 0..TRIES {
            tokio::time::sleep(resume.pause(failed)).await;
            let Ok(response) = self.wire.listen(Some(last)).await else { continue };
            match response.status().as_u16() {
                404 if self.wire.session.read().is_some() => return Err(self.forgotten()),
                200 if content_type(&response) == EVENTS => {
                    return Ok(Events::of(response, self.multiplexer.caps.bytes));
                }
                429 | 500.. => {}
                _ => break,
            }
        }
        Err(ended)
    }

    /// Reads the standalone stream of a legacy server, until the transport is closed or the server
    /// has no such stream.
    pub(super) async fn listen(self: Arc<Self>) {
        let hearing = async {
            let mut resume = Resume::default();
            let mut failed: u32 = 0;
            // Whether the stream was open once, which proves that the server has it.
            let mut opened = false;
            loop {
                match self.wire.listen(resume.last.as_ref()).await {
                    Ok(response) => match response.status().as_u16() {
                        200 if content_type(&response) == EVENTS => {
                            if (opened || failed > 0) && resume.last.is_none() {
                                self.multiplexer.sink.missed();
                            }
                            opened = true;
                            let since = Instant::now();
                            let received = self.read_stream(response, &mut resume).await;
                            // A stream that ends at once is retried as rarely as one that fails.
                            let lasted = received || since.elapsed() >= LONG_LIVED;
                            failed = if lasted { 1 } else { failed + 1 };
                        }
                        // If the stream was never open, the server may lack it and still have the
                        // session: the next call finds out.
                        404 if opened && self.wire.session.read().is_some() => {
                            self.forgotten();
                            return;
                        }
                        409 | 429 | 500.. => failed += 1,
                        // The server has the stream, but cannot resume it after that event.
                        _ if opened => {
                            resume.last = None;
                            self.multiplexer.sink.missed();
                            failed += 1;
                        }
                        status => {
                            tracing::debug!(status, "server offers no standalone stream");
                            return;
                        }
                    },
                    Err(_) => failed += 1,
                }
                let pause = resume.pause(failed.saturating_sub(1));
                tokio::time::sleep(pause.max(LEAST_PAUSE)).await;
            }
        };
        tokio::select! {
            () = hearing => {}
            () = self.closing.cancelled() => {}
        }
    }

    /// Reads one stream to its end. Returns whether an event came.
    async fn read_stream(&self, response: Response, resume: &mut Resume) -> bool {
        let mut events = Events::of(response, self.multiplexer.caps.bytes);
        let mut received = false;
        loop {
            match events.next().await {
                Some(Ok(event)) => {
                    received = true;
                    resume.note(&event);
                    if !event.data.is_empty() {
                        self.multiplexer.take(event.data, StreamKind::Unsolicited).await;
                    }
                }
                Some(Err(failure)) => {
                    tracing::debug!(%failure, "standalone stream of a server ended early");
                    return received;
                }
                None => return received,
            }
        }
    }
}
