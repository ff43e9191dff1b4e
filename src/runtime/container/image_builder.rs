//! Packs one executable of the host, with its loader and libraries, into an image.
//!
//! The image is a pure function of the files: the same files give the same bytes. So an existing
//! image is recognized by its content (the layer's digest), never by a label or a name, which
//! another image could have too.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use bollard::{models::ImageInspect, query_parameters::ImportImageOptionsBuilder};
use futures_util::StreamExt;
use lddtree::DependencyAnalyzer;
use parking_lot::Mutex;
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};
use tokio_util::io::ReaderStream;

use crate::{process::LaunchFailure, program_digest::Stamp};

use super::{
    Engine,
    engine_errors::{missing, words},
    failure, label, pause_program,
};

/// Time limit in seconds for loading an image, which takes longer than any other request.
const LOAD_TIMEOUT_SECONDS: u64 = 600;

/// Programs packed by this process. Reading a large executable again for each launch would cost
/// more than the launch.
#[derive(Default)]
pub(super) struct Cache {
    packed: Mutex<HashMap<PathBuf, BuiltImage>>,
    /// Held while packing, so that the second of two launches finds the first one's image.
    turn: tokio::sync::Mutex<()>,
}

struct BuiltImage {
    files: Vec<(PathBuf, Stamp)>,
    layout: Layout,
}

/// Content of an image.
#[derive(Debug, Clone)]
struct Layout {
    /// The layer's uncompressed digest: `sha256:…`.
    layer: String,
    /// The layer's size in bytes.
    size: u64,
    /// The image's configuration.
    config: String,
    /// Name of the image, which contains the configuration's digest.
    name: String,
}

impl Engine {
    /// Id (`sha256:…`) of the image with `program`, its loader and its shared libraries. Makes the
    /// image if it does not exist. Its entry point is the program; a
    /// [`LaunchSpec`](crate::process::LaunchSpec)'s `command` are the arguments.
    ///
    /// Only ELF executables of the engine's own architecture can be packed. Files that a program
    /// opens while it runs (modules, data files) are not in the image.
    pub async fn pack(&self, program: &Path) -> Result<String, LaunchFailure> {
        let program = fs::canonicalize(program).map_err(|error| unreadable(program, &error))?;
        let _turn = self.packed.turn.lock().await;
        let cached = self.packed.packed.lock().get(&program).and_then(BuiltImage::still);
        let layout = match cached {
            Some(layout) => layout,
            None => {
                let (path, arch) = (program.clone(), self.facts.arch.clone());
                let packed = blocking(&program, move || examine(&path, &arch)).await?;
                let layout = packed.layout.clone();
                self.packed.packed.lock().insert(program.clone(), packed);
                layout
            }
        };
        if let Some(id) = self.find(&layout).await? {
            return Ok(id);
        }
        let (path, to_write) = (program.clone(), layout.clone());
        let archive = blocking(&program, move || archive(&path, &to_write)).await?;
        self.load(archive).await?;
        self.find(&layout).await?.ok_or_else(|| {
            self.packed.packed.lock().remove(&program);
            failure(
                format!("{} changed while it was packed into an image", program.display()),
                "try again",
            )
        })
    }

    /// Id of the image of pause containers. Makes the image if it does not exist.
    pub(super) async fn holder_image(&self) -> Result<String, LaunchFailure> {
        let arch = &self.facts.arch;
        let contents = Contents::holder(arch).ok_or_else(|| {
            failure(
                format!("a container on {arch} cannot have `egress`"),
                "remove `egress`, or run the server in the sandbox (`runtime = \"sandbox\"`)",
            )
        })?;
        let unwritten = |error: io::Error| {
            failure(
                format!("the image for pause containers could not be written: {error}"),
                "make room in the folder for temporary files, or set TMPDIR",
            )
        };
        let layout = Layout::of(arch, &contents).map_err(unwritten)?;
        if let Some(id) = self.find(&layout).await? {
            return Ok(id);
        }
        let _turn = self.packed.turn.lock().await;
        self.load(write_archive(&contents, &layout).map_err(unwritten)?).await?;
        self.find(&layout).await?.ok_or_else(|| {
            failure(
                "the engine does not have the image for pause containers although it was loaded",
                "check the engine: `portcullis doctor`",
            )
        })
    }

    /// Id of the image, if it exists with exactly this content.
    async fn find(&self, layout: &Layout) -> Result<Option<String>, LaunchFailure> {
        match self.docker.inspect_image(&layout.name).await {
            Ok(image) => Ok(layout.identify(image)),
            Err(error) if missing(&error) => Ok(None),
            Err(error) => Err(failure(
                format!("the engine could not look up a packed image: {}", words(&error)),
                "check the engine: `portcullis doctor`",
            )),
        }
    }

