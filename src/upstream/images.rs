//! Images by content: what the name of one means is found out once and then locked, and what the
//! engine has not got is pulled once, however many wait for it.
//!
//! Invariants: what runs is what the lock file says, or the config itself by a digest. What was
//! locked is moved by an operator alone, never by a start. Nothing is pulled, and nothing locked,
//! for a start that was not permitted. What was pulled does not run before it was looked at.

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

/// How often a log says how far a pull is.
const TOLD: Duration = Duration::from_secs(10);

/// Knows what images mean, and gets them.
pub struct Images {
    /// The folder of the config, with the lock file.
    base: PathBuf,
    /// Where it is noted which pulls were begun.
    state_dir: PathBuf,
    registries: Registries,
    /// Whether what is not locked is refused.
    only_locked: bool,
    client: OnceLock<Result<portcullis_oci::Client, String>>,
    /// The pulls that are under way, by what is pulled.
    under_way: Mutex<HashMap<String, Pull>>,
    shown: OnceLock<ShowProgress>,
}

/// Shows how far a pull is, in the place of log lines: its name, and its progress until it is over.
pub type ShowProgress = Box<dyn Fn(&str, watch::Receiver<Progress>) + Send + Sync>;

/// What a server's image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// As the config has it.
    pub name: String,
    /// In its registry, with its digest; nothing for an image that is of none.
    pub reference: Option<Reference>,
    /// What it means.
    pub meaning: ResolvedImage,
    /// Whether that was found out just now, and is to be locked.
    pub is_new: bool,
}

impl Pinned {
    /// `sha256:…`
    pub fn digest(&self) -> &str {
        self.meaning.as_str()
    }

    /// As the engine takes it.
    pub fn image(&self) -> String {
        match (&self.meaning, self.name.contains('@')) {
            (ResolvedImage::Id(id), _) => id.clone(),
            (ResolvedImage::Digest(_), true) => self.name.clone(),
            (ResolvedImage::Digest(digest), false) => format!("{}@{digest}", self.name),
        }
    }
}

/// A pull that is under way, or over.
#[derive(Clone)]
pub struct Pull {
    /// How far it is.
    pub progress: watch::Receiver<Progress>,
    /// What comes of it. It goes on if nobody waits for it.
    pub end: Shared<BoxFuture<'static, Result<Pulled, ImageError>>>,
}

/// An image that was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// What it is for.
    pub platform: String,
    /// Its bytes, by its manifest.
    pub size: u64,
    /// How long that took.
    pub took: Duration,
}

/// One that was not.
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

/// How a config has registries asked.
pub fn asked(registries: &Registries) -> portcullis_oci::Settings {
    let Registries { plain_http, ca_file, deadline_s, .. } = registries;
    let total = Duration::from_secs(*deadline_s);
    portcullis_oci::Settings {
        authorities: ca_file.clone(),
        plain_http: plain_http.clone(),
        limits: portcullis_oci::Limits { total, ..portcullis_oci::Limits::default() },
        ..portcullis_oci::Settings::default()
    }
}

/// What is to be done before a server's image can run.
pub enum Readiness {
    /// Nothing.
    Ready,
    /// It is being pulled; whether it is by this question.
    Pulling(Pull, bool),
}

fn failed(what: impl Into<String>, remedy: impl Into<String>) -> ImageError {
    ImageError { what: what.into(), remedy: remedy.into() }
}

impl Images {
    /// The images of a config whose file is in the folder `base`. With `only_locked`, no image runs
    /// whose tag is not in the lock file.
    pub fn new(base: &Path, state_dir: &Path, registries: &Registries, only_locked: bool) -> Self {
        Self {
            base: base.to_owned(),
            state_dir: state_dir.to_owned(),
            registries: registries.clone(),
            only_locked,
            client: OnceLock::new(),
            under_way: Mutex::default(),
            shown: OnceLock::new(),
        }
    }

    /// Images of an empty config, for tests.
    #[cfg(test)]
    pub(crate) fn of_nothing() -> Self {
        Self::new(Path::new("/"), Path::new("/.portcullis"), &Registries::default(), false)
    }

    /// Has somebody show how far pulls are.
    pub fn show(&self, shown: ShowProgress) {
        let _ = self.shown.set(shown);
    }

    /// Who asks registries, as the config says.
    ///
    /// # Errors
    /// Where the config names what can't be read.
    pub fn client(&self) -> Result<&portcullis_oci::Client, ImageError> {
        let made = self.client.get_or_init(|| {
            portcullis_oci::Client::new(asked(&self.registries)).map_err(|error| error.to_string())
        });
        made.as_ref().map_err(|why| failed(why.clone(), "correct `[registries]`"))
    }

    /// What the image of a server is: by its own digest, by the lock file, or, where neither has it,
    /// by its registry or the engine.
    ///
    /// # Errors
    /// Where it can't be found out.
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

    /// What a name means by the lock file, where that has anything for the server.
    ///
    /// # Errors
    /// Where it has another name for the server: a start moves nothing.
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

    /// The same without asking why it can't be told. It reads a file: call it off the async threads.
    pub(super) fn known(&self, server: &ServerName, name: &str) -> Option<ResolvedImage> {
        Lock::read(&self.base).ok()?.meaning(server.as_str(), name)
    }

