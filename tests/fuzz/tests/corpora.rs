//! Every target over its kept corpus: a finding of the engine stays found.

use std::{fs, path::Path};

#[test]
fn corpora_cause_no_panic() {
    for (name, target) in fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora").join(name);
        let mut files = 0;
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            let held = std::panic::catch_unwind(|| target(&fs::read(&path).unwrap()));
            assert!(held.is_ok(), "{}: see above", path.display());
            files += 1;
        }
        assert!(files > 10, "the corpus of `{name}` has {files} files");
    }
}
