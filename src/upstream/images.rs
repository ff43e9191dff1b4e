//! Images of servers: an image name is resolved to a digest once and then locked. An image that
//! the engine lacks is pulled once, for all starts that wait for it.
//!
//! Invariants: the image that runs has the digest of the lock file, or of the config itself. Only
//! an operator changes a locked digest, never a start. Nothing is pulled or locked for a start
//! that was not permitted. A pulled image does not run before it was checked.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::config::{self, Registries};
use portcullis_catalog::lock::{Lock, LockError, ResolvedImage};
use portcullis_foundation::atomic_file;
use portcullis_oci::{Reference, names_host};
use portcullis_protocol::names::ServerName;
use portcullis_runtime::container::{Engine, Image, Progress};
use portcullis_runtime::process::LaunchFailure;

/// Interval of log lines about the progress of a pull.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Resolves, locks and pulls the images of servers.
pub struct Images {
    /// Folder of the config and the lock file.
    base: PathBuf,
    /// Folder of the files that mark unfinished pulls.
    state_dir: PathBuf,
    registries: Registries,
    /// Whether tags without a locked digest are refused.
    only_locked: bool,
    client: OnceLock<Result<portcullis_oci::Client, String>>,
    /// Running pulls by image.
    running: Mutex<HashMap<String, Pull>>,
    shown: OnceLock<ShowProgress>,
}

/// Display of a pull instead of log lines: its name, and its progress until it ends.
pub type ShowProgress = Box<dyn Fn(&str, watch::Receiver<Progress>) + Send + Sync>;

/// Resolved image of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// Image name in the config.
    pub name: String,
    /// Reference in the registry, with the digest; `None` for a local image.
    pub reference: Option<Reference>,
    /// Digest or local id.
    pub meaning: ResolvedImage,
    /// Whether the digest was just resolved and must be locked.
    pub is_new: bool,
}

impl Pinned {
    /// `sha256:…`
    pub fn digest(&self) -> &str {
        self.meaning.as_str()
    }

    /// Image name for the engine.
    pub fn image(&self) -> String {
        match (&self.meaning, self.name.contains('@')) {
            (ResolvedImage::Id(id), _) => id.clone(),
            (ResolvedImage::Digest(_), true) => self.name.clone(),
            (ResolvedImage::Digest(digest), false) => format!("{}@{digest}", self.name),
        }
    }
}

/// A running or finished pull.
#[derive(Clone)]
pub struct Pull {
    /// Progress of the pull.
    pub progress: watch::Receiver<Progress>,
    /// Result of the pull. The pull continues even if no caller waits for it.
    pub end: Shared<BoxFuture<'static, Result<Pulled, ImageError>>>,
}

/// A pulled image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Platform of the image.
    pub platform: String,
    /// Size in bytes, from the manifest.
    pub size: u64,
    /// Duration of the pull.
    pub took: Duration,
}

/// Failure to resolve, lock or pull an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({remedy})")]
pub struct ImageError {
    /// What went wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl From<ImageError> for LaunchFailure {
    fn from(ImageError { what, remedy }: ImageError) -> Self {
        Self { what, remedy: Some(remedy) }
    }
}

impl From<LaunchFailure> for ImageError {
    fn from(LaunchFailure { what, remedy }: LaunchFailure) -> Self {
        Self { what, remedy: remedy.unwrap_or_default() }
    }
}

/// Settings of the registry client from the config.
pub fn client_settings(registries: &Registries) -> portcullis_oci::Settings {
    let Registries { plain_http, ca_file, deadline_s, .. } = registries;
    let total = Duration::from_secs(*deadline_s);
    portcullis_oci::Settings {
        authorities: ca_file.clone(),
        plain_http: plain_http.clone(),
        limits: portcullis_oci::Limits { total, ..portcullis_oci::Limits::default() },
        ..portcullis_oci::Settings::default()
    }
}

/// Whether an image is on the engine.
pub enum Readiness {
    /// The image is on the engine.
    Ready,
    /// The image is being pulled. The flag is true if this call began the pull.
    Pulling(Pull, bool),
}

fn failed(what: impl Into<String>, remedy: impl Into<String>) -> ImageError {
    ImageError { what: what.into(), remedy: remedy.into() }
}

