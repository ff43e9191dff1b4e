//! Possible signatures: layers in the formats of cosign and of Sigstore's bundles.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use portcullis_oci::Descriptor;
use serde::Deserialize;
use serde_json::{Value, json};
use sigstore_verify::types::{Bundle, DerCertificate, DsseEnvelope, MediaType, SignatureContent};

use crate::{Rejection, rejection::words};

/// Media types of layers with signatures.
const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
/// Annotations that cosign writes beside them.
const SIGNED: &str = "dev.cosignproject.cosign/signature";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const LOGGED: &str = "dev.sigstore.cosign/bundle";
const TIMESTAMP: &str = "dev.sigstore.cosign/rfc3161timestamp";
/// Limit of a chain's certificates.
const MAX_CERTIFICATES: usize = 8;

/// A possible signature.
pub(crate) struct Candidate {
    pub content: Content,
    /// The signature with proofs of its time and signer, if any.
    pub bundle: Option<Bundle>,
}

/// Signed content, with the signature.
pub(crate) enum Content {
    /// Payload of simple signing.
    Simple { payload: Vec<u8>, signature: Vec<u8> },
    /// Statement of in-toto.
    Statement(DsseEnvelope),
}

/// Whether layers of this media type contain signatures; the next one is for artifact types in
/// lists of referrers.
pub(crate) fn is_layer(media_type: &str) -> bool {
    [SIMPLE, ENVELOPE].contains(&media_type) || media_type.starts_with(BUNDLE)
}

pub(crate) fn is_artifact(artifact_type: &str) -> bool {
    artifact_type.starts_with(BUNDLE)
        || artifact_type.starts_with("application/vnd.dev.cosign.artifact.")
}

impl Candidate {
    /// Parses a layer.
    pub fn read(layer: &Descriptor, bytes: &[u8]) -> Result<Self, Rejection> {
        match &*layer.media_type {
            SIMPLE => simple(layer, bytes),
            ENVELOPE => {
                let envelope = parsed(bytes)?;
                let content = json!({ "dsseEnvelope": envelope });
                let bundle = beside(layer, content)?;
                let envelope =
                    serde_json::from_value(envelope).map_err(|why| unread(&why.to_string()))?;
                statement(envelope, bundle)
            }
            _ => {
                let bundle: Bundle = serde_json::from_value(parsed(bytes)?)
                    .map_err(|why| unread(&why.to_string()))?;
                // In this version, a log's promise would suffice where others require its proof.
                if bundle.media_type == MediaType::Bundle0_1 {
                    return Err(unread(
                        "it is a bundle of version 0.1, which does not require a log's proof",
                    ));
                }
                match &bundle.content {
                    SignatureContent::DsseEnvelope(envelope) => {
                        statement(envelope.clone(), Some(bundle))
                    }
                    _ => Err(unread("it signs a file and not a statement about an image")),
                }
            }
        }
    }
}

fn unread(why: &str) -> Rejection {
    Rejection::Layer(words(why))
}

fn parsed(bytes: &[u8]) -> Result<Value, Rejection> {
    portcullis_foundation::json::read(bytes).map_err(|why| unread(&why.to_string()))
}

fn statement(envelope: DsseEnvelope, bundle: Option<Bundle>) -> Result<Candidate, Rejection> {
    match &*envelope.payload_type {
        "application/vnd.in-toto+json" => {
            Ok(Candidate { content: Content::Statement(envelope), bundle })
        }
        _ => Err(unread("its `payloadType` is not in-toto's")),
    }
}

fn simple(layer: &Descriptor, payload: &[u8]) -> Result<Candidate, Rejection> {
    let signature = layer.annotations.get(SIGNED).map(|text| BASE64_STANDARD.decode(text));
    let Some(Ok(signature)) = signature else {
        return Err(unread(&format!("it has no `{SIGNED}` in Base64")));
    };
    // cosign hashes with SHA-256 here, for every kind of key.
    let digest = ring::digest::digest(&ring::digest::SHA256, payload);
    let bundle = beside(
        layer,
        json!({
            "messageSignature": {
                "messageDigest": {
                    "algorithm": "SHA2_256", "digest": BASE64_STANDARD.encode(digest),
                },
                "signature": BASE64_STANDARD.encode(&signature),
            },
        }),
    )?;
    Ok(Candidate { content: Content::Simple { payload: payload.to_vec(), signature }, bundle })
}