    /// What a tag means now: in its registry, or on the engine where it names none.
    ///
    /// # Errors
    /// Where nobody can say.
    pub async fn ask(
        &self,
        engine: &Result<Engine, String>,
        name: &str,
    ) -> Result<ResolvedImage, ImageError> {
        if !names_host(name) {
            // Others would take that for Docker Hub's, where anybody could have taken the name.
            let engine = engine.as_ref().map_err(|why| no_engine(why))?;
            return match engine.has(name).await? {
                Some(id) => Ok(ResolvedImage::Id(id)),
                None => Err(failed(
                    format!("the image `{name}` names no registry, and is not on this engine"),
                    format!("build it; if Docker Hub's is meant, write `{}`", whole(name)),
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

    /// Locks what was found out.
    ///
    /// # Errors
    /// Where that can't be written, or somebody else has meanwhile locked something else.
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
                format!("what its image means can't be locked: {error}"),
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

    /// Whether the engine has an image that was looked at.
    ///
    /// # Errors
    /// Where the engine does not say.
    pub async fn has(&self, engine: &Engine, pinned: &Pinned) -> Result<bool, ImageError> {
        if engine.has(&pinned.image()).await?.is_none() {
            return Ok(false);
        }
        let unseen = pinned.reference.as_ref().map(|reference| self.begun(reference));
        Ok(!unseen.is_some_and(|begun| begun.is_there()))
    }

    /// Whether the engine has an image; has it pulled if not.
    ///
    /// # Errors
    /// Where it is not there and is of no registry, or the engine does not say.
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
        let (pull, by_us) = self.begin(image, |told| {
            let (images, engine) = (self.clone(), engine.clone());
            async move { images.pull(&engine, &reference, told).await }
        });
        Ok(Readiness::Pulling(pull, by_us))
    }

    /// The pull of an image that is under way; else one that begins now, and is over however the work
    /// ends. Tells whether it is a new one.
    fn begin<F>(
        self: &Arc<Self>,
        image: String,
        work: impl FnOnce(watch::Sender<Progress>) -> F,
    ) -> (Pull, bool)
    where
        F: Future<Output = Result<Pulled, ImageError>> + Send + 'static,
    {
        let mut under_way = self.under_way.lock();
        if let Some(pull) = under_way.get(&image) {
            return (pull.clone(), false);
        }
        let (told, progress) = watch::channel(Progress::default());
        let (over, work) = (PullEnd { images: self.clone(), key: image.clone() }, work(told));
        // On a task of its own: it goes on when those who wait have given up.
        let task = tokio::spawn(async move {
            let _over = over;
            work.await
        });
        let end = async move {
            task.await.unwrap_or_else(|_| Err(failed("the pull ended early", "try again")))
        };
        let pull = Pull { progress, end: end.boxed().shared() };
        under_way.insert(image, pull.clone());
        (pull, true)
    }

    /// What a registry says of an image for this engine.
    ///
    /// # Errors
    /// Where it says nothing, or the image is for other machines, or too large.
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
        told: watch::Sender<Progress>,
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
                shown(&reference.to_string(), told.subscribe());
            }
            let mut last = Instant::now();
            let on_the_way = |progress: Progress| {
                if shown.is_none() && last.elapsed() >= TOLD {
                    last = Instant::now();
                    tracing::info!(image = %reference, "{}", on_its_way(progress));
                }
                told.send_replace(progress);
            };
            let begun = self.begun(reference);
            let unnoted = |error: io::Error| {
                let what = format!("that `{reference}` is being pulled can't be noted: {error}");
                failed(what, "see that the folder of `state-dir` is there and can be written")
            };
            // The engine may be at work on an earlier one yet, whose end nobody has seen.
            let noting = tokio::task::spawn_blocking({
                let begun = begun.clone();
                move || {
                    let earlier = begun.is_there();
                    begun.note().map(|()| earlier)
                }
            });
            let noted = noting.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            let earlier = noted.map_err(unnoted)?;
            if let Err(not) = engine.pull(reference, &image, login, on_the_way).await {
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
                "try again: what has come may be kept; `registries.pull-deadline-s` has the bound",
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

/// Why an image does not run where only those do whose tags are locked.
pub fn not_locked(server: &ServerName, image: &str) -> ImageError {
    let what = format!("what the image `{image}` means is not locked");
    failed(what, format!("`portcullis server lock {server}`"))
}

/// A pull that is no longer under way, however it ended.
struct PullEnd {
    images: Arc<Images>,
    key: String,
}

impl Drop for PullEnd {
    fn drop(&mut self) {
        self.images.under_way.lock().remove(&self.key);
    }
}

/// A file that is there from the beginning of a pull until what came was looked at. What is on the
/// engine while it is there is not run: this proxy, or one before it, was interrupted, or it is not the
/// image that was to be pulled and could not be removed.
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

/// An image that the config names by its content.
///
/// # Errors
/// Where it is no name of an image.
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

/// What a name with that meaning is.
///
/// # Errors
/// Where it is no name of an image, or no meaning of one.
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
const RELOCK: &str = "take its entry out of the lock file, and lock it again";

fn reference(name: &str) -> Result<Reference, ImageError> {
    Reference::of_image(name)
        .map_err(|error| failed(format!("`{name}` is not an image name: {error}"), NAMES))
}

fn whole(name: &str) -> String {
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
    failed(format!("no container engine answers: {why}"), "start Docker or Podman")
}

/// Bytes, for people.
pub fn mib(bytes: u64) -> String {
    match bytes {
        0..=999_999 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// How far a pull is, for people.
pub fn on_its_way(progress: Progress) -> String {
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
    async fn a_pull_that_panics_fails_for_all_who_wait_and_is_over() {
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
        // The next one begins anew.
        let (pull, by_us) =
            images.begin("a".into(), |_| async { Err(failed("another one", "nothing")) });
        assert!(by_us);
        assert_eq!(pull.end.await.unwrap_err().what, "another one");
        assert!(images.under_way.lock().is_empty());
    }
}
