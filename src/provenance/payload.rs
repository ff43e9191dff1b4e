//! Signed payloads that name an image by its digest.

use portcullis_foundation::json::ambiguous;
use portcullis_oci::Digest;
use serde_json::{Map, Value};

use crate::{Rejection, SignedContent};

/// Type of simple signing's payloads, as cosign writes it.
const SIMPLE: &str = "cosign container image signature";
/// Types of in-toto's statements.
const STATEMENTS: [&str; 2] =
    ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];
/// Predicate of cosign 3's signatures in statements.
pub(crate) const SIGNATURE: &str = "https://sigstore.dev/cosign/sign/v1";
/// Limit of a statement's subjects.
const MAX_SUBJECTS: usize = 1024;
/// Limits in bytes of a predicate's type, and of a returned predicate.
const MAX_TYPE_BYTES: usize = 1024;
const MAX_PREDICATE_BYTES: usize = 64 << 10;

/// Parses a payload of simple signing about the image.
///
/// `docker-reference` is ignored, as in cosign: a signature covers the digest, wherever copies of
/// the image are.
pub(crate) fn simple(payload: &[u8], image: Digest) -> Result<SignedContent, Rejection> {
    let payload = object(read(payload)?, "the payload")?;
    let critical = part(&payload, "critical")?;
    let (kind, of) = (text(critical, "type")?, part(critical, "image")?);
    if kind != SIMPLE {
        return Err(Rejection::Payload(format!("its `type` is not `{SIMPLE}`")));
    }
    match text(of, "docker-manifest-digest")? == image.to_string() {
        true => Ok(SignedContent::Signature),
        false => Err(Rejection::OtherImage),
    }
}

/// Parses a statement of in-toto about the image. The image must be one of its subjects: a
/// statement covers each of them.
pub(crate) fn statement(payload: &[u8], image: Digest) -> Result<SignedContent, Rejection> {
    let mut statement = object(read(payload)?, "the statement")?;
    if ambiguous(&statement) {
        return Err(Rejection::Payload("it has keys that differ only in case".into()));
    }
    if !STATEMENTS.contains(&text(&statement, "_type")?) {
        return Err(Rejection::Payload("its `_type` is not that of an in-toto statement".into()));
    }
    let predicate_type = text(&statement, "predicateType")?.to_owned();
    if predicate_type.is_empty() || predicate_type.len() > MAX_TYPE_BYTES {
        return Err(Rejection::Payload(format!(
            "its `predicateType` is empty, or over {MAX_TYPE_BYTES} bytes"
        )));
    }
    let subjects = statement.get("subject").and_then(Value::as_array);
    let subjects = subjects.filter(|subjects| subjects.len() <= MAX_SUBJECTS).ok_or_else(|| {
        Rejection::Payload(format!("its `subject` is not a list of up to {MAX_SUBJECTS}"))
    })?;
    let mut is_of_it = false;
    for subject in subjects {
        let subject = subject.as_object().filter(|one| !ambiguous(one));
        let digest = subject.and_then(|one| one.get("digest")?.as_object());
        let Some(digest) = digest.filter(|digest| !ambiguous(digest)) else {
            return Err(Rejection::Payload("one of its subjects is invalid".into()));
        };
        is_of_it |= digest.get("sha256").and_then(Value::as_str) == Some(&image.hex());
    }
    if !is_of_it {
        return Err(Rejection::OtherImage);
    }
    if predicate_type == SIGNATURE {
        return Ok(SignedContent::Signature);
    }
    let predicate = statement.remove("predicate");
    let predicate =
        predicate.filter(|predicate| predicate.to_string().len() <= MAX_PREDICATE_BYTES);
    Ok(SignedContent::Attestation { predicate_type, predicate })
}

fn read(payload: &[u8]) -> Result<Value, Rejection> {
    portcullis_foundation::json::read(payload).map_err(|why| Rejection::Payload(why.to_string()))
}

fn object(value: Value, what: &str) -> Result<Map<String, Value>, Rejection> {
    match value {
        Value::Object(object) if !ambiguous(&object) => Ok(object),
        _ => Err(Rejection::Payload(format!("{what} is not an unambiguous object"))),
    }
}

fn part<'a>(of: &'a Map<String, Value>, key: &str) -> Result<&'a Map<String, Value>, Rejection> {
    let part = of.get(key).and_then(Value::as_object);
    part.filter(|part| !ambiguous(part))
        .ok_or_else(|| Rejection::Payload(format!("it has no unambiguous `{key}`")))
}

