use std::{path::PathBuf, sync::Arc, time::Duration};

use super::*;

const ALL: &str = "permit (principal, action, resource);";

#[test]
fn invalid_policies_leave_the_old_ones_in_force() {
    let folder = folder(&[("p.cedar", ALL)]);
    let engine = Engine::load(&["policies".into()], folder.path()).unwrap();
    let before = engine.revision();
    let principal = anonymous();
    let may = |engine: &Engine| {
        engine.could_allow(&Subject::Client(&principal), Action::Connect, &Resource::Proxy)
    };

    fs::write(folder.path().join("policies/p.cedar"), "permit (principal").unwrap();
    let diagnostics = engine.reload().unwrap_err();
    assert_eq!(diagnostics.findings()[0].code(), "policy-syntax");
    assert_eq!(engine.revision(), before);
    assert!(may(&engine));
    assert!(engine.status().borrow().last_error.is_some());

    fs::remove_file(folder.path().join("policies/p.cedar")).unwrap();
    assert_ne!(engine.reload().unwrap(), before);
    assert!(engine.status().borrow().last_error.is_none());
    assert!(!may(&engine));

    fs::write(folder.path().join("policies/p.cedar"), ALL).unwrap();
    assert_eq!(engine.reload().unwrap(), before, "the same files are the same revision");
    assert!(may(&engine));
}

#[tokio::test]
async fn change_is_detected_for_every_kind_of_write() {
    let folder = folder(&[("p.cedar", ALL)]);
    let file = folder.path().join("policies/p.cedar");
    // Once by its folder, once by its own name.
    for path in ["policies", "policies/p.cedar"] {
        let engine = Arc::new(Engine::load(&[path.into()], folder.path()).unwrap());
        let _watcher = watch(Arc::clone(&engine)).unwrap();
        let mut status = engine.status();
        let mut change = async |policies: usize, broken: bool| {
            let seen = status.wait_for(|status| {
                status.policies == policies && status.last_error.is_some() == broken
            });
            let seen = tokio::time::timeout(Duration::from_secs(20), seen).await;
            seen.unwrap_or_else(|_| panic!("{path}: not seen: {policies}, {broken}")).unwrap();
        };

        // In place.
        fs::write(&file, format!("{ALL}{ALL}\n").replace(";p", ";\np")).unwrap();
        change(2, false).await;
        // By rename, as many editors do, twice: the second one finds another file than the first.
        for count in [3, 4] {
            let new = folder.path().join("policies/p.cedar~");
            fs::write(&new, format!("{ALL}\n").repeat(count)).unwrap();
            fs::rename(&new, &file).unwrap();
            change(count, false).await;
        }
        fs::write(&file, "permit (").unwrap();
        change(4, true).await;
        fs::write(&file, ALL).unwrap();
        change(1, false).await;
        // The folder is moved away and replaced.
        fs::rename(folder.path().join("policies"), folder.path().join("old")).unwrap();
        change(1, true).await;
        fs::create_dir(folder.path().join("policies")).unwrap();
        fs::write(&file, format!("{ALL}\n{ALL}")).unwrap();
        change(2, false).await;
        fs::write(&file, ALL).unwrap();
        change(1, false).await;
        fs::remove_dir_all(folder.path().join("old")).unwrap();
    }
}

#[test]
fn file_names_are_relative_to_the_base() {
    let folder = folder(&[("p.cedar", ALL)]);
    let names = |paths: &[PathBuf]| {
        let engine = Engine::load(paths, folder.path()).unwrap();
        let principal = anonymous();
        let outcome = engine.decide(&Request {
            subject: Subject::Client(&principal),
            action: Action::Connect,
            resource: Resource::Proxy,
            args: None,
            written: b"",
            circumstances: circumstances("initialize"),
        });
        (outcome.rules[0].file.clone(), engine.revision())
    };
    let relative = names(&["policies".into()]);
    assert_eq!(relative.0, Some("policies/p.cedar".into()));
    // The same file through other paths is read once, under the same name.
    let absolute = folder.path().join("policies/p.cedar");
    assert_eq!(names(&[absolute, "policies/p.cedar".into()]), relative);
}
