//! Determines the signer of a signature.

use portcullis_oci::Digest;
use sigstore_verify::{
    PublicKeyVerificationPolicy, VerificationPolicy, VerificationResult, Verifier,
    crypto::VerificationKey,
    types::{Artifact, Bundle, DerPublicKey, Sha256Hash, SignatureBytes},
};

use crate::{
    By, Rejection, SignedContent, Trust,
    candidate::{Candidate, Content},
    crypto, payload,
    rejection::words,
    trust::{Kind, schemes},
};

/// What a candidate proves about this image, and who signed it.
pub(crate) fn evaluate(
    candidate: &Candidate,
    image: Digest,
    trust: &Trust,
) -> Result<(SignedContent, Vec<By>), Rejection> {
    let what = match &candidate.content {
        Content::Simple { payload, .. } => payload::simple(payload, image)?,
        Content::Statement(envelope) => payload::statement(envelope.payload.as_bytes(), image)?,
    };
    let evaluation = Evaluation { candidate, image };
    let (mut by, mut why) = (Vec::new(), Vec::new());
    // Result for each root, because several signers can share one.
    let mut results: Vec<Option<Result<(String, String), String>>> = vec![None; trust.roots.len()];
    for signer in &trust.signers {
        let name = || signer.name.clone();
        match &signer.kind {
            Kind::Key { key, log } => {
                let log = log.and_then(|at| trust.roots.get(at));
                match evaluation.by_key(key, log) {
                    Ok(()) => by.push(By::Key { name: name() }),
                    Err(error) => why.push(format!("`{}`: {error}", signer.name)),
                }
            }
            Kind::Identity { issuer, subject, root } => {
                let Some((verifier, result)) = trust.roots.get(*root).zip(results.get_mut(*root))
                else {
                    continue;
                };
                match result.get_or_insert_with(|| evaluation.by_certificate(verifier)) {
                    Ok((by_issuer, as_subject))
                        if by_issuer == issuer && subject.is(as_subject) =>
                    {
                        let (issuer, subject) = (by_issuer.clone(), as_subject.clone());
                        by.push(By::Identity { name: name(), issuer, subject });
                    }
                    Ok((issuer, subject)) => {
                        let who = words(&format!("it is of {subject}, authenticated by {issuer}"));
                        why.push(format!("`{}`: {who}", signer.name));
                    }
                    Err(error) => why.push(format!("`{}`: {error}", signer.name)),
                }
            }
        }
    }
    match by.is_empty() {
        false => Ok((what, by)),
        true => Err(Rejection::NotTrusted(why.join("; "))),
    }
}

struct Evaluation<'a> {
    candidate: &'a Candidate,
    image: Digest,
}

impl Evaluation<'_> {
    fn by_key(&self, key: &DerPublicKey, log: Option<&Verifier>) -> Result<(), String> {
        let (message, signature) = match &self.candidate.content {
            Content::Simple { payload, signature } => (payload.clone(), signature.clone()),
            Content::Statement(envelope) => {
                (envelope.pae(), envelope.signature.sig.as_bytes().to_vec())
            }
        };
        let signature = SignatureBytes::new(signature);
        let holds = schemes(key).iter().any(|scheme| {
            VerificationKey::from_spki_with_scheme(key, *scheme)
                .is_ok_and(|key| key.verify(&message, &signature).is_ok())
        });
        if !holds {
            return Err("it was not made with this key".to_owned());
        }
        let Some(log) = log else { return Ok(()) };
        let policy = PublicKeyVerificationPolicy::new(key.clone());
        match self.logged(log, &policy)? {
            result if result.tlog_verified() => Ok(()),
            _ => Err("it is in no log".to_owned()),
        }
    }

    /// Issuer and subject, as proved by an authority and the logs.
    fn by_certificate(&self, root: &Verifier) -> Result<(String, String), String> {
        // The caller compares the certificate with the configured signers.
        let result = self.logged(root, &VerificationPolicy::any_identity())?;
        if !(result.certificate_verified() && result.sct_verified() && result.tlog_verified()) {
            return Err("not all of it was verified".to_owned());
        }
        match (result.issuer(), result.identity()) {
            (Some(issuer), Some(subject)) => Ok((issuer.to_owned(), subject.as_str().to_owned())),
            _ => Err("its certificate names no issuer, or no e-mail address or URI".to_owned()),
        }
    }

    fn logged(
        &self,
        root: &Verifier,
        policy: &dyn sigstore_verify::Policy,
    ) -> Result<VerificationResult, String> {
        let bundle: &Bundle =
            self.candidate.bundle.as_ref().ok_or("it has neither a certificate nor a log entry")?;
        // `tlog_verified` is also true without entries.
        if bundle.verification_material.tlog_entries.is_empty() {
            return Err(
                "it is in no log: it has neither an inclusion proof nor an inclusion promise"
                    .to_owned(),
            );
        }
        let verified = match &self.candidate.content {
            Content::Simple { payload, .. } => crypto::verifying(payload, || {
                root.verify(Artifact::from_blob(payload), bundle, policy)
            }),
            Content::Statement(_) => {
                let digest = Sha256Hash::new(self.image.bytes());
                root.verify(Artifact::from_digest(digest), bundle, policy)
            }
        };
        verified.map_err(|why| words(&why.to_string()))
    }
}
