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
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        fs::create_dir(place.dir()).unwrap();
        place.write("a.cedar", PERMIT);
        place.write("a.test.yaml", "cases: []\n");
        place
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
        told(&self.open(&[signer("acme", 1)]).map(|_| ()).unwrap_err())
    }
}

fn told(diagnostics: &Diagnostics) -> Vec<String> {
    let findings = diagnostics.findings().iter();
    findings
        .map(|finding| {
            let text = Diagnostics::new(vec![finding.clone()]).to_string();
            format!("{} {text}", finding.code())
        })
        .collect()
}

#[test]
fn what_was_signed_is_loaded() {
    let place = Place::new();
    let signed = place.sign(&[signer("acme", 1)], None).unwrap();
    assert_eq!((&signed.name[..], signed.version, signed.again), ("acme", 1, false));
    assert_eq!(signed.files, ["a.cedar", "a.test.yaml"]);
    let engine = place.open(&[signer("other", 2), signer("acme", 1)]).unwrap();
    let status = engine.status().borrow().clone();
    assert_eq!(status.policies, 1);
    let origin = status.bundle.unwrap();
    assert_eq!((&origin.name[..], origin.version), ("acme", 1));
    assert_eq!(origin.time.to_string(), "2026-11-21T12:00:01Z");
    assert_eq!(origin.signed_by, [signer("acme", 1).verifier().to_string()]);
    assert_eq!(engine.rules()[0].file.as_deref(), Some(Path::new("b/a.cedar")));

    // As loose files, the policies are the same.
    let loose = Engine::load(&["b".into()], place.0.path()).unwrap();
    assert_eq!(loose.revision(), engine.revision());
}

#[test]
fn what_is_not_as_it_was_signed_is_refused() {
    type Change = fn(&Place);
    let cases: &[(&str, Change, &[&str])] = &[
        (
            "a file was changed",
            |place| place.write("a.cedar", format!("{PERMIT} ")),
            &["policy-bundle-file b/a.cedar: `a.cedar` is not what was signed"],
        ),
        (
            "one that is no policy, too",
            |place| place.write("a.test.yaml", "cases: [] "),
            &["policy-bundle-file b/a.test.yaml: `a.test.yaml` is not what was signed"],
        ),
        (
            "a file came",
            |place| place.write("b.cedar", PERMIT),
            &["policy-bundle-file b/b.cedar: the manifest does not list `b.cedar`"],
        ),
        (
            "a hidden one, too",
            |place| place.write(".x", ""),
            &["policy-bundle-file b/.x: the manifest does not list `.x`"],
        ),
        (
            "a folder came",
            |place| fs::create_dir(place.dir().join("c")).unwrap(),
            &["policy-bundle-file b/c: the manifest does not list `c`"],
        ),
        (
            "a file went",
            |place| fs::remove_file(place.dir().join("a.cedar")).unwrap(),
            &[
                "policy-bundle-file b/a.cedar: `a.cedar` is listed and cannot be read: No such file \
               or directory (os error 2)",
            ],
        ),
        (
            "a file is a link to the same text",
            |place| {
                let other = place.0.path().join("other");
                fs::rename(place.dir().join("a.cedar"), &other).unwrap();
                symlink(other, place.dir().join("a.cedar")).unwrap();
            },
            &["policy-bundle-file b/a.cedar: `a.cedar` is listed and cannot be read: it is a \
               link, and a bundle has plain files alone"],
        ),
        (
            "a file is a pipe",
            |place| {
                fs::remove_file(place.dir().join("a.cedar")).unwrap();
                mkfifo(&place.dir().join("a.cedar"), Mode::S_IRWXU).unwrap();
            },
            &[
                "policy-bundle-file b/a.cedar: `a.cedar` is listed and cannot be read: a bundle has \
               plain files alone",
            ],
        ),
        (
            "everything at once",
            |place| {
                place.write("a.cedar", "");
                place.write("a.test.yaml", "");
                place.write("b", "");
            },
            &[
                "policy-bundle-file b/b: the manifest does not list `b`",
                "policy-bundle-file b/a.cedar: `a.cedar` is not what was signed",
                "policy-bundle-file b/a.test.yaml: `a.test.yaml` is not what was signed",
            ],
        ),
        (
            "the manifest went",
            |place| fs::remove_file(place.dir().join(MANIFEST)).unwrap(),
            &[
                "policy-bundle-unsigned b/bundle.note: the manifest cannot be read: No such file or \
               directory (os error 2)",
            ],
        ),
        (
            "the manifest was changed",
            |place| {
                let note = fs::read_to_string(place.dir().join(MANIFEST)).unwrap();
                place.write(MANIFEST, note.replace("\"version\": 1", "\"version\": 2"));
            },
            &["policy-bundle-unsigned b/bundle.note: the manifest is not what was signed: its \
               signature is wrong"],
        ),
        (
            "the manifest is none",
            |place| place.write(MANIFEST, [0xff]),
            &["policy-bundle-unsigned b/bundle.note: the manifest is no signed note"],
        ),
        (
            "the signature is cut off",
            |place| {
                let note = fs::read_to_string(place.dir().join(MANIFEST)).unwrap();
                place.write(MANIFEST, note.split("\n\n").next().unwrap());
            },
            &["policy-bundle-unsigned b/bundle.note: the manifest is no signed note"],
        ),
        (
            "another signed it",
            |place| {
                fs::remove_file(place.dir().join(MANIFEST)).unwrap();
                place.sign(&[signer("acme", 2)], None).unwrap();
            },
            &["policy-bundle-unsigned b/bundle.note: none of the keys that may has signed the \
               manifest"],
        ),
        (
            "the folder went",
            |place| fs::remove_dir_all(place.dir()).unwrap(),
            &["policy-bundle-unreadable b/: cannot read the bundle b/: No such file or directory \
               (os error 2)"],
        ),
    ];
    for (what, change, findings) in cases {
        let place = Place::new();
        place.sign(&[signer("acme", 1)], None).unwrap();
        place.open(&[signer("acme", 1)]).unwrap();
        change(&place);
        assert_eq!(place.findings(), *findings, "{what}");
    }
}

