//! Entries with npx and uvx, which fetch the server's package when it starts, from stand-ins for
//! the registries of npm and PyPI. The stand-ins serve what the tests' set-up fetched from those.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

use super::{open_folder, stop_without_orphans};
use crate::support::{
    authority::Authority,
    engine::servers_image,
    gate::{Gate, Setup},
    marked,
    web::{Page, Web},
};

/// A proxy with a server of a desktop client's file, as `server import` writes it: but with the
/// addresses of the stand-ins and their authority, and in an image, if there is one.
async fn imported(
    image: Option<&str>,
    name: &str,
    entry: Value,
    hosts: &[&str],
    (at, authority, folder): (&str, &Authority, &Path),
) -> Gate {
    fs::write(folder.join("ca.pem"), &authority.certificate).unwrap();
    let file = json!({ "mcpServers": { name: entry } });
    let written = Setup::new("[[interceptors]]\nuse = \"schema\"")
        .file("claude_desktop_config.json", file.to_string())
        .write();
    let path = written.path("claude_desktop_config.json");
    let ended = written.cli(&["server", "import", path.to_str().unwrap(), "--yes"]).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let mut config = written.config();
    let head = format!("[servers.{name}]\n");
    let image = image.map_or(String::new(), |image| format!("image = {image:?}\n"));
    let here = format!(
        "{head}{image}mounts = [\"{}:/ca\"]\nenv = {{ GATE = \"{}\", NODE_EXTRA_CA_CERTS = \
         \"/ca/ca.pem\", SSL_CERT_FILE = \"/ca/ca.pem\", PYTHONPATH = \"\" }}\n",
        folder.display(),
        written.mark,
    );
    for (is, becomes) in [(head, here)]
        .into_iter()
        .chain(hosts.iter().map(|host| (format!("{host}:443\""), format!("{host}:443={at}\""))))
    {
        assert_eq!(config.matches(&is).count(), 1, "{is} in {config}");
        config = config.replace(&is, &becomes);
    }
    written.put(&config);
    written.start().await
}

#[tokio::test]
async fn npx_fetches_a_server_and_runs_it() {
    let hosts = ["registry.npmjs.org"];
    let authority = Authority::of(&hosts);
    let registry = Web::serve("127.77.0.1:443", Some(&authority), npm).await;
    let folder = open_folder();
    let package = "@modelcontextprotocol/server-everything@2026.8.31";
    let entry = json!({ "command": "npx", "args": ["-y", package] });
    // In the sandbox, as it is imported; and in a container.
    for image in [None, Some(&*servers_image())] {
        let around = ("127.77.0.1", &authority, folder.path());
        let gate = imported(image, "everything", entry.clone(), &hosts, around).await;
        let before = registry.seen().len();
        let agent = gate.legacy().await;
        let said = agent.text("everything__echo", json!({ "message": "from npm" })).await;
        assert_eq!(said, "Echo: from npm");
        let seen = registry.seen();
        let tarball = |request: &String| request.ends_with("server-everything/-/2026.8.31.tgz");
        assert!(seen[before..].iter().any(tarball), "{seen:?}");
        if image.is_some() {
            stop_without_orphans(gate).await;
        } else {
            assert!(!marked(&gate.mark).is_empty());
            let mark = gate.mark.clone();
            gate.stop().await;
            assert!(marked(&mark).is_empty());
        }
    }
}

#[tokio::test]
async fn uvx_fetches_a_server_and_runs_it() {
    let hosts = ["pypi.org", "files.pythonhosted.org"];
    let authority = Authority::of(&hosts);
    let index = Web::serve("127.77.0.2:443", Some(&authority), pypi).await;
    let folder = open_folder();
    // The image's own packages would be found without fetching any, but that `PYTHONPATH` is empty.
    let entry = json!({ "command": "uvx", "args": ["mcp-server-fetch==2026.10.24"] });
    let around = ("127.77.0.2", &authority, folder.path());
    let gate = imported(Some(&servers_image()), "web", entry, &hosts, around).await;
    let agent = gate.legacy().await;
    let url = json!({ "url": "https://nowhere.example/" });
    let said = super::failed(&agent, "web__fetch", url).await;
    assert!(said.contains("robots.txt"), "{said}");
    let seen = index.seen();
    let wheel = |request: &String| request.contains("/mcp_server_fetch-2026.10.24-");
    assert!(seen.iter().any(wheel), "{seen:?}");
    stop_without_orphans(gate).await;
}

