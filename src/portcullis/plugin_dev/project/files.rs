//! Files of new projects, embedded in the program.

use super::Language;

/// File: its path in the project, and its content.
pub type File = (&'static str, &'static [u8]);

/// Name of the plugin in templates.
pub const NAME: &str = "my-plugin";

macro_rules! files {
    ($folder:literal: $($path:literal)*) => {
        &[$(($path, include_bytes!(concat!("../../../../plugins/", $folder, "/", $path)))),*]
    };
}

const CONTRACT: File =
    ("interceptor.wit", include_bytes!("../../../../plugins/wit/interceptor.wit"));

const RUST: &[File] = files!("templates/rust":
    ".cargo/config.toml" "Cargo.lock" "Cargo.toml" "gitignore" "my-plugin.test.yaml"
    "src/config.schema.json" "src/lib.rs"
);

const SDK: &[File] = files!("sdk":
    "Cargo.toml" "src/clock.rs" "src/http.rs" "src/json.rs" "src/lib.rs" "src/log.rs"
    "src/manifest.rs" "src/message.rs" "src/metrics.rs" "src/random.rs" "src/secrets.rs"
    "src/state.rs" "src/verdict.rs"
);

const JS: &[File] = files!("templates/js":
    "gitignore" "my-plugin.js" "my-plugin.test.yaml" "package-lock.json" "package.json"
    "wit/world.wit"
);

const PYTHON: &[File] = files!("templates/python":
    "gitignore" "my-plugin.test.yaml" "my_plugin.py" "requirements.txt" "wit/world.wit"
);

const C: &[File] = files!("templates/c":
    "bindings/plugin.c" "bindings/plugin.h" "bindings/plugin_component_type.o" "gitignore"
    "my-plugin.c" "my-plugin.test.yaml"
);

/// All files of a project, by their paths in it.
pub fn files(language: Language) -> Vec<(String, &'static [u8])> {
    let own = |files: &[File]| -> Vec<_> {
        files
            .iter()
            // Under its own name, it would affect this repository.
            .map(|(path, content)| (path.replace("gitignore", ".gitignore"), *content))
            .collect()
    };
    let contract = |folder: &str| (format!("{folder}/{}", CONTRACT.0), CONTRACT.1);
    let mut all = match language {
        Language::Rust => own(RUST),
        Language::Js => own(JS),
        Language::Python => own(PYTHON),
        Language::C => own(C),
    };
    match language {
        Language::Rust => {
            all.extend(SDK.iter().map(|(path, content)| (format!("sdk/{path}"), *content)));
            all.push(contract("sdk/wit"));
        }
        Language::Js | Language::Python => all.push(contract("wit/deps/portcullis-interceptor")),
        // The bindings are generated from the contract, which is included for readers.
        Language::C => all.push(contract("wit")),
    }
    all
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// All files below a folder, except those that tools create.
    fn below(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            let path = format!("{prefix}{name}");
            match entry.file_type().unwrap() {
                kind if kind.is_file() => drop(found.insert(path)),
                kind if kind.is_dir() && !matches!(name.as_str(), "target" | "node_modules") => {
                    below(&entry.path(), &format!("{path}/"), found);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn every_template_and_sdk_file_is_embedded() {
        let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins");
        for (folder, carried) in [
            ("templates/rust", RUST),
            ("templates/js", JS),
            ("templates/python", PYTHON),
            ("templates/c", C),
            ("sdk", SDK),
        ] {
            let mut there = BTreeSet::new();
            below(&plugins.join(folder), "", &mut there);
            // A project has its own lock file, and the examples are for readers of this repository.
            let for_projects = |path: &String| path.starts_with("src/") || path == "Cargo.toml";
            there.retain(|path| folder != "sdk" || for_projects(path));
            let carried: BTreeSet<_> = carried.iter().map(|(path, _)| (*path).to_owned()).collect();
            assert_eq!(carried, there, "{folder}");
        }
    }
}