impl Images {
    /// The images of a config whose file is in the folder `base`. With `only_locked`, tags without
    /// a locked digest are refused.
    pub fn new(base: &Path, state_dir: &Path, registries: &Registries, only_locked: bool) -> Self {
        Self {
            base: base.to_owned(),
            state_dir: state_dir.to_owned(),
            registries: registries.clone(),
            only_locked,
            client: OnceLock::new(),
            running: Mutex::default(),
            shown: OnceLock::new(),
        }
    }

    /// Images of an empty config, for tests.
    #[cfg(test)]
    pub(crate) fn of_nothing() -> Self {
        Self::new(Path::new("/"), Path::new("/.portcullis"), &Registries::default(), false)
    }

    /// Sets the display of pulls.
    pub fn show(&self, shown: ShowProgress) {
        let _ = self.shown.set(shown);
    }

    /// The registry client, with the settings of the config.
    ///
    /// # Errors
    /// An [`ImageError`] if a file of `[registries]` cannot be read.
    pub fn client(&self) -> Result<&portcullis_oci::Client, ImageError> {
        let client = self.client.get_or_init(|| {
            portcullis_oci::Client::new(client_settings(&self.registries))
                .map_err(|error| error.to_string())
        });
        client.as_ref().map_err(|why| failed(why.clone(), "correct `[registries]`"))
    }

    /// Resolves the image of a server: by the digest in its name, by the lock file, or else by its
    /// registry or the engine.
    ///
    /// # Errors
    /// An [`ImageError`] if the image does not resolve.
    pub async fn pin(
        &self,
        engine: &Result<Engine, String>,
        server: &ServerName,
        settings: &config::Server,
    ) -> Result<Option<Pinned>, ImageError> {
        let Some(name) = &settings.image else { return Ok(None) };
        if let Some(pinned) = fixed(name)? {
            return Ok(Some(pinned));
        }
        if let Some(meaning) = self.locked(server, name).await? {
            return pinned(name, meaning, false).map(Some);
        }
        if self.only_locked {
            return Err(not_locked(server, name));
        }
        let meaning = self.ask(engine, name).await?;
        pinned(name, meaning, true).map(Some)
    }

    /// The locked digest or id of a server's image, if the lock file has one.
    ///
    /// # Errors
    /// An [`ImageError`] if another image name is locked: a start does not change locks.
    async fn locked(
        &self,
        server: &ServerName,
        name: &str,
    ) -> Result<Option<ResolvedImage>, ImageError> {
        let base = self.base.clone();
        let read = tokio::task::spawn_blocking(move || Lock::read(&base));
        let interrupted = |_| failed("the lock file was not read", "try again");
        let lock = read.await.map_err(interrupted)?.map_err(unlocked)?;
        lock.hold(server.as_str(), name).map_err(unlocked)?;
        Ok(lock.meaning(server.as_str(), name))
    }

    /// As [`Self::locked`], without the error. Reads a file: call it outside the async threads.
    pub(super) fn pinned_image(&self, server: &ServerName, name: &str) -> Option<ResolvedImage> {
        Lock::read(&self.base).ok()?.meaning(server.as_str(), name)
    }

    /// Resolves a tag now: in its registry, or on the engine if it names none.
    ///
    /// # Errors
    /// An [`ImageError`] if the tag does not resolve.
    pub async fn ask(
        &self,
        engine: &Result<Engine, String>,
        name: &str,
    ) -> Result<ResolvedImage, ImageError> {
        if !names_host(name) {
            // Elsewhere this means Docker Hub, where the name could belong to anybody.
            let engine = engine.as_ref().map_err(|why| no_engine(why))?;
            return match engine.has(name).await? {
                Some(id) => Ok(ResolvedImage::Id(id)),
                None => Err(failed(
                    format!("the image `{name}` names no registry, and is not on this engine"),
                    format!("build it; if Docker Hub's is meant, write `{}`", full_name(name)),
                )),
            };
        }
        let reference = reference(name)?;
        let resolved = self.client()?.resolve(&reference).await;
        let digest = resolved.map_err(|error| {
            failed(
                format!("what the image `{name}` means could not be found out: {error}"),
                error.help(),
            )
        })?;
        Ok(ResolvedImage::Digest(digest.to_string()))
    }