/// Log entry with the log's promise, in cosign's format.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Logged {
    signed_entry_timestamp: String,
    payload: Entry,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    body: String,
    integrated_time: i64,
    log_index: u64,
    #[serde(rename = "logID")]
    log_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    kind: String,
    api_version: String,
}

#[derive(Deserialize)]
struct Stamp {
    #[serde(rename = "SignedRFC3161Timestamp")]
    signed: String,
}

/// Bundle that a layer with this content and its annotations represent; `None` without a
/// certificate and an entry.
fn beside(layer: &Descriptor, content: Value) -> Result<Option<Bundle>, Rejection> {
    let annotation = |key: &str| layer.annotations.get(key).filter(|text| !text.is_empty());
    let json = |text: &String| parsed(text.as_bytes());
    let wrong = |what: &'static str| move |()| unread(&format!("its `{what}` is invalid"));
    let leaf = annotation(CERTIFICATE);
    let logged = annotation(LOGGED).map(json).transpose()?;
    if leaf.is_none() && logged.is_none() {
        return Ok(None);
    }
    let mut material = json!({});
    match leaf {
        Some(leaf) => {
            let pem = [leaf.as_str(), annotation(CHAIN).map_or("", String::as_str)].concat();
            let all: Vec<Value> = certificates(&pem)?
                .iter()
                .map(|one| json!({ "rawBytes": one.to_base64() }))
                .collect();
            material["x509CertificateChain"] = json!({ "certificates": all });
        }
        None => material["publicKey"] = json!({ "hint": "" }),
    }
    if let Some(logged) = logged {
        let Logged { signed_entry_timestamp, payload } =
            serde_json::from_value(logged).map_err(|_| wrong(LOGGED)(()))?;
        let body = BASE64_STANDARD.decode(&payload.body).map_err(|_| wrong(LOGGED)(()))?;
        let body: Body = serde_json::from_slice(&body).map_err(|_| wrong(LOGGED)(()))?;
        let id: portcullis_oci::Digest =
            format!("sha256:{}", payload.log_id).parse().map_err(|_| wrong(LOGGED)(()))?;
        material["tlogEntries"] = json!([{
            "logIndex": payload.log_index.to_string(),
            "logId": { "keyId": BASE64_STANDARD.encode(id.bytes()) },
            "kindVersion": { "kind": body.kind, "version": body.api_version },
            "integratedTime": payload.integrated_time.to_string(),
            "inclusionPromise": { "signedEntryTimestamp": signed_entry_timestamp },
            "canonicalizedBody": payload.body,
        }]);
    }
    if let Some(stamp) = annotation(TIMESTAMP).map(json).transpose()? {
        let Stamp { signed } = serde_json::from_value(stamp).map_err(|_| wrong(TIMESTAMP)(()))?;
        let stamps = json!({ "rfc3161Timestamps": [{ "signedTimestamp": signed }] });
        material["timestampVerificationData"] = stamps;
    }
    let mut bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1",
        "verificationMaterial": material,
    });
    for (key, value) in content.as_object().into_iter().flatten() {
        bundle[key] = value.clone();
    }
    serde_json::from_value(bundle).map(Some).map_err(|why| unread(&why.to_string()))
}

fn certificates(pem: &str) -> Result<Vec<DerCertificate>, Rejection> {
    const END: &str = "-----END CERTIFICATE-----";
    let all: Vec<&str> = pem.split_inclusive(END).filter(|one| one.contains(END)).collect();
    if all.len() > MAX_CERTIFICATES {
        return Err(unread(&format!("it has more than {MAX_CERTIFICATES} certificates")));
    }
    let read = |one: &&str| DerCertificate::from_pem(one.trim());
    let all: Result<Vec<_>, _> = all.iter().map(read).collect();
    all.map_err(|_| unread("its certificates are invalid"))
}
