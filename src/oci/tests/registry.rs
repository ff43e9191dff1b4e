//! A real registry: Debian's docker-registry.

mod support;

use std::{collections::BTreeMap, fs};

use portcullis_oci::{
    Artifact, Client, Descriptor, Digest, EMPTY, Error, Limits, Logins, Reference, Settings, Store,
};
use support::{Door, Registry};

const LAYER: &str = "application/x-words";

fn artifact(words: &str) -> Artifact {
    Artifact {
        artifact_type: Some("application/x-test".into()),
        config: (EMPTY.into(), "{}".into()),
        layers: vec![(LAYER.into(), words.to_owned().into())],
        annotations: BTreeMap::from([("org.example.note".into(), "two\nlines".into())]),
        subject: None,
    }
}

fn reference(registry: &Registry, rest: &str) -> Reference {
    format!("{}/{rest}", registry.host()).parse().expect("a reference")
}

fn anonymous() -> Client {
    Client::new(Settings { logins: Logins::Nobody, ..Settings::default() }).expect("a client")
}

fn words(one: &Descriptor) -> bool {
    one.media_type == LAYER
}

#[tokio::test]
async fn pushed_artifact_is_pulled_by_its_digest() {
    let registry = Registry::start(&Door::default());
    let (client, tagged) = (anonymous(), reference(&registry, "acme/words:1.0"));
    let pushed = client.push(&tagged, &artifact("hello")).await.expect("pushed");
    assert_eq!(client.resolve(&tagged).await.expect("resolved"), pushed);

    let pinned = tagged.pinned(pushed);
    let (pulled, blobs) = client.pull(&pinned, words).await.expect("pulled");
    assert_eq!((pulled.digest, Digest::of(&pulled.bytes)), (pushed, pushed));
    assert_eq!(pulled.manifest.artifact_type(), "application/x-test");
    assert_eq!(pulled.manifest.annotations["org.example.note"], "two\nlines");
    assert_eq!(blobs.len(), 1);
    assert_eq!(blobs[0].1, "hello");

    // The tag moves, the digest does not.
    let newer = client.push(&tagged, &artifact("bye")).await.expect("pushed");
    assert_ne!(newer, pushed);
    assert_eq!(client.resolve(&tagged).await.expect("resolved"), newer);
    assert_eq!(client.pull(&pinned, words).await.expect("pulled").1[0].1, "hello");

    let unpinned = client.pull(&tagged, words).await.unwrap_err();
    assert!(matches!(unpinned, Error::Unpinned(_)), "{unpinned}");
    for missing in ["acme/words:9", "acme/none:1"] {
        let missing = client.resolve(&reference(&registry, missing)).await.unwrap_err();
        assert!(matches!(missing, Error::Missing(_)), "{missing}");
    }
    let untagged = client.push(&reference(&registry, &format!("a@{pushed}")), &artifact("x")).await;
    assert!(matches!(untagged, Err(Error::Untagged(_))));
}

#[tokio::test]
async fn blob_changed_in_the_registry_is_refused() {
    let registry = Registry::start(&Door::default());
    let (client, tagged) = (anonymous(), reference(&registry, "acme/words:1.0"));
    let pinned = tagged.pinned(client.push(&tagged, &artifact("hello")).await.expect("pushed"));
    fs::write(registry.blob(&Digest::of(b"hello").hex()), "jello").expect("changed");
    let changed = client.pull(&pinned, words).await.unwrap_err();
    assert!(matches!(changed, Error::Digest { what: "the blob", .. }), "{changed}");
    // Unwanted blobs are not pulled.
    client.pull(&pinned, |_| false).await.expect("pulled");
}

#[tokio::test]
async fn referrers_are_listed() {
    let registry = Registry::start(&Door::default());
    let (client, tagged) = (anonymous(), reference(&registry, "acme/words:1.0"));
    let subject = client.push(&tagged, &artifact("hello")).await.expect("pushed");
    let pinned = tagged.pinned(subject);
    assert_eq!(client.referrers(&pinned, None).await.expect("listed"), []);

    let about = client.manifest(&pinned).await.expect("pulled");
    let about = Descriptor::of("application/vnd.oci.image.manifest.v1+json", &about.bytes);
    let mut pushed = Vec::new();
    for (tag, kind) in [("a", "application/x-one"), ("b", "application/x-two")] {
        let referrer = Artifact {
            artifact_type: Some(kind.into()),
            subject: Some(about.clone()),
            ..artifact(kind)
        };
        let tag = reference(&registry, &format!("acme/words:{tag}"));
        pushed.push(client.push(&tag, &referrer).await.expect("pushed"));
    }
    let digests = |found: Vec<Descriptor>| found.iter().map(|one| one.digest).collect::<Vec<_>>();
    assert_eq!(digests(client.referrers(&pinned, None).await.expect("listed")), pushed);
    let two = client.referrers(&pinned, Some("application/x-two")).await.expect("listed");
    assert_eq!(digests(two), pushed[1..]);
}