    /// Writes a resolved digest into the lock file.
    ///
    /// # Errors
    /// An [`ImageError`] if the write fails, or another digest was locked concurrently.
    pub async fn lock(&self, server: &ServerName, pinned: &Pinned) -> Result<(), ImageError> {
        let (base, server) = (self.base.clone(), server.to_string());
        let (name, meaning) = (pinned.name.clone(), pinned.meaning.clone());
        let written = tokio::task::spawn_blocking({
            let server = server.clone();
            move || {
                Lock::change(&base, |lock| {
                    let locked = lock.servers.entry(server).or_default();
                    if locked.content().is_none() {
                        locked.move_to(&name, meaning);
                    }
                })
            }
        });
        let interrupted = |_| failed("the lock file was not written", "try again");
        let lock = written.await.map_err(interrupted)?.map_err(|error| {
            failed(
                format!("the digest of its image can't be locked: {error}"),
                format!(
                    "lock it where the config's folder can be written (`portcullis server lock {server}`), or \
                     write `image = \"{}\"`",
                    pinned.image()
                ),
            )
        })?;
        if lock.meaning(&server, &pinned.name).as_ref() == Some(&pinned.meaning) {
            tracing::info!(
                server,
                image = pinned.name,
                digest = pinned.digest(),
                "image tag pinned in portcullis.lock"
            );
            return Ok(());
        }
        Err(failed("its image was locked as another one meanwhile", "try again"))
    }

    /// Whether the engine has the image, and its pull was checked.
    ///
    /// # Errors
    /// An [`ImageError`] if the engine does not answer.
    pub async fn has(&self, engine: &Engine, pinned: &Pinned) -> Result<bool, ImageError> {
        if engine.has(&pinned.image()).await?.is_none() {
            return Ok(false);
        }
        let unseen = pinned.reference.as_ref().map(|reference| self.begun(reference));
        Ok(!unseen.is_some_and(|begun| begun.is_there()))
    }

    /// Checks whether the engine has the image, and begins a pull if not.
    ///
    /// # Errors
    /// An [`ImageError`] if a local image is missing, or the engine does not answer.
    pub async fn ready(
        self: &Arc<Self>,
        engine: &Engine,
        pinned: &Pinned,
    ) -> Result<Readiness, ImageError> {
        if self.has(engine, pinned).await? {
            return Ok(Readiness::Ready);
        }
        let image = pinned.image();
        let Some(reference) = pinned.reference.clone() else {
            return Err(failed(
                format!("the image `{}` is not on this engine, and is of no registry", pinned.name),
                "load or build it; after a rebuild, run `portcullis server update`",
            ));
        };
        let (pull, by_us) = self.begin(image, |sender| {
            let (images, engine) = (self.clone(), engine.clone());
            async move { images.pull(&engine, &reference, sender).await }
        });
        Ok(Readiness::Pulling(pull, by_us))
    }

    /// The running pull of an image, or a new one that does `work` and ends with it. The flag is
    /// true for a new pull.
    fn begin<F>(
        self: &Arc<Self>,
        image: String,
        work: impl FnOnce(watch::Sender<Progress>) -> F,
    ) -> (Pull, bool)
    where
        F: Future<Output = Result<Pulled, ImageError>> + Send + 'static,
    {
        let mut running = self.running.lock();
        if let Some(pull) = running.get(&image) {
            return (pull.clone(), false);
        }
        let (sender, progress) = watch::channel(Progress::default());
        let (over, work) = (PullEnd { images: self.clone(), key: image.clone() }, work(sender));
        // On a task of its own: the pull continues after its callers have given up.
        let task = tokio::spawn(async move {
            let _over = over;
            work.await
        });
        let end = async move {
            task.await.unwrap_or_else(|_| Err(failed("the pull ended early", "try again")))
        };
        let pull = Pull { progress, end: end.boxed().shared() };
        running.insert(image, pull.clone());
        (pull, true)
    }

