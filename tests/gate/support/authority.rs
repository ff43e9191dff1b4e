//! An authority of the test's own, and a certificate of it.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

pub struct Authority {
    /// The authority's certificate, as a client takes it.
    pub certificate: String,
    /// The server's certificate and key.
    pub server: (String, String),
}

impl Authority {
    /// For this machine.
    pub fn new() -> Self {
        Self::of(&["localhost", "127.0.0.1"])
    }

    /// For a server of these names.
    pub fn of(names: &[&str]) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        // By its own name: OpenSSL takes a certificate whose issuer is called as its subject for
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
