use std::os::unix::fs::symlink;

use nix::{sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;

use super::*;
use crate::{Diagnostics, Engine, Source};
use portcullis_foundation::note_key::Signer;

const PERMIT: &str = "permit (principal, action, resource);";

fn signer(name: &str, seed: u8) -> Signer {
    Signer::of(name, &[seed; 32]).unwrap()
}

/// A folder with a bundle and a state folder.
struct TestBundle(TempDir);

impl TestBundle {
    fn new() -> Self {
        let store = Self(TempDir::new().unwrap());
        fs::create_dir(store.dir()).unwrap();
        store.write("a.cedar", PERMIT);
        store.write("a.test.yaml", "cases: []\n");
        store
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("b")
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.dir().join(name), text).unwrap();
    }

    fn sign(&self, keys: &[Signer], version: Option<u64>) -> Result<Signed, SignFault> {
        sign(&self.dir(), keys, version, "2026-11-21T12:00:00.5Z".parse().unwrap())
    }

    fn open(&self, keys: &[Signer]) -> Result<Engine, Diagnostics> {
        let keys = keys.iter().map(|key| key.verifier().clone()).collect();
        let state = Some(self.0.path().join("state"));
        Engine::open(Source::Bundle(Bundle { dir: "b".into(), keys, state }), self.0.path())
    }

    /// Code, file and message of each finding.
    fn findings(&self) -> Vec<String> {
        problems(&self.open(&[signer("acme", 1)]).map(|_| ()).unwrap_err())
    }
}

fn problems(diagnostics: &Diagnostics) -> Vec<String> {
    let findings = diagnostics.findings().iter();
    findings
        .map(|finding| {
            let text = Diagnostics::new(vec![finding.clone()]).to_string();
            format!("{} {text}", finding.code())
        })
        .collect()
}

#[test]
fn signed_bundle_is_loaded() {
    let store = TestBundle::new();
    let signed = store.sign(&[signer("acme", 1)], None).unwrap();
    assert_eq!((&signed.name[..], signed.version, signed.unchanged), ("acme", 1, false));
    assert_eq!(signed.files, ["a.cedar", "a.test.yaml"]);
    let engine = store.open(&[signer("other", 2), signer("acme", 1)]).unwrap();
    let status = engine.status().borrow().clone();
    assert_eq!(status.policies, 1);
    let origin = status.bundle.unwrap();
    assert_eq!((&origin.name[..], origin.version), ("acme", 1));
    assert_eq!(origin.time.to_string(), "2026-11-21T12:00:01Z");
    assert_eq!(origin.signed_by, [signer("acme", 1).verifier().to_string()]);
    assert_eq!(engine.rules()[0].file.as_deref(), Some(Path::new("b/a.cedar")));

    // As loose files, the policies are the same.
    let loose = Engine::load(&["b".into()], store.0.path()).unwrap();
    assert_eq!(loose.revision(), engine.revision());
}