    async fn load(&self, archive: File) -> Result<(), LaunchFailure> {
        let refused = |why: String| {
            failure(
                format!("the engine did not load the packed image: {why}"),
                "check that its disk is not full: `docker system df`",
            )
        };
        let docker =
            self.docker.clone().with_timeout(std::time::Duration::from_secs(LOAD_TIMEOUT_SECONDS));
        let body = ReaderStream::with_capacity(tokio::fs::File::from_std(archive), 256 << 10);
        let options = ImportImageOptionsBuilder::new().quiet(true).build();
        let mut answers = Box::pin(docker.import_image_stream(options, body, None));
        while let Some(answer) = answers.next().await {
            answer.map_err(|error| refused(words(&error)))?;
        }
        Ok(())
    }
}

impl Layout {
    fn identify(&self, image: ImageInspect) -> Option<String> {
        let layers = image.root_fs?.layers?;
        let config = image.config?;
        let expected: serde_json::Value = serde_json::from_str(&self.config).ok()?;
        let entry: Vec<String> = config.entrypoint?;
        let same = layers == [self.layer.clone()]
            && json!(entry) == expected["config"]["Entrypoint"]
            && json!(config.env.unwrap_or_default()) == expected["config"]["Env"];
        image.id.filter(|_| same)
    }
}

impl BuiltImage {
    fn still(&self) -> Option<Layout> {
        let same =
            self.files.iter().all(|(path, stamp)| Stamp::of(path).is_ok_and(|s| s == *stamp));
        same.then(|| self.layout.clone())
    }
}

async fn blocking<T: Send + 'static>(
    program: &Path,
    work: impl FnOnce() -> Result<T, LaunchFailure> + Send + 'static,
) -> Result<T, LaunchFailure> {
    // A file that crashes the ELF parser ends only this task.
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(unpackable(program, "it could not be read as an executable".to_owned()))
    })
}

fn unreadable(program: &Path, error: &io::Error) -> LaunchFailure {
    failure(
        format!("the program {} cannot be read: {error}", program.display()),
        "correct `command`, or install the program",
    )
}

fn unpackable(program: &Path, why: String) -> LaunchFailure {
    failure(
        format!("{} cannot be packed into an image: {why}", program.display()),
        "set `image` to an image with the program, or set `runtime = \"sandbox\"`",
    )
}

/// Files of an image, with their paths inside and their sources.
struct Contents {
    entry: String,
    files: BTreeMap<PathBuf, Source>,
    libraries: BTreeSet<String>,
}

enum Source {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl Contents {
    fn holder(arch: &str) -> Option<Self> {
        let entry = "/app/holder".to_owned();
        let program = Source::Bytes(pause_program::program(arch)?);
        let files = BTreeMap::from([(PathBuf::from(&entry), program)]);
        Some(Self { entry, files, libraries: BTreeSet::new() })
    }
}

/// Digest of the only layer of a pause container's image.
pub(super) fn holder_layer(arch: &str) -> Option<String> {
    Some(Layout::of(arch, &Contents::holder(arch)?).ok()?.layer)
}

fn examine(program: &Path, arch: &str) -> Result<BuiltImage, LaunchFailure> {
    let contents = contents(program, arch)?;
    // Stamped before they are read: a change in between makes the entry stale, not wrong.
    let stamped = |source: &Source| match source {
        Source::File(source) => Some(Stamp::of(source).map(|stamp| (source.clone(), stamp))),
        Source::Bytes(_) => None,
    };
    let files = contents.files.values().filter_map(stamped).collect::<io::Result<Vec<_>>>();
    let files = files.map_err(|error| unreadable(program, &error))?;
    let layout = Layout::of(arch, &contents).map_err(|error| unreadable(program, &error))?;
    Ok(BuiltImage { files, layout })
}

impl Layout {
    fn of(arch: &str, contents: &Contents) -> io::Result<Self> {
        let mut written = Hashing { hash: Sha256::new(), written: 0, to: io::sink() };
        write_layer(contents, &mut written)?;
        let (layer, size) = (hex::encode(written.hash.finalize()), written.written);
        let layer = format!("sha256:{layer}");
        let mut env = vec!["PATH=/app".to_owned()];
        if !contents.libraries.is_empty() {
            // The image has no loader cache, and the loader's built-in folders are those of its
            // distribution, so the folders are set explicitly.
            let folders: Vec<&str> = contents.libraries.iter().map(String::as_str).collect();
            env.push(format!("LD_LIBRARY_PATH={}", folders.join(":")));
        }
        let config = json!({
            "architecture": if arch == "x86_64" { "amd64" } else { "arm64" },
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "User": "65534:65534",
                "Entrypoint": [contents.entry],
                "Env": env,
                "WorkingDir": "/",
                "Labels": { label::PACKED: layer },
            },
            "rootfs": { "type": "layers", "diff_ids": [layer] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "portcullis pack" }],
        })
        .to_string();
        let digest = hex::encode(&Sha256::digest(config.as_bytes())[..16]);
        // `.invalid` is never the name of a registry (RFC 2606), so nothing can be pulled under it.
        let name = format!(
            "{}{}:{digest}",
            portcullis_guard::PACKED,
            plain_name(Path::new(&contents.entry))
        );
        Ok(Self { layer, size, config, name })
    }
}

