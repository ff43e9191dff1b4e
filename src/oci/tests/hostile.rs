//! Hostile registries.

mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use portcullis_oci::{
    Client, Descriptor, Digest, Error, Limits, Logins, Platform, Reference, Settings,
};
use serde_json::json;
use tempfile::TempDir;

const KIND: &str = "application/vnd.oci.image.manifest.v1+json";

/// Server with scripted answers, and the requests it got.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<(String, HeaderMap)>>>,
}

impl Server {
    async fn start(
        answer: impl Fn(&str, &HeaderMap) -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        let app = axum::Router::new().fallback(move |request: Request| {
            let path = request.uri().to_string();
            let answered = answer(&path, request.headers());
            log.lock().expect("the log").push((path, request.headers().clone()));
            async move { answered }
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, requests }
    }

    fn reference(&self, digest: Digest) -> Reference {
        format!("{}/acme/words:1@{digest}", self.address).parse().expect("a reference")
    }

    fn received_header(&self, header: header::HeaderName) -> bool {
        self.requests
            .lock()
            .expect("the log")
            .iter()
            .any(|(_, headers)| headers.contains_key(&header))
    }
}

fn client() -> Client {
    with(Logins::Nobody)
}

fn with(logins: Logins) -> Client {
    let limits = Limits {
        manifest: 64 << 10,
        blobs: 64 << 10,
        layers: 4,
        idle: Duration::from_millis(500),
        total: Duration::from_secs(2),
    };
    Client::new(Settings { logins, limits, ..Settings::default() }).expect("a client")
}

fn docker(server: &Server, password: &str) -> (TempDir, Client) {
    let folder = support::docker_config(&server.address.to_string(), "tester", password);
    let client = with(Logins::DockerIn(folder.path().to_owned()));
    (folder, client)
}

fn manifest(layers: &[Descriptor]) -> Bytes {
    let config = Descriptor::of("application/vnd.oci.empty.v1+json", b"{}");
    json!({ "schemaVersion": 2, "mediaType": KIND, "config": config, "layers": layers })
        .to_string()
        .into()
}

fn moved(to: &str) -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to.to_owned())]).into_response()
}

fn challenge(words: &str) -> Response {
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, words.to_owned())]).into_response()
}

fn endless(chunk: Bytes, pause: Duration) -> Response {
    let chunks = stream::unfold((), move |()| {
        let chunk = chunk.clone();
        async move {
            tokio::time::sleep(pause).await;
            Some((Ok::<_, std::io::Error>(chunk), ()))
        }
    });
    Body::from_stream(chunks).into_response()
}

async fn refused(server: &Server, client: &Client, digest: Digest) -> Error {
    client
        .pull(&server.reference(digest), |one| one.media_type == "text/plain")
        .await
        .expect_err("taken")
}

#[tokio::test]
async fn content_with_another_digest_is_refused() {
    let server = Server::start(|_, _| manifest(&[]).into_response()).await;
    let expected_digest = Digest::of(b"another");
    let error = refused(&server, &client(), expected_digest).await;
    assert!(
        matches!(error, Error::Digest { what: "the manifest", expected, .. } if expected == expected_digest),
        "{error}"
    );
    // Whatever the header states.
    let server = Server::start(move |_, _| {
        ([("docker-content-digest", expected_digest.to_string())], manifest(&[])).into_response()
    })
    .await;
    let error = refused(&server, &client(), expected_digest).await;
    assert!(matches!(error, Error::Digest { .. }), "{error}");
}