#[test]
fn changed_bundle_is_refused() {
    type Change = fn(&TestBundle);
    let cases: &[(&str, Change, &[&str])] = &[
        (
            "a file was changed",
            |store| store.write("a.cedar", format!("{PERMIT} ")),
            &["policy-bundle-file b/a.cedar: `a.cedar` is not what was signed"],
        ),
        (
            "one that is not a policy, too",
            |store| store.write("a.test.yaml", "cases: [] "),
            &["policy-bundle-file b/a.test.yaml: `a.test.yaml` is not what was signed"],
        ),
        (
            "a file came",
            |store| store.write("b.cedar", PERMIT),
            &["policy-bundle-file b/b.cedar: the manifest does not list `b.cedar`"],
        ),
        (
            "a hidden one, too",
            |store| store.write(".x", ""),
            &["policy-bundle-file b/.x: the manifest does not list `.x`"],
        ),
        (
            "a folder came",
            |store| fs::create_dir(store.dir().join("c")).unwrap(),
            &["policy-bundle-file b/c: the manifest does not list `c`"],
        ),
        (
            "a file went",
            |store| fs::remove_file(store.dir().join("a.cedar")).unwrap(),
            &[
                "policy-bundle-file b/a.cedar: `a.cedar` is listed and cannot be read: No such file \
               or directory (os error 2)",
            ],
        ),
        (
            "a file is a link to the same text",
            |store| {
                let other = store.0.path().join("other");
                fs::rename(store.dir().join("a.cedar"), &other).unwrap();
                symlink(other, store.dir().join("a.cedar")).unwrap();
            },
            &["policy-bundle-file b/a.cedar: `a.cedar` is listed and cannot be read: it is a \
               link, and a bundle has plain files alone"],
        ),
        (
            "a file is a pipe",
            |store| {
                fs::remove_file(store.dir().join("a.cedar")).unwrap();
                mkfifo(&store.dir().join("a.cedar"), Mode::S_IRWXU).unwrap();
            },
            &[
                "policy-bundle-file b/a.cedar: `a.cedar` is listed and cannot be read: a bundle has \
               plain files alone",
            ],
        ),
        (
            "everything at once",
            |store| {
                store.write("a.cedar", "");
                store.write("a.test.yaml", "");
                store.write("b", "");
            },
            &[
                "policy-bundle-file b/b: the manifest does not list `b`",
                "policy-bundle-file b/a.cedar: `a.cedar` is not what was signed",
                "policy-bundle-file b/a.test.yaml: `a.test.yaml` is not what was signed",
            ],
        ),
        (
            "the manifest went",
            |store| fs::remove_file(store.dir().join(MANIFEST)).unwrap(),
            &[
                "policy-bundle-unsigned b/bundle.note: the manifest cannot be read: No such file or \
               directory (os error 2)",
            ],
        ),
        (
            "the manifest was changed",
            |store| {
                let note = fs::read_to_string(store.dir().join(MANIFEST)).unwrap();
                store.write(MANIFEST, note.replace("\"version\": 1", "\"version\": 2"));
            },
            &["policy-bundle-unsigned b/bundle.note: the manifest is not what was signed: its \
               signature is wrong"],
        ),
        (
            "the manifest is not a note",
            |store| store.write(MANIFEST, [0xff]),
            &["policy-bundle-unsigned b/bundle.note: the manifest is not a signed note"],
        ),
        (
            "the signature is cut off",
            |store| {
                let note = fs::read_to_string(store.dir().join(MANIFEST)).unwrap();
                store.write(MANIFEST, note.split("\n\n").next().unwrap());
            },
            &["policy-bundle-unsigned b/bundle.note: the manifest is not a signed note"],
        ),
        (
            "another signed it",
            |store| {
                fs::remove_file(store.dir().join(MANIFEST)).unwrap();
                store.sign(&[signer("acme", 2)], None).unwrap();
            },
            &["policy-bundle-unsigned b/bundle.note: none of the keys that may has signed the \
               manifest"],
        ),
        (
            "the folder went",
            |store| fs::remove_dir_all(store.dir()).unwrap(),
            &["policy-bundle-unreadable b/: cannot read the bundle b/: No such file or directory \
               (os error 2)"],
        ),
    ];
    for (what, change, findings) in cases {
        let store = TestBundle::new();
        store.sign(&[signer("acme", 1)], None).unwrap();
        store.open(&[signer("acme", 1)]).unwrap();
        change(&store);
        assert_eq!(store.findings(), *findings, "{what}");
    }
}

