//! A certificate authority of the test, and a certificate from it.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

pub struct Authority {
    /// The authority's certificate in the form for clients.
    pub certificate: String,
    /// The server's certificate and key.
    pub server: (String, String),
}

impl Authority {
    /// An authority with a server certificate for this machine.
    pub fn new() -> Self {
        Self::of(&["localhost", "127.0.0.1"])
    }

    /// An authority with a server certificate for these names.
    pub fn of(names: &[&str]) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        // A name of its own: OpenSSL treats a certificate with equal issuer and subject as
        // self-signed.
        params.distinguished_name.push(DnType::CommonName, "the authority of the gate's tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let server = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        Self { certificate, server: (server.pem(), key.serialize_pem()) }
    }
}
