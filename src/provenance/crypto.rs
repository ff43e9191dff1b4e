//! Provides `ring` to `sigstore-verify`, which has no cryptography of its own.

use std::cell::RefCell;

use ring::{digest, signature};
use sigstore_verify::{
    crypto::{
        CryptoProvider, Error, HashContext, Result, SigningScheme, install_default_provider,
        try_default_provider,
    },
    types::HashAlgorithm,
};

thread_local! {
    /// Message being verified on this thread. `ring` accepts messages, never digests, but
    /// `sigstore-verify` passes some by digest.
    static MESSAGE: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Makes `sigstore-verify` use `ring`. The first provider in a process stays.
pub(crate) fn install() {
    if try_default_provider().is_none() {
        let _ = install_default_provider(&Ring);
    }
}

/// Verifies a message whose signature may be requested by the message's digest.
pub(crate) fn verifying<T>(message: &[u8], verify: impl FnOnce() -> T) -> T {
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            MESSAGE.take();
        }
    }
    MESSAGE.set(Some(message.to_vec()));
    let _forget = Forget;
    verify()
}

#[derive(Debug)]
struct Ring;

struct Hashing(digest::Context);

impl HashContext for Hashing {
    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn finalize(self: Box<Self>) -> Vec<u8> {
        self.0.finish().as_ref().to_vec()
    }
}

fn algorithm(algorithm: HashAlgorithm) -> Result<&'static digest::Algorithm> {
    match algorithm {
        HashAlgorithm::Sha2256 => Ok(&digest::SHA256),
        HashAlgorithm::Sha2384 => Ok(&digest::SHA384),
        HashAlgorithm::Sha2512 => Ok(&digest::SHA512),
        other => Err(Error::UnsupportedAlgorithm(format!("{other} is not supported"))),
    }
}

fn verification(scheme: SigningScheme) -> Result<&'static dyn signature::VerificationAlgorithm> {
    Ok(match scheme {
        SigningScheme::EcdsaP256Sha256 => &signature::ECDSA_P256_SHA256_ASN1,
        SigningScheme::EcdsaP256Sha384 => &signature::ECDSA_P256_SHA384_ASN1,
        SigningScheme::EcdsaP384Sha256 => &signature::ECDSA_P384_SHA256_ASN1,
        SigningScheme::EcdsaP384Sha384 => &signature::ECDSA_P384_SHA384_ASN1,
        SigningScheme::Ed25519 => &signature::ED25519,
        SigningScheme::RsaPssSha256 => &signature::RSA_PSS_2048_8192_SHA256,
        SigningScheme::RsaPssSha384 => &signature::RSA_PSS_2048_8192_SHA384,
        SigningScheme::RsaPssSha512 => &signature::RSA_PSS_2048_8192_SHA512,
        SigningScheme::RsaPkcs1Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        SigningScheme::RsaPkcs1Sha384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        SigningScheme::RsaPkcs1Sha512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        other => {
            return Err(Error::UnsupportedAlgorithm(format!("{} is not supported", other.name())));
        }
    })
}

impl CryptoProvider for Ring {
    fn hash(&self, wanted: HashAlgorithm) -> Result<Box<dyn HashContext>> {
        Ok(Box::new(Hashing(digest::Context::new(algorithm(wanted)?))))
    }

    fn verify_raw(
        &self,
        scheme: SigningScheme,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<()> {
        signature::UnparsedPublicKey::new(verification(scheme)?, key)
            .verify(message, signature)
            .map_err(|_| Error::Verification(format!("{} signature invalid", scheme.name())))
    }

    fn verify_prehashed(
        &self,
        scheme: SigningScheme,
        key: &[u8],
        expected: &[u8],
        signature: &[u8],
    ) -> Result<()> {
        let none = || Error::UnsupportedAlgorithm(format!("{} has no digest", scheme.name()));
        let algorithm = algorithm(scheme.hash_algorithm().ok_or_else(none)?)?;
        MESSAGE.with_borrow(|message| match message {
            Some(message) if digest::digest(algorithm, message).as_ref() == expected => {
                self.verify_raw(scheme, key, message, signature)
            }
            _ => Err(Error::Verification("this is not the digest of the verified message".into())),
        })
    }
}

#[cfg(test)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
    };

    use super::*;

    #[test]
    fn only_the_digest_of_the_verified_message_counts() {
        let (scheme, random) = (SigningScheme::EcdsaP256Sha256, SystemRandom::new());
        let signing = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(signing, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(signing, pkcs8.as_ref(), &random).unwrap();
        let signed = pair.sign(&random, b"this").unwrap();
        let digest = Ring.sha256(b"this");
        let verify = |digest: &[u8]| {
            Ring.verify_prehashed(scheme, pair.public_key().as_ref(), digest, signed.as_ref())
        };
        assert!(verify(&digest).is_err());
        assert!(verifying(b"that", || verify(&digest)).is_err());
        assert!(verifying(b"that", || verify(&Ring.sha256(b"that"))).is_err());
        assert!(verifying(b"this", || verify(&digest[..31])).is_err());
        verifying(b"this", || verify(&digest)).unwrap();
        assert!(verify(&digest).is_err());
    }
}
