//! Builds a project's component with the tools of its language.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Failed, Language,
    tool::{Run, find, need},
    with_extension,
};
use crate::plugin_dev::{
    UserError,
    inspect::{entry, policies},
};
use portcullis_plugin_host::{Compiled, Pin};

/// Rust target of plugins: a machine without an operating system.
const WASM: &str = "wasm32-unknown-unknown";
/// Folder of the Python tools, which are pinned by digest.
const VENV: &str = "target/venv";

/// Built component.
#[derive(Debug, Serialize)]
pub struct Built {
    pub name: String,
    pub version: String,
    pub path: PathBuf,
    pub bytes: usize,
    pub sha256: String,
    /// Entry of a config for it, with all requested grants.
    pub config: String,
    /// Policies that permit these grants.
    pub policies: Vec<String>,
}

/// Builds the project in a folder into `target/NAME.wasm`, and loads the result to check that it is
/// a plugin.
///
/// # Errors
/// A tool is missing or fails, or the component is invalid.
pub fn build(folder: &Path) -> Result<Built, UserError> {
    let no_project = || Failed::NoProject { path: folder.to_owned() };
    let folder = &fs::canonicalize(folder).map_err(|_| no_project())?;
    let language = Language::of(folder).ok_or_else(no_project)?;
    let artifact = match language {
        Language::Rust => rust(folder)?,
        Language::Js => js(folder)?,
        Language::Python => python(folder)?,
        Language::C => c(folder)?,
    };
    // Checks the imports and the manifest before the component gets its final path.
    let compiled = Compiled::read(&artifact, Pin::Any)?;
    let manifest = compiled.manifest();
    let path = target(folder)?.join(format!("{}.wasm", manifest.name));
    if artifact != path {
        let unwritable = |source| Failed::Unwritable { path: path.clone(), source };
        // Replaced in one step: a process may be reading the old file.
        let new = path.with_extension("wasm.new");
        fs::copy(&artifact, &new).and_then(|_| fs::rename(&new, &path)).map_err(unwritable)?;
    }
    Ok(Built {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        bytes: compiled.size(),
        sha256: compiled.sha256().to_owned(),
        config: entry(&path, &compiled),
        policies: policies(&compiled),
        path,
    })
}

fn target(folder: &Path) -> Result<PathBuf, Failed> {
    let target = folder.join("target");
    match fs::create_dir_all(&target) {
        Ok(()) => Ok(target),
        Err(source) => Err(Failed::Unwritable { path: target, source }),
    }
}

fn rust(folder: &Path) -> Result<PathBuf, Failed> {
    let get = "install Rust by https://rustup.rs";
    let cargo = need("cargo", "cargo", Language::Rust, get)?;
    let rustc = need("rustc", "rustc", Language::Rust, get)?;
    let library = Run::of(rustc, folder).args(["--print", "target-libdir", "--target", WASM]);
    if !Path::new(library.output()?.trim()).is_dir() {
        let get = "run `rustup target add wasm32-unknown-unknown`";
        let tool = "Rust's target wasm32-unknown-unknown";
        return Err(Failed::Missing { tool, language: Language::Rust, get });
    }
    let mut run = Run::of(cargo, folder).args(["build", "--release", "--lib", "--target", WASM]);
    if folder.join("Cargo.lock").is_file() {
        run = run.arg("--locked");
    }
    let output = run.arg("--message-format=json-render-diagnostics").output()?;

    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        filenames: Vec<PathBuf>,
        #[serde(default)]
        manifest_path: PathBuf,
    }
    let own = folder.join("Cargo.toml");
    let lines = output.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let own = lines.filter(|line| line.manifest_path == own).flat_map(|line| line.filenames);
    let is_wasm = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "wasm");
    own.rev().find(is_wasm).ok_or_else(|| Failed::Project {
        what: "cargo built no WebAssembly".into(),
        help: "write `[lib]` with `crate-type = [\"cdylib\"]` into Cargo.toml",
    })
}

fn js(folder: &Path) -> Result<PathBuf, Failed> {
    let get = "install Node.js 18 or later with npm: https://nodejs.org";
    let npm = need("npm", "npm", Language::Js, get)?;

    #[derive(Deserialize)]
    struct Package {
        name: String,
    }
    let package = fs::read_to_string(folder.join("package.json")).ok();
    let package = package.and_then(|text| serde_json::from_str::<Package>(&text).ok());
    let Package { name } = package.ok_or_else(|| Failed::Project {
        what: "`package.json` has no name".into(),
        help: "give it the plugin's name",
    })?;
    let lock = folder.join("package-lock.json");
    if is_older(&folder.join("node_modules/.package-lock.json"), &lock) {
        // `npm ci` refuses lock files that name unpublished packages of other platforms, as those
        // of componentize-qjs do. The digests of the lock file also bind `npm install`.
        let quiet = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund"];
        Run::of(&npm, folder).arg("install").args(quiet).arg("--loglevel=error").go()?;
    }
    let artifact = target(folder)?.join(format!("{name}.wasm"));
    Run::of(npm, folder).args(["run", "--silent", "build"]).go()?;
    if artifact.is_file() {
        return Ok(artifact);
    }
    let what = format!("`npm run build` made no target/{name}.wasm");
    Err(Failed::Project { what, help: "have the script `build` of package.json write it there" })
}

