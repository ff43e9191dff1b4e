//! What it takes to build a plugin in C, and to see what a plugin imports. The generator and the
//! encoder are those of `wit-bindgen` and `wasm-tools`; here they are with the versions that the
//! examples are built with, in seconds instead of minutes.

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use wasmparser::{Parser, Payload};
use wit_bindgen_core::{
    Files,
    wit_parser::{Resolve, WorldId},
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

const USAGE: &str = "usage:
  plugin-tools c-bindings WIT FOLDER           C bindings of `world plugin`, into a folder
  plugin-tools component MODULE COMPONENT [WIT]
                                               a component of a core module, binary or text; with WIT,
                                               of one that does not say that its world is `plugin`;
                                               of a component in text, that component
  plugin-tools imports COMPONENT...            what plugins import; fails if it is not all ours";

/// What every import of a plugin begins with.
const OURS: &str = "portcullis:interceptor/";
const VERSION: &str = "0.1.0";
const GUEST: &str = "guest";

fn main() -> ExitCode {
    let said: Vec<String> = std::env::args().skip(1).collect();
    let said: Vec<&str> = said.iter().map(String::as_str).collect();
    let done = match said.as_slice() {
        ["c-bindings", wit, folder] => c_bindings(wit, folder),
        ["component", module, out] => component(module, out, None),
        ["component", module, out, wit] => component(module, out, Some(wit)),
        ["imports", components @ ..] if !components.is_empty() => imports(components),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plugin-tools: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn world(wit: &str) -> Result<(Resolve, WorldId)> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(wit)?;
    let world = resolve.select_world(&[package], Some("plugin"))?;
    Ok((resolve, world))
}

fn c_bindings(wit: &str, folder: &str) -> Result<()> {
    let (mut resolve, world) = world(wit)?;
    // `guest_message_t` in place of `exports_portcullis_interceptor_guest_message_t`.
    let rename = [GUEST, "log", "clock", "random", "state", "metrics", "http", "secrets"]
        .map(|interface| (format!("{OURS}{interface}@{VERSION}"), interface.to_owned()));
    let mut files = Files::default();
    let options = wit_bindgen_c::Opts { rename: rename.into(), ..Default::default() };
    options.build().generate(&mut resolve, world, &mut files)?;
    fs::create_dir_all(folder)?;
    for (name, content) in files.iter() {
        write(&Path::new(folder).join(name), content)?;
    }
    Ok(())
}

fn component(module: &str, out: &str, wit: Option<&str>) -> Result<()> {
    let mut bytes = wat::parse_file(module)?;
    if Parser::is_component(&bytes) {
        return write(Path::new(out), &bytes);
    }
    if let Some(wit) = wit {
        let (resolve, world) = world(wit)?;
        embed_component_metadata(&mut bytes, &resolve, world, StringEncoding::UTF8)?;
    }
    let component =
        ComponentEncoder::default().validate(true).module(&bytes)?.encode().with_context(|| {
            format!("`{module}` makes no component; it may import what its world does not name")
        })?;
    write(Path::new(out), &component)
}

fn imports(components: &[&str]) -> Result<()> {
    let mut foreign = 0;
    for path in components {
        let bytes = read(path)?;
        let imports = imports_of(&bytes).with_context(|| format!("cannot read `{path}`"))?;
        for import in &imports {
            if import.starts_with(OURS) {
                println!("{path}: {import}");
            } else {
                eprintln!("{path}: {import}: no plugin is granted this");
                foreign += 1;
            }
        }
    }
    if foreign > 0 {
        bail!("{foreign} imports that no plugin is granted");
    }
    Ok(())
}

/// The names that the component itself imports, not those that its inner parts pass around.
fn imports_of(bytes: &[u8]) -> Result<Vec<String>> {
    if !Parser::is_component(bytes) {
        bail!("it is not a component");
    }
    let mut names = Vec::new();
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) if depth > 0 => depth -= 1,
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    names.push(import?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(names)
}

fn read(path: &str) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read `{path}`"))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write `{}`", path.display()))
}
