//! Event streams of streamable HTTP: that of a call, which is taken up again where it breaks, and
//! the one beside, on which a legacy server says what belongs to no call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::Response;

use super::{
    super::{
        call_error::CallError,
        multiplexer::{PendingCall, StreamKind},
        transport::Reply,
    },
    Line,
    client::{EVENTS, content_type},
    sse_reader::{Events, Resume},
};

/// Tries in a row to take up a call's stream that may fail.
const TRIES: u32 = 5;
/// The least pause before the stream beside the calls is opened again, whatever the server says.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// A stream that was open for so long did not fail, even if nothing came on it.
const LONG_LIVED: Duration = Duration::from_secs(30);

impl Line {
    /// Reads events until the answer. Every event is a message of its own and parsed as strictly
    /// as any other.
    pub(super) async fn answer_stream(
        &self,
        begun: &PendingCall,
        response: Response,
    ) -> Result<Reply, CallError> {
        let mut events = Events::of(response, self.board.caps.bytes);
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

    /// Takes up a call's stream that ended, behind the last event that came. The call's own clock
    /// bounds it all.
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
                    return Ok(Events::of(response, self.board.caps.bytes));
                }
                429 | 500.. => {}
                _ => break,
            }
        }
        Err(ended)
    }

    /// Hears what a legacy server says beside its calls, until the line is closed or the server
    /// has no such stream.
    pub(super) async fn hear(self: Arc<Self>) {
        let hearing = async {
            let mut resume = Resume::default();
            let mut failed: u32 = 0;
            // Whether the server has such a stream: it was open once.
            let mut opened = false;
            loop {
                match self.wire.listen(resume.last.as_ref()).await {
                    Ok(response) => match response.status().as_u16() {
                        200 if content_type(&response) == EVENTS => {
                            if (opened || failed > 0) && resume.last.is_none() {
                                self.board.ear.missed();
                            }
                            opened = true;
                            let since = Instant::now();
                            let heard = self.heard(response, &mut resume).await;
                            // What ends at once is tried again as seldom as what fails.
                            let lasted = heard || since.elapsed() >= LONG_LIVED;
                            failed = if lasted { 1 } else { failed + 1 };
                        }
                        // Where no such stream was ever open, the server may know none and have
                        // the session all the same: the next call finds out.
                        404 if opened && self.wire.session.read().is_some() => {
                            self.forgotten();
                            return;
                        }
                        409 | 429 | 500.. => failed += 1,
                        // It has such a stream, but not behind that event.
                        _ if opened => {
                            resume.last = None;
                            self.board.ear.missed();
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

    /// Reads one stream to its end. Whether anything came.
    async fn heard(&self, response: Response, resume: &mut Resume) -> bool {
        let mut events = Events::of(response, self.board.caps.bytes);
        let mut heard = false;
        loop {
            match events.next().await {
                Some(Ok(event)) => {
                    heard = true;
                    resume.note(&event);
                    if !event.data.is_empty() {
                        self.board.take(event.data, StreamKind::Beside).await;
                    }
                }
                Some(Err(failure)) => {
                    tracing::debug!(%failure, "standalone stream of a server ended early");
                    return heard;
                }
                None => return heard,
            }
        }
    }
}
