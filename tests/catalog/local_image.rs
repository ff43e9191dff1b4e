//! Images that only the engine has.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::json;

use super::{checks, folder, ok, read, run, table, write};

/// An image on this machine's engine, removed with this.
struct Local {
    name: String,
    id: String,
}

impl Local {
    fn make(name: &str) -> Self {
        let name = format!("portcullis-test/{name}-{}:1", std::process::id());
        let mut import = Command::new("docker");
        import.args(["import", "--change", "ENTRYPOINT [\"/x\"]", "-", &name]);
        let mut import = import.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Two blocks of zeros are an archive with nothing in it.
        import.stdin.take().unwrap().write_all(&[0; 1024]).unwrap();
        let made = import.wait_with_output().unwrap();
        assert!(made.status.success(), "{made:?}");
        Self { name, id: String::from_utf8(made.stdout).unwrap().trim().to_owned() }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", &self.name]).stdout(Stdio::null()).status();
    }
}

fn locked(dir: &Path, server: &str) -> toml::Value {
    let lock: toml::Table = read(dir, "portcullis.lock").parse().unwrap();
    lock["servers"][server].clone()
}

/// `docker run my/time:1` in a client's file: only the engine has the image.
#[test]
fn image_only_in_the_engine_is_imported() {
    let local = Local::make("imported");
    let dir = folder();
    let dir = dir.path();
    let text = json!({ "mcpServers": { "time": { "command": "docker",
        "args": ["run", "-i", "--rm", "--network=none", local.name] } } });
    write(dir, "claude.json", &text.to_string());
    let out = ok(dir, &["server", "import", "claude.json"]);
    assert!(out.contains("is the image of this engine by that name"), "{out}");
    assert_eq!(table(dir)["servers"]["time"]["image"].as_str(), Some(&*local.name));
    let locked = locked(dir, "time");
    assert_eq!(locked["image"].as_str(), Some(&*local.name));
    assert_eq!(locked["image-id"].as_str(), Some(&*local.id));
    let policy = read(dir, "policies/server-time.cedar");
    assert!(policy.contains(&format!("resource.digest == \"{}\"", local.id)), "{policy}");
    checks(dir);
    // Again, it is the same.
    let out = ok(dir, &["server", "import", "claude.json", "--replace"]);
    assert!(!out.contains("from "), "{out}");
    checks(dir);
}

/// README: "by digest, or by a local id `sha256:…`".
#[test]
fn image_is_added_by_its_id() {
    let local = Local::make("by-id");
    let dir = folder();
    let dir = dir.path();
    let (code, _, err) = run(dir, &["add", "image", &local.id]);
    assert!(code == 1 && err.contains("choose one with `--name`"), "{code} {err}");
    ok(dir, &["add", "image", &local.id, "--name", "time"]);
    assert_eq!(table(dir)["servers"]["time"]["image"].as_str(), Some(&*local.id));
    assert_eq!(locked(dir, "time")["image-id"].as_str(), Some(&*local.id));
    assert!(read(dir, "policies/server-time.cedar").contains(&local.id));
    checks(dir);
    ok(dir, &["add", "image", &local.name, "--name", "named"]);
    assert_eq!(locked(dir, "named")["image-id"].as_str(), Some(&*local.id));
    checks(dir);

    let gone = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let (code, _, err) = run(dir, &["add", "image", &gone, "--name", "gone"]);
    assert!(code == 1 && err.contains("no image on this engine has that id"), "{code} {err}");
}
