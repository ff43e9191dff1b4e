//! ClientHellos, as libraries write them and invalid ones.

use std::sync::Arc;

/// ClientHello of a library for a name or an address.
pub fn hello(name: &str) -> Vec<u8> {
    client_hello(&mut client(name))
}

/// Client that trusts no certificate.
pub fn client(name: &str) -> rustls::ClientConnection {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap()
}

/// Bytes that a client wants to send.
pub fn client_hello(client: &mut rustls::ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Appends an extension, and corrects all lengths.
pub fn with_extension(hello: &[u8], kind: u16, content: &[u8]) -> Vec<u8> {
    let mut at = 9 + 34;
    at += 1 + usize::from(hello[at]);
    at += 2 + usize::from(u16::from_be_bytes([hello[at], hello[at + 1]]));
    at += 1 + usize::from(hello[at]);
    let mut bytes = hello.to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
    bytes.extend(content);
    let all = u16::try_from(bytes.len() - at - 2).unwrap();
    bytes[at..at + 2].copy_from_slice(&all.to_be_bytes());
    let record = u16::try_from(bytes.len() - 5).unwrap();
    bytes[3..5].copy_from_slice(&record.to_be_bytes());
    let message = u32::from(record) - 4;
    bytes[6..9].copy_from_slice(&message.to_be_bytes()[1..]);
    bytes
}

/// With an inner hello that only the server can read.
pub fn with_ech(hello: &[u8]) -> Vec<u8> {
    // Type 0 (outer), a suite, a configuration's id, the key and the ciphertext.
    with_extension(hello, 0xfe0d, &[0, 0, 1, 0, 1, 7, 0, 2, 1, 2, 0, 3, 1, 2, 3])
}
