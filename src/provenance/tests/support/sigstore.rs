//! Stand-in for Sigstore with test keys: an authority that issues certificates to identities, their
//! certificate log, and the log of signatures, as far as verifiers check them. Also the formats
//! that cosign writes.

#![allow(dead_code)]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use portcullis_oci::{Artifact, Client, Descriptor, Digest, EMPTY, Reference};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, PublicKeyData as _, SanType, SerialNumber, SigningKey as _, date_time_ymd,
};
use serde_json::{Value, json};

pub const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
pub const ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
pub const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
const IN_TOTO: &str = "application/vnd.in-toto+json";

pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

pub fn sign(key: &KeyPair, message: &[u8]) -> Vec<u8> {
    key.sign(message).expect("signed")
}

fn id(key: &KeyPair) -> Digest {
    Digest::of(&key.subject_public_key_info())
}

/// Payload of simple signing.
pub fn payload(image: Digest) -> Vec<u8> {
    json!({
        "critical": {
            "identity": { "docker-reference": "" },
            "image": { "docker-manifest-digest": image.to_string() },
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
    .into_bytes()
}

/// Statement about images.
pub fn statement(images: &[Digest], predicate_type: &str, predicate: &Value) -> Vec<u8> {
    let subjects = images.iter().map(|image| json!({ "digest": { "sha256": image.hex() } }));
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": Value::from_iter(subjects),
        "predicateType": predicate_type,
        "predicate": predicate,
    })
    .to_string()
    .into_bytes()
}

/// Signed bytes of a statement (DSSE's PAE).
pub fn pae(payload: &[u8]) -> Vec<u8> {
    [format!("DSSEv1 {} {IN_TOTO} {} ", IN_TOTO.len(), payload.len()).as_bytes(), payload].concat()
}

pub fn envelope(payload: &[u8], signature: &[u8]) -> Value {
    json!({
        "payloadType": IN_TOTO, "payload": base64(payload),
        "signatures": [{ "sig": base64(signature) }],
    })
}

/// Bundle with a statement that a key signed, without a log.
pub fn keyed(key: &KeyPair, payload: &[u8]) -> Value {
    let signature = sign(key, &pae(payload));
    json!({
        "mediaType": BUNDLE,
        "verificationMaterial": { "publicKey": { "hint": "" }, "tlogEntries": [] },
        "dsseEnvelope": envelope(payload, &signature),
    })
}

/// Request for a certificate.
#[derive(Clone)]
pub struct Asking {
    pub issuer: &'static str,
    pub subject: &'static str,
    /// Years in which the certificate is valid, from the first day of the first to that of the
    /// last.
    pub years: (i32, i32),
    /// Whether the certificate log stamps it.
    pub stamped: bool,
}

pub const ISSUER: &str = "https://login.example.com";
pub const SUBJECT: &str = "https://example.com/acme/app/release@refs/tags/v1";

impl Default for Asking {
    fn default() -> Self {
        Self { issuer: ISSUER, subject: SUBJECT, years: (2020, 2100), stamped: true }
    }
}

/// Certificate with its key.
pub struct Issued {
    pub key: KeyPair,
    pub der: Vec<u8>,
}

impl Issued {
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

pub struct Sigstore {
    authority: CertifiedIssuer<'static, KeyPair>,
    certificates: KeyPair,
    log: KeyPair,
}

impl Sigstore {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority of a test");
        let key = || KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key()).expect("an authority");
        Self { authority, certificates: key(), log: key() }
    }

    /// Its `trusted_root.json`.
    pub fn root(&self) -> Value {
        let log = |key: &KeyPair| {
            json!({
                "baseUrl": "https://log.example.com", "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": base64(key.subject_public_key_info()),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": { "start": "2020-01-01T00:00:00Z" },
                },
                "logId": { "keyId": base64(id(key).bytes()) },
            })
        };
        json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(&self.log)],
            "ctlogs": [log(&self.certificates)],
            "certificateAuthorities": [{
                "subject": { "organization": "example.com", "commonName": "authority" },
                "uri": "https://authority.example.com",
                "certChain": { "certificates": [{ "rawBytes": base64(self.authority.der()) }] },
                "validFor": { "start": "2020-01-01T00:00:00Z" },
            }],
        })
    }

    /// Certificate for a request.
    pub fn issue(&self, asking: &Asking) -> Issued {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        let subject = asking.subject.try_into().expect("a subject");
        params.subject_alt_names = vec![match asking.subject.contains("://") {
            true => SanType::URI(subject),
            false => SanType::Rfc822Name(subject),
        }];
        params.not_before = date_time_ymd(asking.years.0, 1, 1);
        params.not_after = date_time_ymd(asking.years.1, 1, 1);
        params.serial_number = Some(SerialNumber::from(7u64));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        let issuer = der(0x0c, asking.issuer.as_bytes());
        params.custom_extensions =
            vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 57264, 1, 8], issuer)];
        let key = KeyPair::generate().expect("a key");
        let issued = |params: &CertificateParams| {
            params.signed_by(&key, &*self.authority).expect("issued").der().to_vec()
        };
        let mut certificate = issued(&params);
        if asking.stamped {
            // The stamp covers the certificate without the stamp.
            let stamp = self.stamp(first(inside(&certificate)));
            let oid = [1, 3, 6, 1, 4, 1, 11129, 2, 4, 2];
            params.custom_extensions.push(CustomExtension::from_oid_content(&oid, stamp));
            certificate = issued(&params);
        }
        Issued { key, der: certificate }
    }

    /// List with the stamp of this certificate, by RFC 6962.
    fn stamp(&self, certificate: &[u8]) -> Vec<u8> {
        let at = (now().as_millis() as u64).to_be_bytes();
        let issuer = Digest::of(&self.authority.key().subject_public_key_info());
        let length = &(certificate.len() as u32).to_be_bytes()[1..];
        let signed: [&[u8]; 8] =
            [&[0, 0], &at, &[0, 1], &issuer.bytes(), length, certificate, &[0, 0], &[]];
        let signature = sign(&self.certificates, &signed.concat());
        let log = id(&self.certificates).bytes();
        let signed = with_length(&signature);
        let one = [&[0][..], &log, &at, &[0, 0, 4, 3], &signed].concat();
        der(0x04, &with_length(&with_length(&one)))
    }

    /// Entry of the signature log, in the format of a bundle.
    pub fn entry(&self, body: &Value) -> Value {
        let kind = json!({ "kind": body["kind"], "version": body["apiVersion"] });
        let body = body.to_string().into_bytes();
        let (time, log) = (now().as_secs() - 1, id(&self.log));
        let root = base64(Digest::of(&[&[0][..], &body].concat()).bytes());
        let note = format!("log.example.com\n1\n{root}\n");
        let hint = &log.bytes()[..4];
        let signed = [hint, &sign(&self.log, note.as_bytes())].concat();
        json!({
            "logIndex": "0",
            "logId": { "keyId": base64(log.bytes()) },
            "kindVersion": kind,
            "integratedTime": time.to_string(),
            "inclusionPromise": { "signedEntryTimestamp": self.promise(&body, time) },
            "inclusionProof": {
                "logIndex": "0", "rootHash": root, "treeSize": "1", "hashes": [],
                "checkpoint": {
                    "envelope": format!("{note}\n\u{2014} log.example.com {}\n", base64(signed)),
                },
            },
            "canonicalizedBody": base64(&body),
        })
    }

    /// Promise of the log, in cosign's format.
    pub fn promised(&self, body: &Value) -> Value {
        let body = body.to_string().into_bytes();
        let time = now().as_secs() - 1;
        json!({
            "SignedEntryTimestamp": self.promise(&body, time),
            "Payload": {
                "body": base64(&body), "integratedTime": time, "logIndex": 0,
                "logID": id(&self.log).hex(),
            },
        })
    }

    fn promise(&self, body: &[u8], time: u64) -> String {
        // Canonical JSON: without spaces, keys in order.
        let (body, log) = (base64(body), id(&self.log).hex());
        let note =
            format!(r#"{{"body":"{body}","integratedTime":{time},"logID":"{log}","logIndex":0}}"#);
        base64(sign(&self.log, note.as_bytes()))
    }

    /// Bundle with a statement that the holder of a certificate signed.
    pub fn bundle(&self, by: &Issued, payload: &[u8]) -> Value {
        let signature = sign(&by.key, &pae(payload));
        let entry = self.entry(&logged_statement(payload, &signature, &by.pem()));
        json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {
                "certificate": { "rawBytes": base64(&by.der) }, "tlogEntries": [entry],
            },
            "dsseEnvelope": envelope(payload, &signature),
        })
    }

    /// Same with a key, in the log.
    pub fn keyed(&self, key: &KeyPair, payload: &[u8]) -> Value {
        let mut bundle = keyed(key, payload);
        let signature = sign(key, &pae(payload));
        bundle["dsseEnvelope"] = envelope(payload, &signature);
        bundle["verificationMaterial"]["tlogEntries"] =
            json!([self.entry(&logged_statement(payload, &signature, &key.public_key_pem()))]);
        bundle
    }

    /// Annotations of cosign for a payload of simple signing, signed by the holder of a
    /// certificate.
    pub fn annotations(&self, by: &Issued, payload: &[u8]) -> Value {
        let signature = sign(&by.key, payload);
        let body = logged_file(payload, &signature, &by.pem());
        json!({
            "dev.cosignproject.cosign/signature": base64(&signature),
            "dev.sigstore.cosign/certificate": by.pem(),
            "dev.sigstore.cosign/chain": self.authority.pem(),
            "dev.sigstore.cosign/bundle": self.promised(&body).to_string(),
        })
    }
}

