//! HTTP to hosts that the manifest names ([`Manifest::host`](crate::Manifest::host)) and the operator
//! grants. Redirects are not followed, an answer has at most 1 MiB, and all of it happens within the
//! message's deadline. It does not work in [`Plugin::start`](crate::Plugin::start).

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};

use super::{Fault, bindings::portcullis::interceptor::http as host};

pub use host::{Error, Response};

/// A request that has not been sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request(host::Request);

/// A `GET` of a URL.
pub fn get(url: &str) -> Request {
    Request::new("GET", url)
}

/// A `POST` to a URL.
pub fn post(url: &str) -> Request {
    Request::new("POST", url)
}

impl Request {
    /// A request without headers and body.
    pub fn new(method: &str, url: &str) -> Self {
        Self(host::Request {
            method: method.into(),
            url: url.into(),
            headers: Vec::new(),
            body: None,
            timeout_ms: None,
        })
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.0.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.0.body = Some(body.into());
        self
    }

    /// Sets the body to a value as JSON, and says so in `content-type`.
    ///
    /// # Errors
    /// The value cannot be written as JSON.
    pub fn json<T: Serialize>(self, value: &T) -> Result<Self, Fault> {
        let body = serde_json::to_vec(value)?;
        Ok(self.header("content-type", "application/json").body(body))
    }

    /// Waits so long for the answer, where the message's deadline leaves as much.
    pub fn timeout(mut self, wait: Duration) -> Self {
        self.0.timeout_ms = Some(u32::try_from(wait.as_millis()).unwrap_or(u32::MAX));
        self
    }

    /// Sends it, and waits for the answer.
    ///
    /// # Errors
    /// The host's. An answer with a status such as 500 is no error.
    pub fn send(&self) -> Result<Response, Error> {
        host::send(&self.0)
    }
}

impl Response {
    /// The first header of a name, in whatever case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    /// The body, read from JSON.
    ///
    /// # Errors
    /// The body is not of this type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}