#[tokio::test]
async fn docker_login_is_used_and_never_shown() {
    let (user, password) = ("tester".to_owned(), support::password());
    let login = Some((user.clone(), password.clone()));
    let registry = Registry::start(&Door { login, tls: false });
    let tagged = reference(&registry, "acme/words:1.0");
    let with = |folder: &std::path::Path| {
        let logins = Logins::DockerIn(folder.to_owned());
        Client::new(Settings { logins, ..Settings::default() }).expect("a client")
    };

    let stranger = anonymous().push(&tagged, &artifact("hello")).await.unwrap_err();
    assert!(matches!(stranger, Error::NoLogin { .. }), "{stranger}");

    let folder = support::docker_config(&registry.host(), &user, &password);
    let client = with(folder.path());
    let pushed = client.push(&tagged, &artifact("hello")).await.expect("pushed");
    assert_eq!(client.pull(&tagged.pinned(pushed), words).await.expect("pulled").1[0].1, "hello");

    let wrong = support::password();
    let folder = support::docker_config(&registry.host(), &user, &wrong);
    let denied = with(folder.path()).resolve(&tagged).await.unwrap_err();
    assert!(matches!(denied, Error::Denied { with_login: true, .. }), "{denied}");
    let message = format!("{denied} {denied:?} {}", denied.help());
    assert!(!message.contains(&wrong), "{message}");

    // A missing helper differs from a missing login.
    let folder = tempfile::tempdir().expect("a folder");
    let config = serde_json::json!({ "credsStore": "none-of-that-name" });
    fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    let failed = with(folder.path()).resolve(&tagged).await.unwrap_err();
    assert!(matches!(failed, Error::Login { .. }), "{failed}");
}

#[tokio::test]
async fn configured_authority_is_accepted_for_tls() {
    let registry = Registry::start(&Door { login: None, tls: true });
    let tagged = reference(&registry, "acme/words:1.0");
    let authorities = Some(registry.authority());
    let settings = Settings { authorities, logins: Logins::Nobody, ..Settings::default() };
    let client = Client::new(settings).expect("a client");
    let pushed = client.push(&tagged, &artifact("hello")).await.expect("pushed");
    assert_eq!(client.pull(&tagged.pinned(pushed), words).await.expect("pulled").1[0].1, "hello");

    // Another authority's certificate is refused.
    let other = Registry::start(&Door { login: None, tls: true });
    let settings = Settings { authorities: Some(other.authority()), ..Settings::default() };
    let stranger = Client::new(settings).expect("a client").resolve(&tagged).await.unwrap_err();
    assert!(matches!(stranger, Error::Unreachable { .. }), "{stranger}");
    assert!(stranger.help().contains("SSL_CERT_FILE"), "{stranger}: {}", stranger.help());
}

#[tokio::test]
async fn stored_artifact_is_available_without_the_registry() {
    let registry = Registry::start(&Door::default());
    let (client, tagged) = (anonymous(), reference(&registry, "acme/words:1.0"));
    let pinned = tagged.pinned(client.push(&tagged, &artifact("hello")).await.expect("pushed"));
    let folder = tempfile::tempdir().expect("a folder");
    let (store, limits) = (Store::at(folder.path().join("oci")), Limits::default());
    let (_, blobs, fetched) = store.pull(&client, &pinned, &limits, words).await.expect("pulled");
    assert_eq!((&*blobs[0].1, fetched), (&b"hello"[..], true));
    drop(registry);
    let (_, blobs, fetched) = store.pull(&client, &pinned, &limits, words).await.expect("kept");
    assert_eq!((&*blobs[0].1, fetched), (&b"hello"[..], false));

    let stored = store.folder().join("sha256").join(Digest::of(b"hello").hex());
    fs::write(&stored, "jello").expect("changed");
    let changed = store.pull(&client, &pinned, &limits, words).await.unwrap_err();
    assert!(matches!(changed, Error::Changed { .. }), "{changed}");
    fs::remove_file(&stored).expect("removed");
    let gone = store.pull(&client, &pinned, &limits, words).await.unwrap_err();
    assert!(matches!(gone, Error::Unreachable { .. }), "{gone}");
}