/// Body of the log entry for a statement.
pub fn logged_statement(payload: &[u8], signature: &[u8], verifier: &str) -> Value {
    json!({
        "apiVersion": "0.0.1", "kind": "dsse",
        "spec": {
            "envelopeHash": { "algorithm": "sha256", "value": Digest::of(b"").hex() },
            "payloadHash": { "algorithm": "sha256", "value": Digest::of(payload).hex() },
            "signatures": [{ "signature": base64(signature), "verifier": base64(verifier) }],
        },
    })
}

/// Body of the log entry for any bytes.
pub fn logged_file(payload: &[u8], signature: &[u8], verifier: &str) -> Value {
    json!({
        "apiVersion": "0.0.1", "kind": "hashedrekord",
        "spec": {
            "data": { "hash": { "algorithm": "sha256", "value": Digest::of(payload).hex() } },
            "signature": {
                "content": base64(signature), "publicKey": { "content": base64(verifier) },
            },
        },
    })
}

/// Annotations of cosign for a payload that a key signed.
pub fn annotated(key: &KeyPair, payload: &[u8]) -> Value {
    json!({ "dev.cosignproject.cosign/signature": base64(sign(key, payload)) })
}

/// Layer: media type, bytes, annotations.
pub type Layer = (&'static str, Vec<u8>, Value);

/// Pushes what cosign pushes under its tags: an artifact whose layers have annotations.
pub async fn push_tag(client: &Client, to: &Reference, tag: &str, layers: &[Layer]) -> Digest {
    let at: Reference =
        format!("{}/{}:blobs", to.host(), to.repository()).parse().expect("a reference");
    let blobs = layers.iter().map(|(kind, bytes, _)| ((*kind).to_owned(), bytes.clone().into()));
    let config = (EMPTY.to_owned(), "{}".into());
    let artifact = Artifact {
        artifact_type: None,
        config,
        layers: blobs.collect(),
        annotations: [].into(),
        subject: None,
    };
    client.push(&at, &artifact).await.expect("pushed");
    let layers = layers.iter().map(|(kind, bytes, annotations)| {
        let mut layer = json!(Descriptor::of(kind, bytes));
        layer["annotations"] = annotations.clone();
        layer
    });
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind, "config": Descriptor::of(EMPTY, b"{}"),
        "layers": Value::from_iter(layers),
    });
    put(to, tag, kind, manifest.to_string().as_bytes())
}

