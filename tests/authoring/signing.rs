//! `plugin key`, `sign` and `verify`.

use std::{fs, os::unix::fs::PermissionsExt as _};

use sha2::{Digest as _, Sha256};
use signed_note::{Note, StandardSigner};

use super::{built, run};

#[test]
fn signature_is_valid_only_for_the_signed_file() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    fs::copy(built("watermark"), here.join("mine.wasm")).unwrap();
    let (code, first, err) = run(here, &["plugin", "key", "release", "--name", "release"]);
    assert_eq!(code, 0, "{err}");
    let first = first.trim();
    assert_eq!(fs::metadata(here.join("release")).unwrap().permissions().mode() & 0o777, 0o600);
    // Printed again, and never the key itself.
    assert_eq!(run(here, &["plugin", "key", "release"]).1.trim(), first);
    let secret = fs::read_to_string(here.join("release")).unwrap();
    let (_, other, _) = run(here, &["plugin", "key", "other", "--name", "other"]);
    let other = other.trim();

    let verify = |key: &str| run(here, &["plugin", "verify", "mine.wasm", "--key", key]);
    let (code, _, err) = verify(first);
    assert_eq!(code, 1);
    assert!(err.contains("there is no signature in `mine.wasm.sig`"), "{err}");

    let (code, out, err) = run(here, &["plugin", "sign", "mine.wasm", "--key", "release"]);
    assert_eq!((code, out.as_str()), (0, "signed: watermark 0.1.0 in mine.wasm.sig\n"), "{err}");
    let (code, out, _) = verify(first);
    assert_eq!((code, out), (0, format!("watermark 0.1.0 holds\nsigned by {first}\n")));
    let (code, out, _) = verify(other);
    assert_eq!(code, 11);
    assert!(out.contains("does not hold: it is signed with another key"), "{out}");
    assert!(!fs::read_to_string(here.join("mine.wasm.sig")).unwrap().contains(secret.trim()));

    // A second signature leaves the first.
    assert_eq!(run(here, &["plugin", "sign", "mine.wasm", "--key", "other"]).0, 0);
    assert_eq!((verify(first).0, verify(other).0), (0, 0));

    // Another file.
    fs::copy(built("redact-pii"), here.join("mine.wasm")).unwrap();
    let (code, out, _) = verify(first);
    assert_eq!(code, 11);
    assert!(out.contains("the signature covers another file, watermark 0.1.0"), "{out}");

    // Nothing of a file is run that nobody signed: this one would fail.
    fs::copy(built("panic-describe"), here.join("mine.wasm")).unwrap();
    let (code, out, err) = verify(first);
    assert_eq!((code, err.as_str()), (11, ""), "{out}");
    assert!(out.contains("the signature covers another file, watermark 0.1.0"), "{out}");
}

#[test]
fn signed_name_must_match_the_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    fs::copy(built("watermark"), here.join("mine.wasm")).unwrap();
    let (_, verifier, _) = run(here, &["plugin", "key", "release", "--name", "release"]);
    let key = fs::read_to_string(here.join("release")).unwrap();
    let signer = StandardSigner::new(key.trim()).unwrap();
    let sha256 = hex::encode(Sha256::digest(fs::read(here.join("mine.wasm")).unwrap()));
    let verify = |name: &str| {
        let text = format!("portcullis-plugin-v1\n{name}\nsha256:{sha256}\n");
        let mut note = Note::new(text.as_bytes(), &[]).unwrap();
        note.add_sigs(&[&signer]).unwrap();
        fs::write(here.join("mine.wasm.sig"), note.to_bytes()).unwrap();
        run(here, &["plugin", "verify", "mine.wasm", "--key", verifier.trim()])
    };
    let (code, out, err) = verify("watermark\n0.1.0");
    assert_eq!(code, 0, "{out}{err}");
    for other in ["watermark\n0.2.0", "redact-pii\n0.1.0"] {
        let (code, out, err) = verify(other);
        assert_eq!((code, err.as_str()), (11, ""), "{out}");
        let told =
            format!("`{}` is signed, but the plugin's manifest has", other.replace('\n', " "));
        assert!(out.contains(&told), "{out}");
    }
}

#[test]
fn signing_keys_are_references_and_never_values() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(built("watermark"), dir.path().join("mine.wasm")).unwrap();
    let key = format!("PRIVATE+{}", "KEY+a+00000000+AAAA");
    let (code, _, err) = run(dir.path(), &["plugin", "sign", "mine.wasm", "--key", &key]);
    assert_eq!(code, 2);
    assert!(err.contains("'--key <FILE>': name the file of the key"), "{err}");
    assert!(err.contains("never the key itself") && !err.contains(&key), "{err}");
    for words in [
        &["plugin", "verify", "mine.wasm"][..],
        &["policy", "bundle", "sign", "policies"],
        &["policy", "bundle", "verify"],
        &["audit", "verify"],
        &["audit", "prove", "--check", "-"],
    ] {
        let (code, _, err) = run(dir.path(), &[words, &["--key", &key]].concat());
        assert_eq!(code, 2, "{words:?}: {err}");
        assert!(err.contains("'--key <") && !err.contains(&key), "{words:?}: {err}");
    }
}
