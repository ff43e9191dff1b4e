//! The layers of `src`: every folder is a crate, and a crate depends on crates of lower layers only.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use serde_json::Value;

/// From the lowest layer to the highest.
const LAYERS: [&[&str]; 8] = [
    &["egress", "foundation", "kubernetes", "syscalls"],
    &["guard", "oci", "protocol", "vault"],
    &["audit", "catalog", "chain", "provenance"],
    &["plugin-host", "policy", "runtime", "telemetry"],
    &["interceptors", "policy-tools", "upstream"],
    &["config"],
    &["gateway"],
    &["portcullis"],
];

/// Dependencies that the layers would allow, and that must not be: a crate, and what it does without.
const NEVER: [(&str, &str); 4] = [
    // Auditors build and test the log without Cedar, WebAssembly and container engines.
    ("audit", "policy"),
    ("audit", "plugin-host"),
    ("policy", "audit"),
    ("gateway", "policy-tools"),
];

fn layer(name: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&name))
        .unwrap_or_else(|| panic!("`{name}` is in no layer: add it to tests/layers.rs"))
}

/// The crates of `src` with the crates of `src` that they depend on, by the names of their folders.
fn crates() -> BTreeMap<String, Vec<String>> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let source = fs::canonicalize(root.join("src")).unwrap();
    let folder = |path: &str| {
        let path = fs::canonicalize(path).ok()?;
        let within = path.strip_prefix(&source).ok()?;
        Some(within.components().next()?.as_os_str().to_str()?.to_owned())
    };
    let packages = metadata["packages"].as_array().unwrap();
    let found = packages.iter().filter_map(|package| {
        let name = folder(package["manifest_path"].as_str()?)?;
        let dependencies = package["dependencies"].as_array()?.iter();
        let dependencies = dependencies.filter(|one| one["kind"] != "dev");
        let dependencies = dependencies.filter_map(|one| folder(one["path"].as_str()?));
        Some((name, dependencies.collect()))
    });
    found.collect()
}

#[test]
fn every_crate_has_a_layer() {
    let crates = crates();
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    for entry in fs::read_dir(root.join("src")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(entry.file_type().unwrap().is_dir(), "src/{name} is in no crate");
        assert!(crates.contains_key(&name), "src/{name} is not a crate of the workspace");
        layer(&name);
    }
    let listed = LAYERS.iter().map(|layer| layer.len()).sum::<usize>();
    assert_eq!(listed, crates.len(), "tests/layers.rs lists crates that are gone");
}

#[test]
fn crates_depend_on_lower_layers_only() {
    for (name, dependencies) in crates() {
        for dependency in dependencies {
            assert!(
                layer(&dependency) < layer(&name),
                "`{name}` depends on `{dependency}`, which is not in a lower layer"
            );
            assert!(
                !NEVER.contains(&(name.as_str(), dependency.as_str())),
                "`{name}` must not depend on `{dependency}`"
            );
        }
    }
}

#[test]
fn operations_do_not_know_the_command_line() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let mut folders = vec![root.join("src/portcullis/manage")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let text = fs::read_to_string(&path).unwrap();
            for name in ["crate::cli", "clap::", "println!"] {
                assert!(!text.contains(name), "{} uses {name}", path.display());
            }
        }
    }
    assert!(files > 10, "the operations are elsewhere: {files} files");
}