fn text<'a>(of: &'a Map<String, Value>, key: &str) -> Result<&'a str, Rejection> {
    let text = of.get(key).and_then(Value::as_str);
    text.ok_or_else(|| Rejection::Payload(format!("it has no `{key}`")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn image() -> Digest {
        Digest::of(b"image")
    }

    #[test]
    fn simple_signing_payloads_are_parsed_or_refused() {
        let (this, that) = (image().to_string(), Digest::of(b"other").to_string());
        let payload = |kind: &str, digest: &str| {
            json!({
                "critical": {
                    "identity": { "docker-reference": "example.com/elsewhere" },
                    "image": { "docker-manifest-digest": digest }, "type": kind,
                },
                "optional": null,
            })
            .to_string()
        };
        let read = |text: &str| simple(text.as_bytes(), image());
        assert_eq!(read(&payload(SIMPLE, &this)), Ok(SignedContent::Signature));
        assert_eq!(read(&payload(SIMPLE, &that)), Err(Rejection::OtherImage));
        assert_eq!(read(&payload(SIMPLE, &this.to_uppercase())), Err(Rejection::OtherImage));
        let good = payload(SIMPLE, &this);
        for bad in [
            payload("atomic container signature", &this),
            "{}".into(),
            "[]".into(),
            good.replace(r#""type""#, r#""Type""#),
            good.replace(r#""image":"#, r#""image":{},"image":"#),
            good.replace(r#""image":"#, r#""Image":{},"image":"#),
            good.replacen('{', r#"{"CRITICAL":{},"#, 1),
            good.replace("docker-manifest-digest", "docker-reference"),
        ] {
            assert!(matches!(read(&bad), Err(Rejection::Payload(_))), "{bad}");
        }
    }

    #[test]
    fn statements_are_parsed_or_refused() {
        let hex = image().hex();
        let other = Digest::of(b"other").hex();
        let of = |subjects: Value, kind: &str| {
            json!({
                "_type": STATEMENTS[0], "subject": subjects, "predicateType": kind,
                "predicate": { "a": [1] },
            })
        };
        let one = |hex: &str| json!({ "name": "x", "digest": { "sha256": hex } });
        let read = |value: &Value| statement(value.to_string().as_bytes(), image());
        let (kind, attested) = ("https://example.com/scan", json!({ "a": [1] }));
        let what = SignedContent::Attestation {
            predicate_type: kind.to_owned(),
            predicate: Some(attested),
        };
        assert_eq!(read(&of(json!([one(&hex)]), kind)), Ok(what.clone()));
        // Each of several subjects is attested.
        let several = json!([{ "digest": { "sha512": "ab" } }, one(&other), one(&hex)]);
        assert_eq!(read(&of(several, kind)), Ok(what));
        assert_eq!(read(&of(json!([one(&hex)]), SIGNATURE)), Ok(SignedContent::Signature));
        for none in [json!([]), json!([one(&other)]), json!([{ "digest": { "sha512": hex } }])] {
            assert_eq!(read(&of(none, kind)), Err(Rejection::OtherImage));
        }
        let mut large = of(json!([one(&hex)]), kind);
        large["predicate"] = json!("x".repeat(MAX_PREDICATE_BYTES));
        let Ok(SignedContent::Attestation { predicate: None, .. }) = read(&large) else { panic!() };
        for bad in [
            of(json!({}), kind),
            of(json!([1]), kind),
            of(json!([{ "digest": { "sha256": other, "SHA256": hex } }]), kind),
            of(json!([{ "digest": { "sha256": hex }, "Digest": {} }]), kind),
            of(json!(vec![one(&hex); MAX_SUBJECTS + 1]), kind),
            of(json!([one(&hex)]), ""),
            json!({ "_type": "x", "subject": [one(&hex)], "predicateType": kind }),
        ] {
            assert!(matches!(read(&bad), Err(Rejection::Payload(_))));
        }
        let twice = of(json!([one(&other)]), kind).to_string().replacen(
            '{',
            &format!(r#"{{"subject":{},"#, json!([one(&hex)])),
            1,
        );
        assert!(matches!(statement(twice.as_bytes(), image()), Err(Rejection::Payload(_))));
        let other_case =
            of(json!([one(&hex)]), kind).to_string().replacen('{', r#"{"SUBJECT":[],"#, 1);
        assert!(matches!(statement(other_case.as_bytes(), image()), Err(Rejection::Payload(_))));
    }
}
