//! The function by which a plugin sends an HTTP request.

use std::time::Instant;

use super::{
    super::{
        bindings::portcullis::interceptor::http::{Error, Host, Request, Response},
        guest::{Guest, Stage},
        output::excerpt,
    },
    host_services::StubResponse,
    http::{DENIED, MAX_REQUESTS_PER_MESSAGE, ON_TRIAL, OutboundRequest, RESERVED_TIME, exchange},
};

impl Guest {
    async fn request(&mut self, request: Request) -> Result<Response, Error> {
        let shared = self.shared.clone();
        let Some(client) = &shared.http else {
            return Err(Error::Denied("no host is granted".into()));
        };
        if self.stage != Stage::Inspecting {
            return Err(Error::Denied("`http` is available in `inspect` only".into()));
        }
        let outbound = OutboundRequest::read(request)?;
        let (host, port, clear) = outbound.target();
        let scheme = if clear { "http://" } else { "" };
        let shown = format!("{} {scheme}{host}:{port}", outbound.method);
        let shown = excerpt(&self.covered(shown), 128);
        if self.requests.len() >= MAX_REQUESTS_PER_MESSAGE {
            return Err(Error::Denied(format!(
                "the limit is {MAX_REQUESTS_PER_MESSAGE} requests for one message"
            )));
        }
        let granted = client
            .target(host, port, clear)
            .ok_or_else(|| format!("`{scheme}{}:{port}` is not granted", excerpt(host, 128)));
        let granted = granted.and_then(|target| {
            let name = target.destination.name();
            shared.services.may_reach(&shared.entry, name, port).map(|()| target)
        });
        let target = match granted {
            Ok(target) => target,
            Err(why) => {
                self.requests.push(format!("{shown}{DENIED}"));
                return Err(Error::Denied(why));
            }
        };
        if !shared.sends {
            self.requests.push(format!("{shown}{ON_TRIAL}"));
            return Err(Error::Denied("the plugin is in audit mode, so nothing is sent".into()));
        }
        // Recorded even if the request is interrupted.
        self.requests.push(format!("{shown} unanswered"));
        if let Some(canned) = shared.services.answer(outbound.url.as_str()) {
            let StubResponse { status, headers, body } = canned.map_err(Error::Failed)?;
            return Ok(Response { status, headers, body });
        }
        let http_client = target.client()?;
        // Until shortly before the deadline, so that the plugin can react to a timeout.
        let remaining = self.until.saturating_duration_since(Instant::now());
        let wait = remaining.saturating_sub(RESERVED_TIME.min(remaining / 4));
        let wait = outbound.timeout.map_or(wait, |timeout| wait.min(timeout));
        // An instance has one request in flight, and the number of running instances is limited for
        // each caller.
        let done = match tokio::time::timeout(wait, exchange(http_client, outbound)).await {
            Ok(done) => done,
            Err(_) => return Err(Error::Failed("timed out".into())),
        };
        let became = match &done {
            Ok(answer) => format!("{shown} {}", answer.status),
            Err(Error::TooLarge) => format!("{shown} too large"),
            Err(_) => format!("{shown} failed"),
        };
        if let Some(last) = self.requests.last_mut() {
            *last = became;
        }
        done
    }
}

impl Host for Guest {
    async fn send(&mut self, request: Request) -> Result<Response, Error> {
        match self.request(request).await {
            Err(Error::Denied(why)) => Err(Error::Denied(self.covered(why))),
            Err(Error::Invalid(why)) => Err(Error::Invalid(self.covered(why))),
            Err(Error::Failed(why)) => Err(Error::Failed(self.covered(why))),
            other => other,
        }
    }
}