/// Program name as one component of an image name: only its letters and digits.
fn plain_name(program: &Path) -> String {
    let name = program.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let words: Vec<&str> =
        name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    if words.is_empty() { "program".to_owned() } else { words.join("-") }
}

fn contents(program: &Path, arch: &str) -> Result<Contents, LaunchFailure> {
    let refuse = |why: String| Err(unpackable(program, why));
    let metadata = fs::metadata(program).map_err(|error| unreadable(program, &error))?;
    if !metadata.is_file() {
        return refuse("it is not a file".to_owned());
    }
    if metadata.mode() & 0o111 == 0 {
        return refuse("it is not executable".to_owned());
    }
    let mut head = Vec::new();
    File::open(program)
        .and_then(|file| file.take(20).read_to_end(&mut head))
        .map_err(|error| unreadable(program, &error))?;
    if head.starts_with(b"#!") {
        return refuse("it is a script, which also needs its interpreter with modules".to_owned());
    }
    // From elf(5): class at 4, byte order at 5, machine at 18.
    let (machine, name) = match head.as_slice() {
        [0x7f, b'E', b'L', b'F', 2, 1, .., low, high] if head.len() == 20 => {
            match u16::from_le_bytes([*low, *high]) {
                62 => ("x86_64", "x86_64"),
                183 => ("aarch64", "aarch64"),
                _ => ("", "another architecture"),
            }
        }
        [0x7f, b'E', b'L', b'F', ..] => ("", "a 32-bit or big-endian architecture"),
        _ => return refuse("it is not an ELF executable".to_owned()),
    };
    if machine != arch {
        return refuse(format!("it is built for {name}, but the engine runs {arch}"));
    }
    let tree = DependencyAnalyzer::default()
        .analyze(program)
        .map_err(|error| unpackable(program, format!("its libraries cannot be listed: {error}")))?;

    let entry = format!("/app/{}", plain_name(program));
    let mut files = BTreeMap::from([(PathBuf::from(&entry), Source::File(program.to_owned()))]);
    let mut libraries = BTreeSet::new();
    for library in tree.libraries.values() {
        let Some(real) = &library.realpath else {
            return refuse(format!("its library {} is not installed", library.name));
        };
        // The loader searches for this name, so the file has it inside.
        let folder = library.path.parent().unwrap_or(Path::new("/lib"));
        let Some(folder) = folder.to_str().filter(|f| !f.contains([':', ';', '$'])) else {
            return refuse(format!("its library {} is in a folder with an odd name", library.name));
        };
        let name = Path::new(&library.name).file_name().unwrap_or_default();
        files.insert(Path::new(folder).join(name), Source::File(real.clone()));
        libraries.insert(folder.to_owned());
    }
    if let Some(loader) = tree.interpreter {
        let real = fs::canonicalize(&loader)
            .map_err(|_| unpackable(program, format!("its loader {loader} is not installed")))?;
        files.insert(PathBuf::from(loader), Source::File(real));
    }
    Ok(Contents { entry, files, libraries })
}