    /// The manifest data of an image for the platform of this engine.
    ///
    /// # Errors
    /// An [`ImageError`] if the registry fails, the platform is missing, or the image is too large.
    pub async fn look(
        &self,
        engine: &Engine,
        reference: &Reference,
    ) -> Result<portcullis_oci::Image, ImageError> {
        let found = self.client()?.image(reference, &engine.platform()).await;
        let found = found.map_err(|error| {
            failed(format!("the image `{reference}` cannot be pulled: {error}"), error.help())
        })?;
        let most = self.registries.largest_image_mib.saturating_mul(1 << 20);
        if found.size > most {
            return Err(failed(
                format!(
                    "the image `{reference}` has {}, and {} are the most",
                    mib(found.size),
                    mib(most)
                ),
                "see that it is the one that you mean; `registries.largest-image-mib` has the bound",
            ));
        }
        Ok(found)
    }

    fn begun(&self, reference: &Reference) -> PullMark {
        let digest = reference.digest().map(|digest| digest.to_string()).unwrap_or_default();
        let image = format!("{}/{}@{digest}", reference.host(), reference.repository());
        let name = format!("unseen-{}", portcullis_oci::Digest::of(image.as_bytes()).hex());
        PullMark { folder: self.state_dir.clone(), name, image }
    }

    async fn pull(
        &self,
        engine: &Engine,
        reference: &Reference,
        sender: watch::Sender<Progress>,
    ) -> Result<Pulled, ImageError> {
        let deadline = Duration::from_secs(self.registries.pull_deadline_s);
        let began = Instant::now();
        let work = async {
            let image = self.look(engine, reference).await?;
            let size = image.size;
            let platform = image.platform.to_string();
            tracing::info!(image = %reference, platform, size = mib(size), "pulling image");
            let login = self.client()?.login(reference).await;
            let login = login.map_err(|error| failed(error.to_string(), error.help()))?;
            let shown = self.shown.get();
            if let Some(shown) = shown {
                shown(&reference.to_string(), sender.subscribe());
            }
            let mut last = Instant::now();
            let on_progress = |progress: Progress| {
                if shown.is_none() && last.elapsed() >= PROGRESS_LOG_INTERVAL {
                    last = Instant::now();
                    tracing::info!(image = %reference, "{}", progress_text(progress));
                }
                sender.send_replace(progress);
            };
            let begun = self.begun(reference);
            let unnoted = |error: io::Error| {
                let what = format!("the pull of `{reference}` cannot be noted: {error}");
                failed(what, "check that the folder of `state-dir` exists and is writable")
            };
            // The engine may still be busy with an earlier pull whose end was not observed.
            let noting = tokio::task::spawn_blocking({
                let begun = begun.clone();
                move || {
                    let earlier = begun.is_there();
                    begun.note().map(|()| earlier)
                }
            });
            let noted = noting.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            let earlier = noted.map_err(unnoted)?;
            if let Err(not) = engine.pull(reference, &image, login, on_progress).await {
                if !earlier && !not.may_be_there {
                    begun.forget();
                }
                return Err(not.why.into());
            }
            begun.forget();
            Ok(Pulled { platform, size, took: began.elapsed() })
        };
        let late = || {
            failed(
                format!(
                    "the image `{reference}` was not pulled within {} s",
                    self.registries.pull_deadline_s
                ),
                "try again: downloaded layers may be kept; `registries.pull-deadline-s` is the limit",
            )
        };
        let ended = tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| Err(late()));
        match &ended {
            Ok(pulled) => {
                tracing::info!(image = %reference, took_s = pulled.took.as_secs(), "image pulled");
            }
            Err(why) => tracing::warn!(image = %reference, %why, "image pull failed"),
        }
        ended
    }
}

/// Refusal of a tag without a locked digest.
pub fn not_locked(server: &ServerName, image: &str) -> ImageError {
    let what = format!("what the image `{image}` means is not locked");
    failed(what, format!("`portcullis server lock {server}`"))
}

/// Removes a pull from the running pulls when it ends in any way.
struct PullEnd {
    images: Arc<Images>,
    key: String,
}

impl Drop for PullEnd {
    fn drop(&mut self) {
        self.images.running.lock().remove(&self.key);
    }
}

/// File that exists from the beginning of a pull until the result was checked. While it exists,
/// the image on the engine does not run: this proxy or an earlier one was interrupted, or the
/// engine has a wrong image that could not be removed.
#[derive(Clone)]
struct PullMark {
    folder: PathBuf,
    name: String,
    image: String,
}

impl PullMark {
    fn is_there(&self) -> bool {
        !matches!(fs::symlink_metadata(self.folder.join(&self.name)), Err(error) if error.kind() == io::ErrorKind::NotFound)
    }

