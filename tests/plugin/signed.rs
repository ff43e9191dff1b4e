//! Plugins that are trusted by their signature.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ed25519_dalek::SigningKey;
use miette::Diagnostic as _;
use sha2::{Digest as _, Sha256};
use signed_note::{Note, StandardSigner, key_id, new_ed25519_verifier_key};

use super::*;

/// A key of that name: what it signs a text to, and what that is checked with.
struct Key {
    signer: StandardSigner,
    verifier: String,
}

impl Key {
    fn new(name: &str, seed: u8) -> Self {
        let public = SigningKey::from_bytes(&[seed; 32]).verifying_key();
        let id = key_id(name, &[&[1], public.as_bytes().as_slice()].concat());
        let secret = BASE64_STANDARD.encode([&[1], [seed; 32].as_slice()].concat());
        let text = ["PRIVATE", "KEY", name, &format!("{id:08x}"), &secret].join("+");
        let signer = StandardSigner::new(&text).expect("a key");
        Self { signer, verifier: new_ed25519_verifier_key(name, &public) }
    }

    fn sign(&self, text: &str) -> Vec<u8> {
        let mut note = Note::new(text.as_bytes(), &[]).expect("a note");
        note.add_sigs(&[&self.signer]).expect("signed");
        note.to_bytes()
    }
}

#[test]
fn only_signed_plugins_are_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("plugin.wasm");
    std::fs::copy(built("noop"), &path).expect("copied");
    let sha256 = hex::encode(Sha256::digest(std::fs::read(&path).expect("read")));
    let (ours, theirs) = (Key::new("example.com/ours", 1), Key::new("example.com/theirs", 2));
    let entry = json!({
        "path": path, "signed-by": [ours.verifier], "plugin": "noop", "version": ">=0.1",
    });
    let config: Config = serde_json::from_value(entry).expect("a legal entry");
    let load = |note: &[u8]| {
        std::fs::write(folder.path().join("plugin.wasm.sig"), note).expect("written");
        load(&config, &EntrySettings::default())
    };
    let text = |sha256: &str, version: &str| {
        format!("portcullis-plugin-v1\nnoop\n{version}\nsha256:{sha256}\n")
    };

    let plugin = load(&ours.sign(&text(&sha256, "0.1.0"))).expect("it is signed");
    assert_eq!(plugin.now().signed_by(), Some("example.com/ours"));
    assert_eq!(plugin.changeable(), Some(path.clone()));
    for (note, told) in [
        (theirs.sign(&text(&sha256, "0.1.0")), "it is signed with another key"),
        (ours.sign(&text(&"0".repeat(64), "0.1.0")), "the signature covers another file"),
        (
            ours.sign(&text(&sha256, "9.9.9")),
            "`noop 9.9.9` is signed, but the plugin's manifest has",
        ),
        (ours.sign("something else\n"), "is not a plugin"),
        (b"nothing".to_vec(), "not a signed note"),
    ] {
        let refused = load(&note).err().expect("it is not loaded");
        assert_eq!(refused.code().expect("a code").to_string(), "plugin-unsigned");
        assert!(refused.to_string().contains(told), "{refused}");
    }

    // A digest beside it has to hold too.
    let signed = ours.sign(&text(&sha256, "0.1.0"));
    std::fs::write(folder.path().join("plugin.wasm.sig"), signed).expect("written");
    let pinned = Config { sha256: Some("0".repeat(64)), ..config.clone() };
    let refused = super::load(&pinned, &EntrySettings::default()).err().expect("another digest");
    assert_eq!(refused.code().expect("a code").to_string(), "plugin-digest-mismatch");
    let illegal = Config { signed_by: vec!["no key".into()], ..config };
    let refused = super::load(&illegal, &EntrySettings::default()).err().expect("no key");
    assert_eq!(refused.code().expect("a code").to_string(), "plugin-key-illegal");
}

/// Loads what stands for a plugin `NAME VERSION`, signed, by an entry with these keys besides.
fn load_signed(name: &str, version: &str, keys: Value) -> Result<Plugin, LoadError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("plugin.wasm");
    std::fs::copy(built(name), &path).expect("copied");
    let sha256 = hex::encode(Sha256::digest(std::fs::read(&path).expect("read")));
    let key = Key::new("example.com/ours", 1);
    let manifest = if name == "stricter" { "noop" } else { name };
    let text = format!("portcullis-plugin-v1\n{manifest}\n{version}\nsha256:{sha256}\n");
    std::fs::write(folder.path().join("plugin.wasm.sig"), key.sign(&text)).expect("written");
    let mut entry = json!({ "path": path, "signed-by": [key.verifier] });
    entry.as_object_mut().expect("an object").extend(keys.as_object().expect("keys").clone());
    if keys["sha256"] == "its own" {
        entry["sha256"] = sha256.into();
    }
    let config: Config = serde_json::from_value(entry).expect("a legal entry");
    load(&config, &EntrySettings::default())
}

#[test]
fn other_plugin_of_the_same_key_is_refused() {
    let meant = json!({ "plugin": "noop", "version": ">=0.2" });
    assert!(load_signed("stricter", "0.2.0", meant.clone()).is_ok());
    let refused = |name: &str, version: &str, keys: Value| {
        let refused = load_signed(name, version, keys).err().expect("it is not loaded");
        let code = refused.code().expect("a code").to_string();
        (code, refused)
    };
    for (name, version) in [("noop", "0.1.0"), ("keeper", "0.1.0")] {
        let (code, refused) = refused(name, version, meant.clone());
        assert_eq!(code, "plugin-not-meant");
        let told = format!("is the plugin `{name} {version}`, but the entry requires `noop >=0.2`");
        assert!(refused.to_string().contains(&told), "{refused}");
    }
    for keys in [json!({}), json!({ "plugin": "noop" }), json!({ "version": "*" })] {
        let (code, refused) = refused("noop", "0.1.0", keys);
        assert_eq!(code, "plugin-unnamed");
        let help = refused.help().expect("help").to_string();
        assert!(help.ends_with("\nplugin = \"noop\"\nversion = \">=0.1.0\""), "{help}");
    }
    // A digest says which file it is; what else is said has to hold.
    assert!(load_signed("noop", "0.1.0", json!({ "sha256": "its own" })).is_ok());
    let both = json!({ "sha256": "its own", "plugin": "keeper" });
    assert_eq!(refused("noop", "0.1.0", both).0, "plugin-not-meant");
}
