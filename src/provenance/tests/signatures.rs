//! Which signatures of an image count, with a real registry.

#[path = "../../oci/tests/support/mod.rs"]
mod registry;
#[path = "support/sigstore.rs"]
mod sigstore;

use portcullis_oci::{
    Artifact, Client, Descriptor, Digest, Error as Registry, Logins, Reference, Settings,
};
use portcullis_provenance::{
    By, Error, Provenance, Rejection, SignedContent, Signer, SignerIdentity, Trust, verify,
};
use rcgen::KeyPair;
use registry::Door;
use serde_json::{Value, json};
use sigstore::{
    Asking, BUNDLE, ENVELOPE, ISSUER, Issued, SIGN, SIMPLE, SUBJECT, Sigstore, annotated, base64,
    envelope, keyed, logged_file, logged_statement, pae, payload, push_about, push_bundle,
    push_tag, sign, statement,
};

const SCAN: &str = "https://example.com/scan/v1";
const SIGNED: &str = "dev.cosignproject.cosign/signature";

/// Registry with an image.
struct Place {
    registry: registry::Registry,
    client: Client,
    repository: Reference,
    image: Descriptor,
}

impl Place {
    async fn new() -> Self {
        let registry = registry::Registry::start(&Door::default());
        let client = Client::new(Settings { logins: Logins::Nobody, ..Settings::default() });
        let client = client.expect("a client");
        let repository: Reference =
            format!("{}/acme/app:1", registry.host()).parse().expect("a reference");
        let artifact = Artifact {
            artifact_type: None,
            config: ("application/vnd.oci.image.config.v1+json".into(), "{}".into()),
            layers: vec![],
            annotations: [].into(),
            subject: None,
        };
        let digest = client.push(&repository, &artifact).await.expect("pushed");
        let pulled = client.manifest(&repository.pinned(digest)).await.expect("there");
        let mut image = Descriptor::of("application/vnd.oci.image.manifest.v1+json", &pulled.bytes);
        image.artifact_type = None;
        Self { registry, client, repository, image }
    }

    fn digest(&self) -> Digest {
        self.image.digest
    }

    async fn tag(&self, kind: &str, layers: &[sigstore::Layer]) -> Digest {
        let tag = format!("sha256-{}.{kind}", self.digest().hex());
        push_tag(&self.client, &self.repository, &tag, layers).await
    }

    async fn bundle(&self, bundle: &Value) -> Digest {
        push_bundle(&self.client, &self.repository, &self.image, bundle).await
    }

    async fn look(&self, trust: &Trust) -> Result<Provenance, Error> {
        verify(&self.client, &self.repository, self.digest(), trust).await
    }

    async fn found(&self, trust: &Trust) -> Provenance {
        self.look(trust).await.expect("the registry answers")
    }

    /// Signers and attestations as text.
    async fn says(&self, trust: &Trust) -> Vec<String> {
        let signed_text = |signed: portcullis_provenance::Signed| {
            let what = match signed.what {
                SignedContent::Signature => "signature".to_owned(),
                SignedContent::Attestation { predicate_type, .. } => predicate_type,
            };
            format!("{}: {what}", signed.by.name())
        };
        self.found(trust).await.signed.into_iter().map(signed_text).collect()
    }