    fn note(&self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        atomic_file::write(&self.folder.join(&self.name), format!("{}\n", self.image).as_bytes())
    }

    fn forget(&self) {
        if let Err(error) = fs::remove_file(self.folder.join(&self.name))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(image = self.image, %error, "image check could not be stored; the next start repeats it");
        }
    }
}

/// The image of a name with a digest or id; `None` for a tag.
///
/// # Errors
/// An [`ImageError`] if `name` is not an image name.
pub fn fixed(name: &str) -> Result<Option<Pinned>, ImageError> {
    let image: Image =
        name.parse().map_err(|illegal: portcullis_runtime::container::IllegalImage| {
            failed(illegal.to_string(), NAMES)
        })?;
    Ok(match image {
        Image::Id(id) => Some(pinned(name, ResolvedImage::Id(id), false)?),
        Image::Digest(_) => {
            let reference = reference(name)?;
            let meaning =
                reference.digest().map(|digest| ResolvedImage::Digest(digest.to_string()));
            meaning.map(|meaning| pinned(name, meaning, false)).transpose()?
        }
        Image::Tag(_) => None,
    })
}

/// The image with this name and this digest or id.
///
/// # Errors
/// An [`ImageError`] if `name` is not an image name, or `meaning` is not a digest.
pub fn pinned(name: &str, meaning: ResolvedImage, is_new: bool) -> Result<Pinned, ImageError> {
    let illegal = |_| failed(format!("the lock of `{name}` is not a digest"), RELOCK);
    let digest: portcullis_oci::Digest = meaning.as_str().parse().map_err(illegal)?;
    let reference = match &meaning {
        ResolvedImage::Id(_) => None,
        ResolvedImage::Digest(_) => Some(reference(name)?.pinned(digest)),
    };
    Ok(Pinned { name: name.to_owned(), reference, meaning, is_new })
}

const NAMES: &str =
    "name it as REGISTRY/NAME:TAG, NAME@sha256:DIGEST, or by its local id sha256:ID";
const RELOCK: &str = "remove its entry from the lock file, and lock it again";

fn reference(name: &str) -> Result<Reference, ImageError> {
    Reference::of_image(name)
        .map_err(|error| failed(format!("`{name}` is not an image name: {error}"), NAMES))
}

fn full_name(name: &str) -> String {
    Reference::of_image(name).map_or_else(|_| name.to_owned(), |reference| reference.to_string())
}

fn unlocked(error: LockError) -> ImageError {
    let remedy = match &error {
        LockError::Image { .. } | LockError::Name { .. } => {
            "`portcullis server update` asks what a tag means now"
        }
        _ => "mend the lock file, or bring back the one that it was",
    };
    failed(error.to_string(), remedy)
}

fn no_engine(why: &str) -> ImageError {
    failed(why.to_owned(), "start Docker or Podman")
}

/// Size in bytes as a text with a unit.
pub fn mib(bytes: u64) -> String {
    match bytes {
        0..=999_999 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// Progress of a pull as a text.
pub fn progress_text(progress: Progress) -> String {
    match progress {
        Progress { total: 0, .. } => "asking the registry".to_owned(),
        Progress { done, total } if done >= total => "unpacking".to_owned(),
        Progress { done, total } => format!("{} of {} have come", mib(done), mib(total)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn panicking_pull_fails_for_all_waiting_callers() {
        let images = Arc::new(Images::of_nothing());
        let (go, gone) = oneshot::channel::<()>();
        let (pull, by_us) = images.begin("a".into(), |_| async move {
            let _ = gone.await;
            panic!("in the middle of a pull");
        });
        assert!(by_us);
        let (twin, by_us) = images.begin("a".into(), |_| async { unreachable!("it is under way") });
        assert!(!by_us);
        go.send(()).unwrap();
        for waiting in [pull, twin] {
            assert_eq!(waiting.end.await.unwrap_err().what, "the pull ended early");
        }
        // The next call begins a new pull.
        let (pull, by_us) =
            images.begin("a".into(), |_| async { Err(failed("another one", "nothing")) });
        assert!(by_us);
        assert_eq!(pull.end.await.unwrap_err().what, "another one");
        assert!(images.running.lock().is_empty());
    }
}