/// Pushes a manifest without changes.
pub fn put(to: &Reference, tag: &str, kind: &str, manifest: &[u8]) -> Digest {
    let mut stream = TcpStream::connect(to.host()).expect("the registry");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    let head = format!(
        "PUT /v2/{}/manifests/{tag} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        to.repository(),
        to.host(),
        manifest.len()
    );
    stream.write_all(&[head.as_bytes(), manifest].concat()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    Digest::of(manifest)
}

/// Pushes a bundle that refers to the image, as cosign 3 does.
pub async fn push_bundle(
    client: &Client,
    repository: &Reference,
    image: &Descriptor,
    bundle: &Value,
) -> Digest {
    push_about(client, repository, image, BUNDLE, BUNDLE, bundle.to_string().into_bytes()).await
}

/// Pushes an artifact that refers to the image.
pub async fn push_about(
    client: &Client,
    repository: &Reference,
    image: &Descriptor,
    artifact_type: &str,
    layer: &str,
    bytes: Vec<u8>,
) -> Digest {
    let tag = format!("about-{}", &Digest::of(&bytes).hex()[..12]);
    let at = format!("{}/{}:{tag}", repository.host(), repository.repository());
    let artifact = Artifact {
        artifact_type: Some(artifact_type.to_owned()),
        config: (EMPTY.to_owned(), "{}".into()),
        layers: vec![(layer.to_owned(), bytes.into())],
        annotations: [].into(),
        subject: Some(image.clone()),
    };
    client.push(&at.parse().expect("a reference"), &artifact).await.expect("pushed")
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

fn with_length(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len() as u16;
    let head = match length {
        ..128 => vec![tag, length as u8],
        128..256 => vec![tag, 0x81, length as u8],
        _ => [&[tag, 0x82][..], &length.to_be_bytes()].concat(),
    };
    [head, content.to_vec()].concat()
}

/// Lengths of the header and of the content of the first DER value.
fn lengths(der: &[u8]) -> (usize, usize) {
    match der[1] {
        short @ ..128 => (2, short as usize),
        long => {
            let bytes = (long & 0x7f) as usize;
            (2 + bytes, der[2..2 + bytes].iter().fold(0, |sum, byte| sum << 8 | *byte as usize))
        }
    }
}

fn inside(der: &[u8]) -> &[u8] {
    let (head, length) = lengths(der);
    &der[head..head + length]
}

fn first(der: &[u8]) -> &[u8] {
    let (head, length) = lengths(der);
    &der[..head + length]
}