    /// Reason why the only found signature is rejected.
    async fn refuses(&self, trust: &Trust) -> Rejection {
        let found = self.found(trust).await;
        assert_eq!(found.signed, []);
        let [rejected] = found.rejected.as_slice() else { panic!("{found:?}") };
        rejected.why.clone()
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn who(pem: String, root: Option<&Sigstore>) -> SignerIdentity {
    SignerIdentity::Key { pem, trusted_root: root.map(|root| root.root().to_string()) }
}

fn trust(signers: &[(&str, SignerIdentity)]) -> Trust {
    let signers: Vec<Signer> = signers
        .iter()
        .map(|(name, who)| Signer { name: (*name).to_owned(), who: who.clone() })
        .collect();
    Trust::new(&signers).expect("signers")
}

fn by_key(key: &KeyPair) -> Trust {
    trust(&[("acme", who(key.public_key_pem(), None))])
}

fn identity(sigstore: &Sigstore, subject: &str) -> SignerIdentity {
    SignerIdentity::Identity {
        issuer: ISSUER.into(),
        subject: subject.parse().expect("a subject"),
        trusted_root: sigstore.root().to_string(),
    }
}

fn by_identity(sigstore: &Sigstore) -> Trust {
    trust(&[("release", identity(sigstore, SUBJECT))])
}

fn simple(payload: &[u8], annotations: Value) -> sigstore::Layer {
    (SIMPLE, payload.to_vec(), annotations)
}

fn not_trusted(why: Rejection) -> String {
    match why {
        Rejection::NotTrusted(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn keys_of_every_kind_count_in_tags_and_bundles() {
    let mut pairs: Vec<KeyPair> =
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
            .into_iter()
            .map(|kind| KeyPair::generate_for(kind).expect("a key"))
            .collect();
    let made = std::process::Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .output()
        .expect("openssl");
    let pem = String::from_utf8(made.stdout).expect("PEM");
    pairs.push(KeyPair::from_pkcs8_pem_and_sign_algo(&pem, &rcgen::PKCS_RSA_SHA256).expect("RSA"));
    for pair in pairs {
        let place = Place::new().await;
        let trusted = by_key(&pair);
        assert_eq!(place.found(&trusted).await, Provenance::default());

        let payload = payload(place.digest());
        place.tag("sig", &[simple(&payload, annotated(&pair, &payload))]).await;
        assert_eq!(place.says(&trusted).await, ["acme: signature"]);
        let attested = statement(&[place.digest()], SCAN, &json!({ "ok": true }));
        let signed = envelope(&attested, &sign(&pair, &pae(&attested)));
        place.tag("att", &[(ENVELOPE, signed.to_string().into(), json!({}))]).await;
        let also = statement(&[place.digest()], "https://example.com/other", &json!({}));
        place.bundle(&keyed(&pair, &also)).await;
        let signature = statement(&[place.digest()], SIGN, &json!({}));
        let at = place.bundle(&keyed(&pair, &signature)).await;
        let says = place.says(&trusted).await;
        let both = [
            "acme: signature",
            "acme: https://example.com/scan/v1",
            "acme: https://example.com/other",
            "acme: signature",
        ];
        assert_eq!(says, both);
        let found = place.found(&trusted).await;
        let what = SignedContent::Attestation {
            predicate_type: SCAN.into(),
            predicate: Some(json!({ "ok": true })),
        };
        assert_eq!(found.signed[1].what, what);
        assert_eq!((found.signed[3].at, found.rejected), (at, vec![]));

        // Another key of the same kind has signed nothing.
        let other = KeyPair::generate().expect("a key");
        let found = place.found(&by_key(&other)).await;
        assert_eq!((found.signed.len(), found.rejected.len()), (0, 4));
    }
}

#[tokio::test]
async fn identities_count_in_tags_and_bundles() {
    let (place, sigstore) = (Place::new().await, Sigstore::new());
    let issued = sigstore.issue(&Asking::default());
    let payload = payload(place.digest());
    place.tag("sig", &[simple(&payload, sigstore.annotations(&issued, &payload))]).await;
    place.bundle(&sigstore.bundle(&issued, &statement(&[place.digest()], SCAN, &json!({})))).await;
    let all = trust(&[
        ("release", identity(&sigstore, SUBJECT)),
        ("any", identity(&sigstore, "https://example.com/acme/**")),
        ("other", identity(&sigstore, "https://example.com/other/**")),
        ("elsewhere", identity(&Sigstore::new(), SUBJECT)),
        ("key", who(key().public_key_pem(), None)),
    ]);
    let found = place.found(&all).await;
    assert_eq!(found.rejected, []);
    let says = place.says(&all).await;
    let expected = [
        "release: signature",
        "any: signature",
        &format!("release: {SCAN}"),
        &format!("any: {SCAN}"),
    ];
    assert_eq!(says, expected);
    let by =
        By::Identity { name: "release".into(), issuer: ISSUER.into(), subject: SUBJECT.into() };
    assert_eq!(found.signed[0].by, by);

    // An e-mail address, and another issuer.
    let place = Place::new().await;
    let ada = sigstore.issue(&Asking { subject: "ada@example.com", ..Asking::default() });
    let mut asking = Asking { subject: "ada@example.com", ..Asking::default() };
    asking.issuer = "https://login.example.com.evil.test";
    let evil = sigstore.issue(&asking);
    let signed = statement(&[place.digest()], SIGN, &json!({}));
    place.bundle(&sigstore.bundle(&evil, &signed)).await;
    let trusted = trust(&[("people", identity(&sigstore, "*@example.com"))]);
    let why = not_trusted(place.refuses(&trusted).await);
    assert!(why.contains(
        "it is of ada@example.com, authenticated by \
        https://login.example.com.evil"
    ));
    place.bundle(&sigstore.bundle(&ada, &signed)).await;
    assert_eq!(place.says(&trusted).await, ["people: signature"]);
}

#[tokio::test]
async fn signature_of_a_platform_manifest_does_not_cover_the_index() {
    let (place, key) = (Place::new().await, key());
    let index = Digest::of(b"an index that names the image");
    let tag = format!("sha256-{}.sig", index.hex());
    let look = async |content: Vec<u8>| {
        let layer = simple(&content, annotated(&key, &content));
        push_tag(&place.client, &place.repository, &tag, &[layer]).await;
        verify(&place.client, &place.repository, index, &by_key(&key)).await.unwrap()
    };
    let found = look(payload(place.digest())).await;
    assert_eq!((found.signed, &found.rejected[0].why), (vec![], &Rejection::OtherImage));
    assert_eq!(look(payload(index)).await.signed.len(), 1);
}

#[tokio::test]
async fn invalid_key_signatures_are_rejected() {
    let (place, acme, evil) = (Place::new().await, key(), key());
    let (trusted, image) = (by_key(&acme), place.digest());
    let (good, other) = (payload(image), payload(Digest::of(b"other")));
    let twice = format!(r#""image":{{"docker-manifest-digest":"{image}"}},"image""#);
    let twice = String::from_utf8(other.clone()).unwrap().replacen("\"image\"", &twice, 1);
    let (signed, content) = (SIGNED, statement(&[image], SIGN, &json!({})));
    let by_acme = || envelope(&content, &sign(&acme, &pae(&content)));
    let mut doubled = by_acme();
    doubled["signatures"] = json!([by_acme()["signatures"][0], by_acme()["signatures"][0]]);
    let mut retyped = by_acme();
    retyped["payloadType"] = "text/plain".into();
    // Signed as bytes, not as a statement.
    let bare = envelope(&content, &sign(&acme, &content));
    let enveloped = |envelope: &Value| (ENVELOPE, envelope.to_string().into(), json!({}));
    let unknown = "not a known signature format";
    let cases = [
        ("another image", simple(&other, annotated(&acme, &other))),
        ("`acme`: it was not made with this key", simple(&good, annotated(&evil, &good))),
        // The payload was changed after signing.
        ("`acme`: it was not made with this key", simple(&good, annotated(&acme, &other))),
        ("it has a duplicate key", simple(twice.as_bytes(), annotated(&acme, twice.as_bytes()))),
        (signed, simple(&good, json!({}))),
        (signed, simple(&good, json!({ signed: "%" }))),
        ("application/vnd.oci.empty", ("text/plain", good.clone(), annotated(&acme, &good))),
        // A statement in place of a payload, and the reverse.
        ("names no image", simple(&content, annotated(&acme, &content))),
        (unknown, (ENVELOPE, good.clone(), annotated(&acme, &good))),
        (unknown, (BUNDLE, by_acme().to_string().into(), json!({}))),
        ("exactly one signature", enveloped(&doubled)),
        ("`payloadType` is not in-toto's", enveloped(&retyped)),
        ("`acme`: it was not made with this key", enveloped(&bare)),
    ];
    for (expected, layer) in cases {
        place.tag("sig", &[layer]).await;
        let why = place.refuses(&trusted).await.to_string();
        assert!(why.contains(expected), "{expected}: {why}");
    }
    // Other uploads beside a valid one do not harm it.
    let layers = [
        simple(&good, annotated(&evil, &good)),
        (ENVELOPE, b"{".to_vec(), json!({})),
        simple(&good, annotated(&acme, &good)),
    ];
    place.tag("sig", &layers).await;
    let found = place.found(&trusted).await;
    assert_eq!((found.signed.len(), found.rejected.len()), (1, 2));
}

#[tokio::test]
async fn uploads_to_the_list_tag_do_not_invalidate_a_signature() {
    let (place, acme) = (Place::new().await, key());
    let (trusted, content) = (by_key(&acme), payload(place.digest()));
    place.tag("sig", &[simple(&content, annotated(&acme, &content))]).await;
    let list = format!("sha256-{}", place.digest().hex());
    let put = |kind: &str, bytes: &[u8]| sigstore::put(&place.repository, &list, kind, bytes);
    // Invalid content with the media type of a list.
    let kind = "application/vnd.oci.image.index.v1+json";
    put(kind, json!({ "schemaVersion": 2, "mediaType": kind }).to_string().as_bytes());
    let found = place.found(&trusted).await;
    assert_eq!((found.signed.len(), found.rejected.len()), (1, 1));
    assert!(matches!(found.rejected[0].why, Rejection::Unread(_)));
}

#[tokio::test]
async fn statement_covers_exactly_its_subjects() {
    let (place, acme, other) = (Place::new().await, key(), Digest::of(b"other"));
    let trusted = by_key(&acme);
    place.bundle(&keyed(&acme, &statement(&[other], SIGN, &json!({})))).await;
    assert_eq!(place.refuses(&trusted).await, Rejection::OtherImage);
    let both = statement(&[other, place.digest()], SIGN, &json!({}));
    place.bundle(&keyed(&acme, &both)).await;
    assert_eq!(place.says(&trusted).await, ["acme: signature"]);
}

#[tokio::test]
async fn invalid_certificates_are_rejected() {
    let sigstore = Sigstore::new();
    let trusted = by_identity(&sigstore);
    let refuses = async |expected: &str, bundle: &dyn Fn(&[u8]) -> Value| {
        let place = Place::new().await;
        let content = statement(&[place.digest()], SIGN, &json!({}));
        place.bundle(&bundle(&content)).await;
        let why = place.refuses(&trusted).await.to_string();
        assert!(why.contains(expected), "{expected}: {why}");
    };
    let issue = |asking: Asking| sigstore.issue(&asking);
    let good = issue(Asking::default());
    refuses("Expired", &|content| {
        sigstore.bundle(&issue(Asking { years: (2020, 2021), ..Asking::default() }), content)
    })
    .await;
    refuses("NotValidYet", &|content| {
        sigstore.bundle(&issue(Asking { years: (2090, 2100), ..Asking::default() }), content)
    })
    .await;
    refuses("missing SCT", &|content| {
        sigstore.bundle(&issue(Asking { stamped: false, ..Asking::default() }), content)
    })
    .await;
    // Authority not in the root, log in the root.
    refuses("certificate chain is invalid", &|content| {
        sigstore.bundle(&Sigstore::new().issue(&Asking::default()), content)
    })
    .await;
    // Authority in the root, log not in the root.
    refuses("No log key", &|content| Sigstore::new().bundle(&good, content)).await;
    refuses("it is of https://example.com/other", &|content| {
        let subject = "https://example.com/other";
        sigstore.bundle(&issue(Asking { subject, ..Asking::default() }), content)
    })
    .await;
    let changed = |change: fn(&mut Value)| {
        let (sigstore, good) = (&sigstore, &good);
        move |content: &[u8]| {
            let mut bundle = sigstore.bundle(good, content);
            change(&mut bundle);
            bundle
        }
    };
    refuses(
        "inclusion proof",
        &changed(|bundle| {
            bundle["verificationMaterial"]["tlogEntries"] = json!([]);
        }),
    )
    .await;
    // Nothing proves the time of signing.
    refuses(
        "timestamp",
        &changed(|bundle| {
            let entry = &mut bundle["verificationMaterial"]["tlogEntries"][0];
            entry.as_object_mut().unwrap().remove("inclusionPromise");
        }),
    )
    .await;
    refuses(
        "inclusion proof",
        &changed(|bundle| {
            let entry = &mut bundle["verificationMaterial"]["tlogEntries"][0];
            entry.as_object_mut().unwrap().remove("inclusionProof");
        }),
    )
    .await;
    refuses(
        "SET",
        &changed(|bundle| {
            let entry = &mut bundle["verificationMaterial"]["tlogEntries"][0];
            entry["integratedTime"] = "1600000000".into();
        }),
    )
    .await;
    refuses(
        "checkpoint",
        &changed(|bundle| {
            let entry = &mut bundle["verificationMaterial"]["tlogEntries"][0];
            entry["inclusionProof"]["rootHash"] = base64([1; 32]).into();
        }),
    )
    .await;
    // A valid entry of another signature of the same signer.
    refuses("does not match", &|content| {
        let mut bundle = sigstore.bundle(&good, content);
        let other = sigstore.bundle(&good, &statement(&[Digest::of(b"other")], SIGN, &json!({})));
        bundle["verificationMaterial"] = other["verificationMaterial"].clone();
        bundle
    })
    .await;
    // The certificate of one signer, the signature of another.
    refuses("ignature", &|content| {
        let mut bundle = sigstore.bundle(&good, content);
        let signature = sign(&key(), &pae(content));
        bundle["dsseEnvelope"] = envelope(content, &signature);
        let body = logged_statement(content, &signature, &good.pem());
        bundle["verificationMaterial"]["tlogEntries"] = json!([sigstore.entry(&body)]);
        bundle
    })
    .await;
    // A bundle version that requires no proof of the log.
    refuses(
        "a bundle of version 0.1",
        &changed(|bundle| {
            bundle["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.1".into();
            let material = &mut bundle["verificationMaterial"];
            let certificate = material.as_object_mut().unwrap().remove("certificate");
            material["x509CertificateChain"] = json!({ "certificates": [certificate] });
            material["tlogEntries"][0].as_object_mut().unwrap().remove("inclusionProof");
        }),
    )
    .await;
    // The other kinds.
    refuses("has no signing certificate", &|content| sigstore.keyed(&key(), content)).await;
    refuses("it signs a file", &|content| {
        let mut bundle = sigstore.bundle(&good, content);
        bundle.as_object_mut().unwrap().remove("dsseEnvelope");
        let digest =
            json!({ "algorithm": "SHA2_256", "digest": base64(Digest::of(content).bytes()) });
        let signature = base64(sign(&good.key, content));
        bundle["messageSignature"] = json!({ "messageDigest": digest, "signature": signature });
        bundle
    })
    .await;
    refuses(
        "not a known signature format",
        &changed(|bundle| {
            bundle["mediaType"] = "application/vnd.dev.sigstore.bundle.v9+json".into();
        }),
    )
    .await;
}

#[tokio::test]
async fn invalid_certificates_in_older_annotations_are_rejected() {
    let sigstore = Sigstore::new();
    let (trusted, good) = (by_identity(&sigstore), sigstore.issue(&Asking::default()));
    let place = Place::new().await;
    let content = payload(place.digest());
    let refuses = async |expected: &str, annotations: Value| {
        place.tag("sig", &[simple(&content, annotations)]).await;
        let why = place.refuses(&trusted).await.to_string();
        assert!(why.contains(expected), "{expected}: {why}");
    };
    let with = |key: &str, value: Value| {
        let mut annotations = sigstore.annotations(&good, &content);
        annotations[format!("dev.sigstore.cosign/{key}")] = value;
        annotations
    };
    let expired = sigstore.issue(&Asking { years: (2020, 2021), ..Asking::default() });
    refuses("Expired", sigstore.annotations(&expired, &content)).await;
    refuses("neither a certificate nor a log entry", annotated(&good.key, &content)).await;
    refuses("inclusion promise", with("bundle", json!(""))).await;
    for none in [json!("{}"), json!("["), json!(r#"{"Payload":1,"Payload":2}"#)] {
        refuses("not a known signature format", with("bundle", none)).await;
    }
    refuses("no signing certificate", with("certificate", json!(""))).await;
    refuses("certificates", with("certificate", json!(good.pem().repeat(9)))).await;
    // The log's entry is for other bytes of the same signer.
    let other = payload(Digest::of(b"other"));
    let body = logged_file(&other, &sign(&good.key, &other), &good.pem());
    refuses("hash mismatch", with("bundle", json!(sigstore.promised(&body).to_string()))).await;
    // A promise of another log.
    let body = logged_file(&content, &sign(&good.key, &content), &good.pem());
    let elsewhere = Sigstore::new().promised(&body).to_string();
    refuses("No log key", with("bundle", json!(elsewhere))).await;
    let stolen = Issued { key: key(), der: good.der.clone() };
    refuses("ignature", sigstore.annotations(&stolen, &content)).await;
    place.tag("sig", &[simple(&content, sigstore.annotations(&good, &content))]).await;
    assert_eq!(place.says(&trusted).await, ["release: signature"]);
}

#[tokio::test]
async fn key_signature_requires_a_log_if_configured() {
    let (place, sigstore, acme) = (Place::new().await, Sigstore::new(), key());
    let logged = trust(&[("acme", who(acme.public_key_pem(), Some(&sigstore)))]);
    let content = statement(&[place.digest()], SIGN, &json!({}));
    place.bundle(&keyed(&acme, &content)).await;
    let why = not_trusted(place.refuses(&logged).await);
    assert!(why.contains("inclusion proof"), "{why}");
    assert_eq!(place.says(&by_key(&acme)).await, ["acme: signature"]);

    let place = Place::new().await;
    let content = statement(&[place.digest()], SIGN, &json!({}));
    place.bundle(&Sigstore::new().keyed(&acme, &content)).await;
    not_trusted(place.refuses(&logged).await);
    place.bundle(&sigstore.keyed(&acme, &content)).await;
    assert_eq!(place.says(&logged).await, ["acme: signature"]);

    let place = Place::new().await;
    let content = payload(place.digest());
    let signature = sign(&acme, &content);
    let promised = sigstore.promised(&logged_file(&content, &signature, &acme.public_key_pem()));
    let mut annotations = annotated(&acme, &content);
    place.tag("sig", &[simple(&content, annotations.clone())]).await;
    not_trusted(place.refuses(&logged).await);
    annotations["dev.cosignproject.cosign/signature"] = base64(&signature).into();
    annotations["dev.sigstore.cosign/bundle"] = promised.to_string().into();
    place.tag("sig", &[simple(&content, annotations)]).await;
    assert_eq!(place.says(&logged).await, ["acme: signature"]);
}

#[tokio::test]
async fn failing_registry_differs_from_an_empty_one() {
    let (place, acme) = (Place::new().await, key());
    let trusted = by_key(&acme);
    let bundle = keyed(&acme, &statement(&[place.digest()], SIGN, &json!({})));
    place.bundle(&bundle).await;
    // Other bytes under the same digest.
    let blob = Digest::of(bundle.to_string().as_bytes()).hex();
    std::fs::write(place.registry.blob(&blob), "x".repeat(bundle.to_string().len())).unwrap();
    let error = place.look(&trusted).await.unwrap_err();
    assert!(matches!(error, Error::Registry(Registry::Digest { .. })), "{error}");
    // The registry has ended.
    let Place { registry, client, repository, image } = place;
    drop(registry);
    let error = verify(&client, &repository, image.digest, &trusted).await.unwrap_err();
    assert!(matches!(error, Error::Registry(Registry::Unreachable { .. })), "{error}");
    // Without trusted signers, the registry is not contacted.
    let nobody = verify(&client, &repository, image.digest, &trust(&[])).await.unwrap();
    assert_eq!(nobody, Provenance::default());
}

#[tokio::test]
async fn search_stops_at_its_limits() {
    let (place, acme, evil) = (Place::new().await, key(), key());
    let trusted = by_key(&acme);
    let content = payload(place.digest());
    // Layers: the client accepts no artifact with more than 64.
    let one = simple(&content, annotated(&evil, &content));
    place.tag("sig", &vec![one.clone(); 65]).await;
    assert!(matches!(place.refuses(&trusted).await, Rejection::Unread(_)));
    // Bytes.
    let large = (SIMPLE, vec![b' '; (4 << 20) + 1], annotated(&acme, b""));
    let small = simple(&content, annotated(&acme, &content));
    place.tag("sig", &[large, small]).await;
    let found = place.found(&trusted).await;
    assert_eq!(found.signed.len(), 1);
    assert_eq!(found.rejected[0].why, Rejection::TooMuch("its layers"));
    // Layers of several artifacts: 64.
    for (before, counts) in [(23, 1), (24, 0)] {
        place.tag("sig", &vec![one.clone(); 40]).await;
        let mut layers = vec![one.clone(); before];
        layers.push(simple(&content, annotated(&acme, &content)));
        place.tag("att", &layers).await;
        let found = place.found(&trusted).await;
        // The number of reported rejections is limited.
        assert_eq!((found.signed.len(), found.rejected.len()), (counts, 63 + (1 - counts)));
        let over = found.rejected.iter().any(|one| one.why == Rejection::TooMuch("its layers"));
        assert_eq!(over, counts == 0);
    }
    // Bytes of several layers: 32 MiB.
    for (size, counts) in [((4 << 20) - 1024, 1), (4 << 20, 0)] {
        let large = (SIMPLE, vec![b' '; size], json!({}));
        let mut layers = vec![large; 8];
        layers.push(simple(&content, annotated(&acme, &content)));
        place.tag("sig", &layers).await;
        place.tag("att", &[]).await;
        assert_eq!(place.found(&trusted).await.signed.len(), counts);
    }
    let large = (SIMPLE, vec![b' '; (4 << 20) + 1], annotated(&acme, b""));
    let small = simple(&content, annotated(&acme, &content));
    place.tag("sig", &[large, small]).await;
    // Artifacts; those that cannot contain signatures are not counted.
    for number in 0..40 {
        let bytes = format!("{number}").into_bytes();
        let to = (&place.client, &place.repository, &place.image);
        push_about(to.0, to.1, to.2, "application/spdx+json", "text/spdx", bytes.clone()).await;
        push_about(to.0, to.1, to.2, BUNDLE, BUNDLE, bytes).await;
    }
    let found = place.found(&trusted).await;
    assert_eq!(found.signed.len(), 1);
    // The large layer, the empty artifact, 30 bundles, and the report that there are more.
    assert_eq!(found.rejected.len(), 33);
    let over = Rejection::TooMuch("the artifacts that refer to it");
    assert!(found.rejected.iter().any(|one| one.why == over));
}