#[test]
fn malformed_signed_manifest_is_refused() {
    let store = TestBundle::new();
    let listed = |name: &str| format!(r#"{{"name":"{name}","sha256":"00"}}"#);
    let manifest = |name: &str, version: &str, format: &str, files: &str| {
        format!(
            r#"{{"format":"{format}","name":"{name}","version":{version},"time":"2026-11-21T12:00:00Z","files":[{files}]}}"#
        )
    };
    for (text, problem) in [
        ("{}".to_owned(), "is signed, and is not a manifest: missing field"),
        (manifest("acme", "1", "x/1", ""), "is of the format `x/1`"),
        (manifest("acme", "0", FORMAT, ""), "has the version 0"),
        (manifest("acme", "-1", FORMAT, ""), "is not a manifest: invalid value"),
        (manifest("acme", "1", FORMAT, &listed("../a")), "which is not a name of a file"),
        (manifest("acme", "1", FORMAT, &listed("c/a")), "which is not a name of a file"),
        (manifest("acme", "1", FORMAT, &listed(".a")), "which is not a name of a file"),
        (manifest("acme", "1", FORMAT, &listed("")), "which is not a name of a file"),
        (manifest("acme", "1", FORMAT, &listed(MANIFEST)), "which is not a name of a file"),
        (manifest("acme", "1", FORMAT, &[listed("a"), listed("a")].join(",")), "lists `a` twice"),
        (
            manifest("acme", "1", FORMAT, "").replace("\"files\"", "\"more\":1,\"files\""),
            "unknown field `more`",
        ),
        (manifest("beta", "1", FORMAT, ""), "no key of that name has signed it"),
    ] {
        let note = signer("acme", 1).sign(&format!("{text}\n")).unwrap();
        store.write(MANIFEST, note);
        let findings = store.findings();
        assert!(findings.len() == 1 && findings[0].contains(problem), "{text}: {findings:?}");
    }
}

#[test]
fn findings_about_many_files_are_limited() {
    let key = [signer("acme", 1)];
    let store = TestBundle::new();
    for number in 0..100 {
        store.write(&format!("listed-{number}"), "");
    }
    store.sign(&key, None).unwrap();
    for number in 0..100 {
        store.write(&format!("listed-{number}"), "changed");
        store.write(&format!("unlisted-{number}"), "");
    }
    let problems = problems(&store.open(&key).unwrap_err());
    assert_eq!(problems.len(), 41);
    assert!(problems.contains(&"policy-bundle-file b/: nor does it list 80 more".to_owned()));
    assert_eq!(problems[40], "policy-bundle-file b/: 81 more do not hold");
}

#[test]
fn rollback_to_an_older_version_is_refused() {
    let key = || [signer("acme", 1)];
    let store = TestBundle::new();
    store.sign(&key(), Some(5)).unwrap();
    // A bundle that is only opened is not recorded.
    store.open(&key()).unwrap();
    store.sign(&key(), Some(5)).unwrap();
    store.write("a.cedar", "");
    store.sign(&key(), Some(4)).unwrap();
    store.open(&key()).unwrap().enforce().unwrap();

    store.write("a.cedar", PERMIT);
    store.sign(&key(), Some(3)).unwrap();
    let rollback = "policy-bundle-rollback b/bundle.note: ";
    let older = format!("{rollback}version 3 of `acme` is older than 4, which was in force");
    assert_eq!(store.findings(), [older]);
    fs::remove_file(store.dir().join(MANIFEST)).unwrap();
    store.sign(&key(), Some(4)).unwrap();
    let other = format!("{rollback}another version 4 of `acme` was in force, with other content");
    assert_eq!(store.findings(), [other]);

    // A running proxy accepts and records the next one.
    fs::remove_file(store.dir().join(MANIFEST)).unwrap();
    store.write("a.cedar", "");
    store.sign(&key(), Some(6)).unwrap();
    let engine = store.open(&key()).unwrap();
    engine.enforce().unwrap();
    store.write("a.cedar", PERMIT);
    store.sign(&key(), None).unwrap();
    let revision = engine.revision();
    assert_ne!(engine.reload().unwrap(), revision);
    store.sign(&key(), Some(6)).unwrap();
    assert!(problems(&engine.reload().unwrap_err())[0].starts_with(rollback));
    let status = engine.status().borrow().clone();
    assert_eq!(status.bundle.map(|bundle| bundle.version), Some(7));
    assert!(status.last_error.is_some());
    assert!(store.open(&key()).is_err());

    // Another name has its own versions, and the earlier name cannot follow it.
    let both = [signer("acme", 1), signer("beta", 1)];
    let note = store.dir().join(MANIFEST);
    fs::remove_file(&note).unwrap();
    store.sign(&key(), Some(7)).unwrap();
    let before = fs::read(&note).unwrap();
    store.open(&both).unwrap().enforce().unwrap();
    fs::remove_file(&note).unwrap();
    store.sign(&[signer("beta", 1)], None).unwrap();
    for _ in 0..2 {
        store.open(&both).unwrap().enforce().unwrap();
    }
    fs::write(&note, before).unwrap();
    let back = format!("{rollback}a bundle of `beta` was in force after those of `acme`");
    assert_eq!(problems(&store.open(&both).unwrap_err()), [back]);
}

#[test]
fn version_that_cannot_be_stored_is_not_enforced() {
    let key = || [signer("acme", 1)];
    let store = TestBundle::new();
    store.sign(&key(), None).unwrap();
    let engine = store.open(&key()).unwrap();
    let state = store.0.path().join("state");
    // A file in place of the folder.
    fs::write(&state, "").unwrap();
    let code = |diagnostics: Diagnostics| diagnostics.findings()[0].code();
    assert_eq!(code(engine.enforce().unwrap_err()), "policy-bundle-memory");
    fs::remove_file(&state).unwrap();
    engine.enforce().unwrap();
    for damaged in ["", "[]", "{\"acme\": {}}"] {
        fs::write(state.join("policy-bundles.json"), damaged).unwrap();
        assert_eq!(code(store.open(&key()).unwrap_err()), "policy-bundle-memory");
    }
}

#[test]
fn signing_increments_the_version_of_changed_content() {
    let store = TestBundle::new();
    let key = || signer("acme", 1);
    assert_eq!(store.sign(&[key()], None).unwrap().version, 1);
    let note = || fs::read_to_string(store.dir().join(MANIFEST)).unwrap();
    let first = note();
    // The same content has the same version; a new key adds its signature.
    let second = store.sign(&[key()], None).unwrap();
    assert!(second.unchanged && second.version == 1);
    let both = store.sign(&[key(), signer("acme", 2)], None).unwrap();
    assert!(both.unchanged && note().starts_with(&first), "{}", note());
    for seed in [1, 2] {
        store.open(&[signer("acme", seed)]).unwrap();
    }
    store.write("b.cedar", "");
    assert_eq!(store.sign(&[signer("acme", 2)], None).unwrap().version, 2);
    store.write("c.cedar", "");
    assert!(matches!(
        store.sign(&[signer("acme", 2)], Some(2)),
        Err(SignFault::Taken { version: 2 })
    ));
    // A manifest of another signer has no next version.
    let stranger = || [signer("acme", 3)];
    assert!(matches!(store.sign(&stranger(), None), Err(SignFault::Unknown(_))));
    assert_eq!(store.sign(&stranger(), Some(9)).unwrap().version, 9);
    assert!(matches!(store.sign(&[key(), signer("beta", 1)], None), Err(SignFault::Names(_, _))));
    for (make, undo) in [
        (
            (|dir: &Path| fs::create_dir(dir.join("d")).unwrap()) as fn(&Path),
            (|dir: &Path| fs::remove_dir(dir.join("d")).unwrap()) as fn(&Path),
        ),
        (
            |dir| symlink("a.cedar", dir.join("d")).unwrap(),
            |dir| fs::remove_file(dir.join("d")).unwrap(),
        ),
        (
            |dir| fs::write(dir.join(".d"), "").unwrap(),
            |dir| fs::remove_file(dir.join(".d")).unwrap(),
        ),
    ] {
        make(&store.dir());
        assert!(matches!(store.sign(&stranger(), None), Err(SignFault::File { .. })));
        undo(&store.dir());
    }
    assert!(!store.sign(&[signer("acme", 3)], Some(10)).unwrap().unchanged);
}