#[tokio::test]
async fn oversized_answers_are_refused() {
    // A gigabyte, announced in a header and not announced.
    let large = Server::start(|_, _| {
        let body = endless(vec![b' '; 1 << 16].into(), Duration::ZERO).into_body();
        ([(header::CONTENT_LENGTH, "1073741824")], body).into_response()
    })
    .await;
    let silent = Server::start(|_, _| endless(vec![b' '; 1 << 16].into(), Duration::ZERO)).await;
    for server in [&large, &silent] {
        let error = refused(server, &client(), Digest::of(b"")).await;
        assert!(matches!(error, Error::TooLarge { what: "the manifest", .. }), "{error}");
    }

    // An endless blob, for which the manifest states a few bytes.
    let text = manifest(&[Descriptor::of("text/plain", b"few")]);
    let digest = Digest::of(&text);
    let server = Server::start(move |path, _| match path.contains("/manifests/") {
        true => text.clone().into_response(),
        false => endless("more and more ".into(), Duration::ZERO),
    })
    .await;
    let error = refused(&server, &client(), digest).await;
    assert!(matches!(error, Error::TooLarge { what: "the blob", most: 3 }), "{error}");

    // A manifest that exceeds a limit: none of its content is requested.
    let mut huge = Descriptor::of("text/plain", b"");
    huge.size = u64::MAX;
    let few = Descriptor::of("text/plain", b"few");
    for (layers, message) in
        [(vec![huge.clone(), huge], "the artifact is larger"), (vec![few; 5], "it has 5 layers")]
    {
        let text = manifest(&layers);
        let digest = Digest::of(&text);
        let server = Server::start(move |_, _| text.clone().into_response()).await;
        let error = refused(&server, &client(), digest).await;
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(server.requests.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn silent_and_slow_registries_time_out() {
    let silent = Server::start(|_, _| endless(Bytes::new(), Duration::from_secs(3600))).await;
    let slow = Server::start(|_, _| endless(" ".into(), Duration::from_millis(20))).await;
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mute = Server { address: mute.local_addr().expect("an address"), requests: Arc::default() };
    for (server, idle) in [(&silent, true), (&slow, false)] {
        let error = refused(server, &client(), Digest::of(b"")).await;
        let within = Duration::from_millis(if idle { 500 } else { 2000 });
        assert!(matches!(error, Error::Late { within: limit, .. } if limit == within), "{error:?}");
    }
    let error = refused(&mute, &client(), Digest::of(b"")).await;
    assert!(matches!(error, Error::Late { .. }), "{error}");
}

#[tokio::test]
async fn index_in_place_of_an_artifact_is_refused() {
    let text = json!({ "schemaVersion": 2, "manifests": [] }).to_string();
    let digest = Digest::of(text.as_bytes());
    let server = Server::start(move |_, _| text.clone().into_response()).await;
    let error = refused(&server, &client(), digest).await;
    assert!(matches!(error, Error::Index(_)), "{error}");

    for text in ["", "{}", "[]", "null", "<html>", "{\"layers\":[]}"] {
        let server = Server::start(move |_, _| text.into_response()).await;
        let error = refused(&server, &client(), Digest::of(text.as_bytes())).await;
        assert!(matches!(error, Error::NoArtifact { .. }), "{text}: {error}");
    }
}

#[tokio::test]
async fn forbidden_redirects_are_refused() {
    let digest = Digest::of(b"");
    let around = Server::start(|path, _| moved(path)).await;
    let error = refused(&around, &client(), digest).await;
    assert!(error.to_string().contains("too many redirects"), "{error}");
    assert_eq!(around.requests.lock().unwrap().len(), 6);

    for (to, message) in [
        ("http://example.invalid/x", "without TLS"),
        ("file:///etc/passwd", "other than HTTP"),
        ("https://user:word@example.invalid/", "contains a login"),
        ("http://", "without a target"),
    ] {
        let server = Server::start(move |_, _| moved(to)).await;
        let error = refused(&server, &client(), digest).await;
        assert!(
            matches!(error, Error::RedirectRefused { .. }) && error.to_string().contains(message),
            "{error}"
        );
    }
}

#[tokio::test]
async fn login_is_sent_to_its_registry_only() {
    let password = support::password();
    // Host of the blobs, which asks for a login of its own.
    let text = manifest(&[Descriptor::of("text/plain", b"few")]);
    let digest = Digest::of(&text);
    let elsewhere = Server::start(|_, _| challenge("Basic realm=\"give it to me\"")).await;
    let there = elsewhere.address;
    let server = Server::start(move |path, headers| {
        match (headers.contains_key(header::AUTHORIZATION), path.contains("/manifests/")) {
            (false, _) => challenge("Basic realm=\"registry\""),
            (true, true) => text.clone().into_response(),
            (true, false) => moved(&format!("http://{there}/blob?token=signed")),
        }
    })
    .await;
    let (_folder, client) = docker(&server, &password);
    let error = refused(&server, &client, digest).await;
    assert!(matches!(error, Error::Failed { status: 401, .. }), "{error}");
    // Nor is the operator advised to log in there.
    let message = format!("{error} {error:?} {}", error.help());
    assert!(
        !message.contains(&there.to_string()) && !message.contains("docker login"),
        "{message}"
    );
    assert!(
        server.received_header(header::AUTHORIZATION)
            && !elsewhere.received_header(header::AUTHORIZATION)
    );
    assert!(!format!("{error:?}").contains("signed"), "{error:?}");

    // Without a challenge, no login is sent either.
    let few = "few";
    let elsewhere = Server::start(move |_, _| few.into_response()).await;
    let there = elsewhere.address;
    let text = manifest(&[Descriptor::of("text/plain", b"few")]);
    let server = Server::start(move |path, headers| {
        match (headers.contains_key(header::AUTHORIZATION), path.contains("/manifests/")) {
            (false, _) => challenge("Basic realm=\"registry\""),
            (true, true) => text.clone().into_response(),
            (true, false) => moved(&format!("http://{there}/blob")),
        }
    })
    .await;
    let (_folder, client) = docker(&server, &password);
    let pinned = server.reference(digest);
    let (_, blobs) = client.pull(&pinned, |one| one.media_type == "text/plain").await.expect("had");
    assert_eq!(blobs[0].1, few);
    assert!(!elsewhere.received_header(header::AUTHORIZATION));
}

#[tokio::test]
async fn login_goes_to_the_token_service_and_never_without_tls() {
    let password = support::password();
    let text = manifest(&[]);
    let digest = Digest::of(&text);
    let service = Server::start(|_, _| {
        let token = ["to", "ken"].concat();
        json!({ "token": token }).to_string().into_response()
    })
    .await;
    let realm = service.address;
    let server = Server::start(move |_, headers| match headers.get(header::AUTHORIZATION) {
        None => challenge(&format!(
            "Bearer realm=\"http://{realm}/token\",service=\"here\",scope=\"repository:other:*\""
        )),
        Some(token) if token == &["Bearer to", "ken"].concat() => text.clone().into_response(),
        Some(_) => StatusCode::FORBIDDEN.into_response(),
    })
    .await;
    let (_folder, client) = docker(&server, &password);
    let pinned = server.reference(digest);
    client.manifest(&pinned).await.expect("had");
    // A token is reused.
    client.manifest(&pinned).await.expect("had");
    {
        let requests = service.requests.lock().expect("whole");
        assert_eq!(requests.len(), 1);
        let (path, headers) = &requests[0];
        assert_eq!(path, "/token?scope=repository%3Aacme%2Fwords%3Apull&service=here");
        assert!(headers.contains_key(header::AUTHORIZATION));
    }

    let server = Server::start(|_, _| {
        challenge("Bearer realm=\"http://example.invalid/token\",service=\"here\"")
    })
    .await;
    let (_folder, client) = docker(&server, &password);
    let error = client.manifest(&server.reference(digest)).await.unwrap_err();
    assert!(matches!(error, Error::RedirectRefused { .. }), "{error}");
}

#[tokio::test]
async fn text_of_a_registry_is_not_repeated() {
    let password = support::password();
    let server = Server::start(|_, headers| match headers.get(header::AUTHORIZATION) {
        None => challenge("Basic realm=\"registry\""),
        Some(login) => {
            let login = login.to_str().expect("text");
            let body = json!({ "errors": [{ "code": login, "message": login, "detail": login }] });
            (StatusCode::INTERNAL_SERVER_ERROR, body.to_string()).into_response()
        }
    })
    .await;
    let (_folder, client) = docker(&server, &password);
    let error = client.manifest(&server.reference(Digest::of(b""))).await.unwrap_err();
    assert!(matches!(error, Error::Failed { status: 500, code: None, .. }), "{error}");
    let seen = server.requests.lock().unwrap();
    let login = seen.last().and_then(|(_, headers)| headers.get(header::AUTHORIZATION).cloned());
    let login = login.expect("it was told").to_str().expect("text").to_owned();
    let message = format!("{error} {error:?} {}", error.help());
    assert!(!message.contains(&login) && !message.contains(&password), "{message}");
}

#[tokio::test]
async fn files_are_limited_too() {
    let server = Server::start(|path, _| match path {
        "/there" => moved("/few"),
        "/few" => "few".into_response(),
        "/many" => endless("many ".into(), Duration::ZERO),
        _ => moved("http://example.invalid/"),
    })
    .await;
    let url = |path: &str| format!("http://{}{path}", server.address).parse().expect("a URL");
    assert_eq!(client().file(&url("/there"), 3).await.expect("had"), "few");
    for path in ["/few", "/many"] {
        let error = client().file(&url(path), 2).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { what: "the file", most: 2 }), "{error}");
    }
    let error = client().file(&url("/away"), 3).await.unwrap_err();
    assert!(matches!(error, Error::RedirectRefused { .. }), "{error}");
    let plain = "http://example.invalid/few".parse().expect("a URL");
    let error = client().file(&plain, 3).await.unwrap_err();
    assert!(matches!(error, Error::RedirectRefused { .. }), "{error}");
}

#[tokio::test]
async fn invalid_answers_are_errors() {
    let known: BTreeMap<u16, &str> = BTreeMap::from([
        (404, "not in the registry"),
        (403, "does not permit you to read this"),
        (429, "answered 429 (TOOMANYREQUESTS)"),
        (503, "answered 503"),
        (201, "answered 201"),
    ]);
    for (status, message) in known {
        let body = json!({ "errors": [{ "code": "TOOMANYREQUESTS", "message": "slow down" }] });
        let body = if status == 429 { body.to_string() } else { String::new() };
        let status = StatusCode::from_u16(status).expect("a status");
        let server = Server::start(move |_, _| (status, body.clone()).into_response()).await;
        let error = client().manifest(&server.reference(Digest::of(b""))).await.unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    // A token for anonymous clients is not a login.
    let service =
        Server::start(|_, _| json!({ "access_token": "anybody" }).to_string().into_response())
            .await;
    let realm = service.address;
    let server = Server::start(move |_, headers| match headers.get(header::AUTHORIZATION) {
        None => challenge(&format!("Bearer realm=\"http://{realm}/\"")),
        Some(_) => StatusCode::FORBIDDEN.into_response(),
    })
    .await;
    let error = client().manifest(&server.reference(Digest::of(b""))).await.unwrap_err();
    assert!(matches!(error, Error::Denied { with_login: false, .. }), "{error}");
    assert!(error.help().contains("docker login"), "{}", error.help());

    let bare = Server::start(|_, _| StatusCode::UNAUTHORIZED.into_response()).await;
    let error = client().manifest(&bare.reference(Digest::of(b""))).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn documents_that_repeat_a_login_are_not_shown() {
    let (password, held) = (support::password(), Arc::new(Mutex::new(Bytes::new())));
    // The tag returns a document that contains the login, and so does that document's digest.
    let given = held.clone();
    let server = Server::start(move |path, headers| {
        let Some(login) = headers.get(header::AUTHORIZATION) else {
            return challenge("Basic realm=\"registry\"");
        };
        let login = login.to_str().expect("text");
        let config = Descriptor::of(KIND, b"{}");
        let text = match path.contains("/referrers/") {
            true => json!({ "schemaVersion": 2, "manifests": login }),
            false => json!({ "schemaVersion": login, "config": config, "layers": [] }),
        };
        let text = Bytes::from(text.to_string());
        *given.lock().expect("the text") = text.clone();
        text.into_response()
    })
    .await;
    let (_folder, client) = docker(&server, &password);
    let tagged: Reference = format!("{}/acme/words:1", server.address).parse().expect("one");
    let pinned = tagged.pinned(client.resolve(&tagged).await.expect("resolved"));
    let manifest = client.manifest(&pinned).await.unwrap_err();
    assert!(matches!(manifest, Error::NoArtifact { .. }), "{manifest}");
    let referrers = client.referrers(&pinned, None).await.unwrap_err();
    assert!(matches!(referrers, Error::Protocol { .. }), "{referrers}");
    let requests = server.requests.lock().unwrap();
    let login = requests.last().and_then(|(_, headers)| headers.get(header::AUTHORIZATION));
    let login = login.expect("it was told").to_str().expect("text").replace("Basic ", "");
    assert!(String::from_utf8_lossy(&held.lock().unwrap()).contains(&login));
    for error in [manifest, referrers] {
        let message = format!("{error} {error:?} {}", error.help());
        assert!(!message.contains(&login) && message.contains("line 1"), "{message}");
    }
}

#[tokio::test]
async fn names_of_redirect_targets_are_not_shown() {
    // Target of a redirect that does not resolve.
    let server = Server::start(|path, _| match path {
        "/v2/acme/words/manifests/1" => moved("https://what-it-heard.invalid/"),
        _ => challenge("Bearer realm=\"https://what-it-heard.invalid/\""),
    })
    .await;
    let tagged: Reference = format!("{}/acme/words:1", server.address).parse().expect("one");
    for error in [
        client().resolve(&tagged).await.unwrap_err(),
        client().manifest(&tagged.pinned(Digest::of(b""))).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unreachable { .. } | Error::Late { .. }), "{error}");
        let message = format!("{error} {error:?} {}", error.help());
        assert!(!message.contains("heard") && message.contains("redirects to"), "{message}");
    }
}

/// Registry with one image: its manifest and its configuration.
async fn image(layers: serde_json::Value, config: serde_json::Value) -> Result<u64, Error> {
    let config = config.to_string();
    let kind = "application/vnd.oci.image.config.v1+json";
    let described = Descriptor::of(kind, config.as_bytes());
    let manifest = json!({ "schemaVersion": 2, "mediaType": KIND, "config": described,
        "layers": layers })
    .to_string();
    let digest = Digest::of(manifest.as_bytes());
    let server = Server::start(move |path, _| {
        let body = if path.contains("/blobs/") { config.clone() } else { manifest.clone() };
        body.into_response()
    })
    .await;
    let found = client().image(&server.reference(digest), &Platform::linux("amd64")).await;
    found.map(|image| image.size)
}

#[tokio::test]
async fn images_with_false_size_or_kind_are_refused() {
    let tar = "application/vnd.oci.image.layer.v1.tar";
    let layer = |size: u64, kind: &str| json!({ "mediaType": kind, "size": size, "digest": Digest::of(b"layer") });
    let amd64 = || json!({ "os": "linux", "architecture": "amd64" });
    let size = image(json!([layer(7, tar)]), amd64()).await.expect("an image");
    assert_eq!(size, 7 + amd64().to_string().len() as u64);

    let words = ["Basic ", "d29yZHM="].concat();
    for (layers, config, why) in [
        (json!([layer(u64::MAX, tar), layer(u64::MAX, tar)]), amd64(), "out of range"),
        (
            json!([{ "mediaType": tar, "size": -1, "digest": Digest::of(b"") }]),
            amd64(),
            "of another form",
        ),
        (
            json!([{ "mediaType": tar, "size": 1e30, "digest": Digest::of(b"") }]),
            amd64(),
            "of another form",
        ),
        (json!(vec![layer(1, tar); 128]), amd64(), "128 layers; the limit is 127"),
        (
            json!([layer(1, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]),
            amd64(),
            "an unsupported kind",
        ),
        (json!([]), json!({ "os": "linux", "architecture": "arm64" }), "only for: linux/arm64"),
        (json!([]), json!({ "os": "windows", "architecture": "amd64" }), "windows/amd64"),
        (
            json!([]),
            json!({ "os": words, "architecture": words }),
            "does not name a known \
            platform",
        ),
        (json!([]), json!({ "architecture": "amd64" }), "does not name a known platform"),
        (json!([]), json!(["linux", "amd64"]), "of another form"),
    ] {
        let error = image(layers, config).await.expect_err(why).to_string();
        assert!(error.contains(why) && !error.contains("d29"), "{error}");
    }
}