/// Writes the layer's tar. The same files give the same bytes.
fn write_layer(contents: &Contents, to: impl Write) -> io::Result<()> {
    let mut layer = Builder::new(to);
    let mut folders = BTreeMap::new();
    // Where the engine mounts things, and where the profile allows the program to write.
    for folder in ["dev", "etc", "proc", "run", "sbin", "sys", "tmp"] {
        folders.insert(PathBuf::from(folder), if folder == "tmp" { 0o1777 } else { 0o755 });
    }
    for file in contents.files.keys() {
        for folder in relative(file).ancestors().skip(1).filter(|f| !f.as_os_str().is_empty()) {
            folders.entry(folder.to_owned()).or_insert(0o755);
        }
    }
    for (folder, mode) in &folders {
        layer.append_data(&mut header(EntryType::Directory, *mode, 0), folder, io::empty())?;
    }
    for (name, text) in [
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        (
            "etc/passwd",
            "root:x:0:0:root:/:/sbin/nologin\n\
             nobody:x:65534:65534:nobody:/tmp:/sbin/nologin\n",
        ),
    ] {
        let size = text.len() as u64;
        layer.append_data(&mut header(EntryType::Regular, 0o644, size), name, text.as_bytes())?;
    }
    for (file, source) in &contents.files {
        let (from, size): (Box<dyn Read>, u64) = match source {
            Source::File(source) => {
                let source = File::open(source)?;
                let size = source.metadata()?.len();
                // Exactly the size in the header, even if the file grows meanwhile.
                (Box::new(source.take(size)), size)
            }
            Source::Bytes(bytes) => (Box::new(bytes.as_slice()), bytes.len() as u64),
        };
        let mut header = header(EntryType::Regular, 0o755, size);
        layer.append_data(&mut header, relative(file), from)?;
    }
    layer.into_inner()?.flush()
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// The whole image in the format of `docker save`.
fn archive(program: &Path, layout: &Layout) -> Result<File, LaunchFailure> {
    let arch = if layout.config.contains("\"amd64\"") { "x86_64" } else { "aarch64" };
    let contents = contents(program, arch)?;
    write_archive(&contents, layout).map_err(|error| {
        failure(
            format!("an image of {} could not be written: {error}", program.display()),
            "make room in the folder for temporary files, or set TMPDIR",
        )
    })
}

fn write_archive(contents: &Contents, layout: &Layout) -> io::Result<File> {
    let hex = layout.layer.trim_start_matches("sha256:");
    let config = format!("{}.json", hex::encode(Sha256::digest(layout.config.as_bytes())));
    let layer = format!("{hex}/layer.tar");
    let manifest =
        json!([{ "Config": config, "RepoTags": [layout.name], "Layers": [layer] }]).to_string();
    let mut archive = Builder::new(io::BufWriter::with_capacity(1 << 20, tempfile::tempfile()?));
    for (name, text) in [(&config, &layout.config), (&"manifest.json".to_owned(), &manifest)] {
        let size = text.len() as u64;
        archive.append_data(&mut header(EntryType::Regular, 0o644, size), name, text.as_bytes())?;
    }
    let mut header = header(EntryType::Regular, 0o644, layout.size);
    header.set_path(&layer)?;
    header.set_cksum();
    let to = archive.get_mut();
    to.write_all(header.as_bytes())?;
    let mut layer = Hashing { hash: Sha256::new(), written: 0, to: &mut *to };
    write_layer(contents, &mut layer)?;
    if layer.written != layout.size {
        return Err(io::Error::other("a file changed while it was read"));
    }
    to.write_all(&[0; 512][..padding(layout.size)])?;
    let mut file = archive.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(file)
}

/// Number of bytes that fill a tar block of 512 bytes.
fn padding(size: u64) -> usize {
    ((512 - size % 512) % 512) as usize
}

struct Hashing<W> {
    hash: Sha256,
    written: u64,
    to: W,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        if let Some(bytes) = bytes.get(..written) {
            self.hash.update(bytes);
        }
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn refusal(content: &[u8], mode: u32) -> String {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, content).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        examine(&program, "x86_64").err().expect("a refusal").what
    }

    #[test]
    fn unpackable_program_error_has_the_reason() {
        let elf = |class: u8, machine: u8| {
            let mut head = vec![0x7f, b'E', b'L', b'F', class, 1, 1];
            head.resize(18, 0);
            head.extend([machine, 0]);
            head
        };
        for (content, mode, why) in [
            (b"#!/bin/sh\n".to_vec(), 0o755, "it is a script"),
            (b"\x7fELF".to_vec(), 0o755, "32-bit"),
            (elf(1, 3), 0o755, "32-bit"),
            (elf(2, 183), 0o755, "built for aarch64, but the engine runs x86_64"),
            (elf(2, 62), 0o755, "libraries cannot be listed"),
            (b"MZ".to_vec(), 0o755, "not an ELF executable"),
            (Vec::new(), 0o755, "not an ELF executable"),
            (elf(2, 62), 0o644, "not executable"),
        ] {
            let message = refusal(&content, mode);
            assert!(message.contains(why), "{message}");
        }
    }

    #[test]
    fn same_program_gives_the_same_image() {
        let program = std::env::current_exe().unwrap();
        let arch = std::env::consts::ARCH;
        let (one, two) = (examine(&program, arch).unwrap(), examine(&program, arch).unwrap());
        assert_eq!(one.layout.name, two.layout.name);
        assert_eq!(one.layout.config, two.layout.config);
        assert!(one.still().is_some());
        // A test binary is dynamic, so the loader and the C library must be included.
        assert!(one.files.len() >= 3, "{:?}", one.files);
        assert!(one.layout.config.contains("LD_LIBRARY_PATH"));
    }

    #[test]
    fn program_names_become_image_names() {
        for (program, name) in [
            ("/usr/bin/Notes_Server", "notes-server"),
            ("/opt/a b..c/x.y-z", "x-y-z"),
            ("/bin/[", "program"),
        ] {
            assert_eq!(plain_name(Path::new(program)), name);
        }
    }
}