fn python(folder: &Path) -> Result<PathBuf, Failed> {
    let get = "install Python 3.10 or later: https://www.python.org";
    let python = need("python3", "python3", Language::Python, get)?;
    let modules = with_extension(folder, "py");
    let [module] = modules.as_slice() else {
        return Err(Failed::Project {
            what: format!("there are {} modules beside requirements.txt", modules.len()),
            help: "let the plugin be the one `*.py` there; others go into a package's folder",
        });
    };
    let module = module.file_stem().unwrap_or_default();
    let world = world(&folder.join("wit"))?;
    target(folder)?;
    let (venv, done) = (folder.join(VENV), folder.join(VENV).join("installed"));
    if is_older(&done, &folder.join("requirements.txt")) {
        let run = Run::of(python, folder).args(["-m", "venv", "--clear"]).arg(&venv);
        run.go().map_err(|failed| match failed {
            // Debian has it in a separate package.
            Failed::Tool { .. } => Failed::Missing {
                tool: "Python's venv",
                language: Language::Python,
                get: "install it, on Debian by `apt install python3-venv`",
            },
            other => other,
        })?;
        Run::of(venv.join("bin/pip"), folder)
            .args(["install", "--quiet", "--disable-pip-version-check", "--require-hashes"])
            .args(["--requirement", "requirements.txt"])
            .go()?;
        fs::write(&done, "").map_err(|source| Failed::Unwritable { path: done, source })?;
    }
    let tool = venv.join("bin/componentize-py");
    if !tool.is_file() {
        return Err(Failed::Project {
            what: "requirements.txt does not name componentize-py".into(),
            help: "name it with its version and its digests",
        });
    }
    let artifact = folder.join("target/component.wasm");
    let run = Run::of(tool, folder).args(["--quiet", "-d", "wit", "-w", &world, "componentize"]);
    run.arg("--stub-wasi").arg(module).arg("-o").arg(&artifact).go()?;
    Ok(artifact)
}

/// World of the project's own WIT.
fn world(wit: &Path) -> Result<String, Failed> {
    let files = with_extension(wit, "wit");
    let texts: Vec<_> = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    let lines = texts.iter().flat_map(|text| text.lines());
    let worlds: Vec<_> = lines
        .filter_map(|line| line.trim().strip_prefix("world "))
        .filter_map(|rest| rest.split([' ', '{']).next())
        .collect();
    match worlds.as_slice() {
        [world] => Ok((*world).to_owned()),
        worlds => Err(Failed::Project {
            what: format!("`wit/` has {} worlds", worlds.len()),
            help: "write one: it says what the plugin imports",
        }),
    }
}

fn c(folder: &Path) -> Result<PathBuf, Failed> {
    let language = Language::C;
    let get = "install clang, on Debian by `apt install clang lld wasi-libc`";
    let clang = need("clang", "clang", language, get)?;
    let get = "install lld, on Debian by `apt install lld`";
    let linker = need("wasm-ld", "lld (wasm-ld)", language, get)?;
    let component = componentizer(folder).ok_or(Failed::Missing {
        tool: "wasm-component-ld",
        language,
        get: "install it by `cargo install wasm-component-ld --locked`; Rust has it, too",
    })?;
    let target = target(folder)?;
    let artifact = [folder.join("bindings"), target.join("bindings")];
    let bindings = artifact.into_iter().find(|folder| folder.is_dir()).ok_or(Failed::Project {
        what: "there is no `bindings/`".into(),
        help: "take that of a project which `portcullis plugin new --lang c` makes",
    })?;
    let own = with_extension(folder, "c");
    let sources: Vec<_> = own.iter().cloned().chain(with_extension(&bindings, "c")).collect();
    let mut objects = with_extension(&bindings, "o");
    for source in &sources {
        let stem = source.file_stem().unwrap_or_default();
        let object = target.join(stem).with_extension("o");
        let mut run = Run::of(&clang, folder)
            .args(["--target=wasm32-wasi", "-std=c11", "-Os", "-Wall", "-Wextra"])
            .arg("-Wno-unused-parameter")
            .arg("-I")
            .arg(&bindings);
        if !own.contains(source) {
            // Warnings about generated code are not for the author to correct.
            run = run.arg("-w");
        }
        run.arg("-c").arg(source).arg("-o").arg(&object).go()?;
        objects.push(object);
    }
    let artifact = target.join("component.wasm");
    // Only functions of wasi-libc without system calls are used, such as malloc and memcpy.
    let libraries = Run::of(&clang, folder)
        .args(["--target=wasm32-wasi", "-print-file-name=libc.a"])
        .output()?;
    let library = [libraries.trim(), "/usr/lib/wasm32-wasi/libc.a"]
        .into_iter()
        .map(Path::new)
        .find(|library| library.is_absolute() && library.is_file())
        .ok_or(Failed::Missing {
            tool: "wasi-libc",
            language,
            get: "install it, on Debian by `apt install wasi-libc`",
        })?;
    Run::of(component, folder)
        .arg("--wasm-ld-path")
        .arg(linker)
        .args(["--no-entry", "--gc-sections", "--strip-debug"])
        .args(objects)
        .arg(library)
        .arg("-o")
        .arg(&artifact)
        .go()?;
    Ok(artifact)
}

/// Linker for components: the one on the PATH, or the one that comes with Rust.
fn componentizer(folder: &Path) -> Option<PathBuf> {
    const NAME: &str = "wasm-component-ld";
    find(NAME).or_else(|| {
        let sysroot = Run::of(find("rustc")?, folder).args(["--print", "sysroot"]).output().ok()?;
        let targets = fs::read_dir(Path::new(sysroot.trim()).join("lib/rustlib")).ok()?;
        let mut found = targets.flatten().map(|target| target.path().join("bin").join(NAME));
        found.find(|file| file.is_file())
    })
}

/// Whether a file is missing or older than another.
fn is_older(file: &Path, than: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    match (modified(file), modified(than)) {
        (Some(file), Some(than)) => file < than,
        (Some(_), None) => false,
        (None, _) => true,
    }
}
