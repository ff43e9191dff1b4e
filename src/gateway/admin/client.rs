//! Client of the admin socket, for the command line.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;
use tokio_util::{
    codec::{FramedRead, LinesCodec},
    io::StreamReader,
};

use super::{Problem, socket::Address};
use portcullis_config::Config;

/// Limit in bytes of one response.
const ANSWER: usize = 64 << 20;
/// Limit in bytes of one line of a stream.
const LINE: usize = 1 << 20;
/// Time limit for the start of a response.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for requests that copy much data first.
const LONG_PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Why a request has no usable response.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The proxy answered with an error.
    #[error("{}", .0.advice())]
    Problem(Problem),
    /// The proxy is unreachable or disconnected.
    #[error("the proxy does not answer on its admin socket ({0}): is it still running?")]
    Gone(String),
    /// The response is not in the expected form.
    #[error(
        "the running proxy answers in an unexpected way ({0}): is it of the same version as this \
         command?"
    )]
    Unexpected(String),
}

impl Failure {
    /// Whether the proxy reported that the item does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.status == http::StatusCode::NOT_FOUND)
    }
}

fn gone(error: impl std::fmt::Display) -> Failure {
    Failure::Gone(error.to_string())
}

/// A running proxy.
#[derive(Debug, Clone)]
pub struct Client {
    at: At,
}

/// Path of the proxy.
#[derive(Debug, Clone)]
enum At {
    StateDir(PathBuf),
    Socket(PathBuf),
}

impl Client {
    /// Connects to the proxy with this state folder, if it is running.
    pub async fn connect(state_dir: &Path) -> Option<Self> {
        Self::reach(At::StateDir(state_dir.to_owned())).await.ok()
    }

    /// Connects to the proxy with this `admin.socket`.
    ///
    /// # Errors
    /// If no proxy answers there, or if this user may not connect.
    pub async fn connect_socket(socket: &Path) -> io::Result<Self> {
        Self::reach(At::Socket(socket.to_owned())).await
    }

    /// Connects to the proxy with this config, if it is running: over its owner's socket, otherwise
    /// over the socket for users with a role.
    pub async fn find(config: &Config) -> Option<Self> {
        Self::find_at(Some(&config.state_dir), config.admin.socket.as_deref()).await
    }

    /// The same, by the state folder and `admin.socket` of a config.
    pub async fn find_at(state_dir: Option<&Path>, socket: Option<&Path>) -> Option<Self> {
        if let Some(state_dir) = state_dir
            && let Some(client) = Self::connect(state_dir).await
        {
            return Some(client);
        }
        Self::connect_socket(socket?).await.ok()
    }

    /// The path that it was reached at: its state folder, or `admin.socket`.
    pub fn place(&self) -> &Path {
        match &self.at {
            At::StateDir(place) | At::Socket(place) => place,
        }
    }

    /// Its state folder, if it was reached there.
    pub fn state_dir(&self) -> Option<&Path> {
        match &self.at {
            At::StateDir(state_dir) => Some(state_dir),
            At::Socket(_) => None,
        }
    }

    async fn reach(at: At) -> io::Result<Self> {
        dial(&at).await.map(|_| Self { at })
    }

    /// Sends a `GET` and returns the value of the response.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        read(self.send(Method::GET, path, Bytes::new()).await?).await
    }

    /// Sends a value and returns the value of the response.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn post_json<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Failure> {
        read(self.send(Method::POST, path, encode(body)?).await?).await
    }

    /// The same with a time limit that is long enough to copy a log.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn post_json_slowly<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Failure> {
        let request = self.request_in(LONG_PATIENCE, Method::POST, path, &[], encode(body)?);
        read(accepted(request.await?).await?).await
    }

    /// Sends a value and returns the response as a stream of lines.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn stream_lines<B: Serialize + ?Sized>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<Lines, Failure> {
        let answer = self.send(Method::POST, path, encode(body)?).await?;
        let bytes = answer.into_body().into_data_stream().map_err(io::Error::other);
        let codec = LinesCodec::new_with_max_length(LINE);
        Ok(Lines(FramedRead::new(StreamReader::new(bytes), codec).map_err(gone).boxed()))
    }

    /// Sends an MCP message and returns the text of the response, whatever its status.
    ///
    /// # Errors
    /// [`Failure`] if the response is not JSON.
    pub async fn mcp(&self, headers: &[(&str, String)], message: Bytes) -> Result<Bytes, Failure> {
        let mut all = vec![("accept", "application/json".to_owned())];
        all.extend(headers.iter().map(|(name, value)| (*name, value.clone())));
        let answer = self.request(Method::POST, "/mcp", &all, message).await?;
        let status = answer.status();
        let body = collect(answer).await?;
        if body.first() == Some(&b'{') {
            Ok(body)
        } else {
            Err(Failure::Unexpected(format!("it answered {status}")))
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        accepted(self.request(method, path, &[], body).await?).await
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        self.request_in(PATIENCE, method, path, headers, body).await
    }

    async fn request_in(
        &self,
        patience: Duration,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let stream = dial(&self.at).await.map_err(gone)?;
        let exchange = async {
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(gone)?;
            // It ends with the connection, and its errors are returned with the response.
            tokio::spawn(connection);
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::HOST, "portcullis")
                .header(header::CONTENT_TYPE, "application/json");
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            let request =
                request.body(Full::new(body)).map_err(|e| Failure::Unexpected(e.to_string()))?;
            sender.send_request(request).await.map_err(gone)
        };
        tokio::time::timeout(patience, exchange)
            .await
            .map_err(|_| gone(format_args!("no answer in {patience:?}")))?
    }
}

/// A response without a problem.
async fn accepted(answer: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status();
    Err(Failure::Problem(Problem::read(status, &collect(answer).await?)))
}

async fn dial(at: &At) -> io::Result<UnixStream> {
    match at {
        At::StateDir(state_dir) => UnixStream::connect(&Address::of(state_dir)?.path).await,
        At::Socket(path) => UnixStream::connect(path).await,
    }
}

fn encode<B: Serialize + ?Sized>(body: &B) -> Result<Bytes, Failure> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|e| Failure::Unexpected(e.to_string()))
}

async fn collect(answer: Response<Incoming>) -> Result<Bytes, Failure> {
    Ok(Limited::new(answer.into_body(), ANSWER).collect().await.map_err(gone)?.to_bytes())
}

async fn read<T: DeserializeOwned>(answer: Response<Incoming>) -> Result<T, Failure> {
    serde_json::from_slice(&collect(answer).await?).map_err(|e| Failure::Unexpected(e.to_string()))
}

/// A stream of lines.
pub struct Lines(BoxStream<'static, Result<String, Failure>>);

impl Lines {
    /// Waits for the next line. `None` at the end.
    ///
    /// # Errors
    /// [`Failure::Gone`] if the proxy disconnected.
    pub async fn next(&mut self) -> Option<Result<String, Failure>> {
        self.0.next().await
    }

    /// Waits for the next line and reads it as JSON. `None` at the end.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn next_json<T: DeserializeOwned>(&mut self) -> Option<Result<T, Failure>> {
        let line = self.next().await?;
        Some(line.and_then(|line| {
            serde_json::from_str(&line).map_err(|e| Failure::Unexpected(e.to_string()))
        }))
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}