#[test]
fn a_manifest_that_was_signed_has_its_form() {
    let place = Place::new();
    let listed = |name: &str| format!(r#"{{"name":"{name}","sha256":"00"}}"#);
    let manifest = |name: &str, version: &str, format: &str, files: &str| {
        format!(
            r#"{{"format":"{format}","name":"{name}","version":{version},"time":"2026-11-21T12:00:00Z","files":[{files}]}}"#
        )
    };
    for (text, problem) in [
        ("{}".to_owned(), "is signed, and is no manifest: missing field"),
        (manifest("acme", "1", "x/1", ""), "is of the format `x/1`"),
        (manifest("acme", "0", FORMAT, ""), "has the version 0"),
        (manifest("acme", "-1", FORMAT, ""), "is no manifest: invalid value"),
        (manifest("acme", "1", FORMAT, &listed("../a")), "which is no name of a file"),
        (manifest("acme", "1", FORMAT, &listed("c/a")), "which is no name of a file"),
        (manifest("acme", "1", FORMAT, &listed(".a")), "which is no name of a file"),
        (manifest("acme", "1", FORMAT, &listed("")), "which is no name of a file"),
        (manifest("acme", "1", FORMAT, &listed(MANIFEST)), "which is no name of a file"),
        (manifest("acme", "1", FORMAT, &[listed("a"), listed("a")].join(",")), "lists `a` twice"),
        (
            manifest("acme", "1", FORMAT, "").replace("\"files\"", "\"more\":1,\"files\""),
            "unknown field `more`",
        ),
        (manifest("beta", "1", FORMAT, ""), "no key of that name has signed it"),
    ] {
        let note = signer("acme", 1).sign(&format!("{text}\n")).unwrap();
        place.write(MANIFEST, note);
        let findings = place.findings();
        assert!(findings.len() == 1 && findings[0].contains(problem), "{text}: {findings:?}");
    }
}

#[test]
fn a_flood_of_files_is_told_of_in_few_words() {
    let key = [signer("acme", 1)];
    let place = Place::new();
    for number in 0..100 {
        place.write(&format!("listed-{number}"), "");
    }
    place.sign(&key, None).unwrap();
    for number in 0..100 {
        place.write(&format!("listed-{number}"), "changed");
        place.write(&format!("unlisted-{number}"), "");
    }
    let told = told(&place.open(&key).unwrap_err());
    assert_eq!(told.len(), 41);
    assert!(told.contains(&"policy-bundle-file b/: nor does it list 80 more".to_owned()));
    assert_eq!(told[40], "policy-bundle-file b/: 81 more do not hold");
}

#[test]
fn nothing_older_follows_what_was_in_force() {
    let key = || [signer("acme", 1)];
    let place = Place::new();
    place.sign(&key(), Some(5)).unwrap();
    // A bundle that is only opened is not recorded.
    place.open(&key()).unwrap();
    place.sign(&key(), Some(5)).unwrap();
    place.write("a.cedar", "");
    place.sign(&key(), Some(4)).unwrap();
    place.open(&key()).unwrap().enforce().unwrap();

    place.write("a.cedar", PERMIT);
    place.sign(&key(), Some(3)).unwrap();
    let rollback = "policy-bundle-rollback b/bundle.note: ";
    let older = format!("{rollback}version 3 of `acme` is older than 4, which was in force");
    assert_eq!(place.findings(), [older]);
    fs::remove_file(place.dir().join(MANIFEST)).unwrap();
    place.sign(&key(), Some(4)).unwrap();
    let other = format!("{rollback}another version 4 of `acme` was in force, with other content");
    assert_eq!(place.findings(), [other]);

    // A running proxy accepts and records the next one.
    fs::remove_file(place.dir().join(MANIFEST)).unwrap();
    place.write("a.cedar", "");
    place.sign(&key(), Some(6)).unwrap();
    let engine = place.open(&key()).unwrap();
    engine.enforce().unwrap();
    place.write("a.cedar", PERMIT);
    place.sign(&key(), None).unwrap();
    let revision = engine.revision();
    assert_ne!(engine.reload().unwrap(), revision);
    place.sign(&key(), Some(6)).unwrap();
    assert!(told(&engine.reload().unwrap_err())[0].starts_with(rollback));
    let status = engine.status().borrow().clone();
    assert_eq!(status.bundle.map(|bundle| bundle.version), Some(7));
    assert!(status.last_error.is_some());
    assert!(place.open(&key()).is_err());

    // Another name has its own versions, and the earlier name cannot follow it.
    let both = [signer("acme", 1), signer("beta", 1)];
    let note = place.dir().join(MANIFEST);
    fs::remove_file(&note).unwrap();
    place.sign(&key(), Some(7)).unwrap();
    let before = fs::read(&note).unwrap();
    place.open(&both).unwrap().enforce().unwrap();
    fs::remove_file(&note).unwrap();
    place.sign(&[signer("beta", 1)], None).unwrap();
    for _ in 0..2 {
        place.open(&both).unwrap().enforce().unwrap();
    }
    fs::write(&note, before).unwrap();
    let back = format!("{rollback}a bundle of `beta` was in force after those of `acme`");
    assert_eq!(told(&place.open(&both).unwrap_err()), [back]);
}

#[test]
fn where_it_cannot_be_kept_in_mind_it_is_not_in_force() {
    let key = || [signer("acme", 1)];
    let place = Place::new();
    place.sign(&key(), None).unwrap();
    let engine = place.open(&key()).unwrap();
    let state = place.0.path().join("state");
    // A file in place of the folder.
    fs::write(&state, "").unwrap();
    let code = |diagnostics: Diagnostics| diagnostics.findings()[0].code();
    assert_eq!(code(engine.enforce().unwrap_err()), "policy-bundle-memory");
    fs::remove_file(&state).unwrap();
    engine.enforce().unwrap();
    for damaged in ["", "[]", "{\"acme\": {}}"] {
        fs::write(state.join("policy-bundles.json"), damaged).unwrap();
        assert_eq!(code(place.open(&key()).unwrap_err()), "policy-bundle-memory");
    }
}

#[test]
fn signing_counts_on_and_signs_nothing_twice() {
    let place = Place::new();
    let key = || signer("acme", 1);
    assert_eq!(place.sign(&[key()], None).unwrap().version, 1);
    let note = || fs::read_to_string(place.dir().join(MANIFEST)).unwrap();
    let first = note();
    // The same content has the same version; a new key adds its signature.
    let again = place.sign(&[key()], None).unwrap();
    assert!(again.again && again.version == 1);
    let both = place.sign(&[key(), signer("acme", 2)], None).unwrap();
    assert!(both.again && note().starts_with(&first), "{}", note());
    for seed in [1, 2] {
        place.open(&[signer("acme", seed)]).unwrap();
    }
    place.write("b.cedar", "");
    assert_eq!(place.sign(&[signer("acme", 2)], None).unwrap().version, 2);
    place.write("c.cedar", "");
    assert!(matches!(
        place.sign(&[signer("acme", 2)], Some(2)),
        Err(SignFault::Taken { version: 2 })
    ));
    // A manifest of another signer has no next version.
    let stranger = || [signer("acme", 3)];
    assert!(matches!(place.sign(&stranger(), None), Err(SignFault::Unknown(_))));
    assert_eq!(place.sign(&stranger(), Some(9)).unwrap().version, 9);
    assert!(matches!(place.sign(&[key(), signer("beta", 1)], None), Err(SignFault::Names(_, _))));
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
        make(&place.dir());
        assert!(matches!(place.sign(&stranger(), None), Err(SignFault::File { .. })));
        undo(&place.dir());
    }
    assert!(!place.sign(&[signer("acme", 3)], Some(10)).unwrap().again);
}