/// A package with each folder that it is installed in, by version.
type Versions = BTreeMap<String, PathBuf>;

/// What npm has of each package, by its name.
fn installed() -> &'static BTreeMap<String, Versions> {
    static FOUND: OnceLock<BTreeMap<String, Versions>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
            .join("target/tests/servers/node");
        let lock = fs::read(root.join("package-lock.json")).expect("`tests/run` installs it");
        let lock: Value = serde_json::from_slice(&lock).unwrap();
        let mut found: BTreeMap<String, Versions> = BTreeMap::new();
        for (place, package) in lock["packages"].as_object().unwrap() {
            // The first is the project itself; one for another platform is not installed.
            if let Some((_, name)) = place.rsplit_once("node_modules/")
                && let Some(version) = package["version"].as_str()
                && root.join(place).is_dir()
            {
                let versions = found.entry(name.to_owned()).or_default();
                versions.insert(version.to_owned(), root.join(place));
            }
        }
        found
    })
}

/// `/NAME` is what there is of a package, `/NAME/-/VERSION.tgz` one of it.
fn npm(_host: &str, path: &str) -> Option<Page> {
    let path = path.replace("%2f", "/").replace("%2F", "/");
    let path = path.strip_prefix('/')?;
    if let Some((name, file)) = path.split_once("/-/") {
        let folder = installed().get(name)?.get(file.strip_suffix(".tgz")?)?;
        return Some(("application/octet-stream", tarball(folder)));
    }
    let all = installed().get(path)?;
    let versions: serde_json::Map<String, Value> = all
        .iter()
        .map(|(version, folder)| {
            let manifest = fs::read(folder.join("package.json")).unwrap();
            let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
            let integrity = BASE64_STANDARD.encode(Sha512::digest(tarball(folder)));
            manifest["dist"] = json!({
                "tarball": format!("https://registry.npmjs.org/{path}/-/{version}.tgz"),
                "integrity": format!("sha512-{integrity}"),
            });
            (version.clone(), manifest)
        })
        .collect();
    let latest = all.keys().next_back()?;
    let told = json!({ "name": path, "dist-tags": { "latest": latest }, "versions": versions });
    Some(("application/json", told.to_string().into_bytes()))
}

/// A package as npm lays it out, without those that are installed below it.
fn tarball(folder: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.mode(tar::HeaderMode::Deterministic);
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        let mut entries: Vec<_> =
            fs::read_dir(folder.join(&below)).unwrap().map(|entry| entry.unwrap()).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = below.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                if entry.file_name() != "node_modules" {
                    folders.push(name);
                }
            } else {
                tar.append_path_with_name(entry.path(), Path::new("package").join(name)).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

/// The simple index (PEP 503) and its files.
fn pypi(host: &str, path: &str) -> Option<Page> {
    let wheels = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .join("target/tests/servers/wheels");
    if host == "files.pythonhosted.org" {
        let wheel = fs::read(wheels.join(path.strip_prefix('/')?)).ok()?;
        return Some(("application/octet-stream", wheel));
    }
    let name = path.strip_prefix("/simple/")?.trim_end_matches('/');
    let names = fs::read_dir(wheels).unwrap().map(|entry| entry.unwrap().file_name());
    let links: String = names
        .map(|file| file.into_string().unwrap())
        .filter(|file| file.split('-').next().unwrap().replace(['_', '.'], "-") == name)
        .map(|file| format!("<a href=\"https://files.pythonhosted.org/{file}\">{file}</a>\n"))
        .collect();
    let page = format!("<!DOCTYPE html>\n<html><body>\n{links}</body></html>\n");
    (!links.is_empty()).then(|| ("text/html", page.into_bytes()))
}
