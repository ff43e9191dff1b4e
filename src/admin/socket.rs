//! The socket: made for its owner alone, every peer asked who it is.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    Router,
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use nix::unistd::Uid;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// The socket's name in the state folder.
pub const SOCKET: &str = "admin.sock";
/// Longest path of a socket: `sun_path` has 108 bytes with the closing zero.
const PATH_BYTES: usize = 107;
/// What requests under way have to finish when the proxy stops.
const GRACE: Duration = Duration::from_secs(2);

/// The path of the socket for the system. Where the state folder's path is too long for a socket,
/// it leads through the open folder: `/proc/self/fd/N/admin.sock`.
pub struct Address {
    /// The path to connect to.
    pub path: PathBuf,
    _dir: Option<File>,
}

impl Address {
    pub fn of(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(SOCKET);
        if path.as_os_str().len() <= PATH_BYTES {
            return Ok(Self { path, _dir: None });
        }
        let dir = File::open(state_dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(SOCKET);
        Ok(Self { path, _dir: Some(dir) })
    }
}

/// The admin socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindFailure {
    /// Another proxy runs with this state folder.
    #[error(
        "another proxy runs with the state folder {}: stop it, or give this one a `state-dir` of \
         its own", .0.display()
    )]
    AlreadyRunning(PathBuf),
    /// The system refused.
    #[error("{doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

/// The admin socket, not served yet. It is removed when the value is dropped.
pub struct Server {
    listener: Guarded,
    _place: Place,
}

/// The socket's file and the claim on it.
struct Place {
    address: Address,
    _claim: File,
}

impl Drop for Place {
    fn drop(&mut self) {
        // What can't be removed is removed by the next proxy.
        let _ = fs::remove_file(&self.address.path);
    }
}

impl Server {
    /// Makes the socket in the state folder, and the folder where it is missing. The folder is
    /// made its owner's alone. A socket that a killed proxy left is replaced.
    ///
    /// # Errors
    /// [`BindFailure`]. Must be called within a tokio runtime.
    pub fn bind(state_dir: &Path) -> Result<Self, BindFailure> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| BindFailure::Io { doing, path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .and_then(|()| fs::set_permissions(state_dir, Permissions::from_mode(0o700)))
            .map_err(failed("cannot make the state folder private:", state_dir))?;
        let lock = state_dir.join("admin.lock");
        let claim = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(failed("cannot open", &lock))?;
        match claim.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(BindFailure::AlreadyRunning(state_dir.to_owned()));
            }
            Err(TryLockError::Error(source)) => {
                return Err(BindFailure::Io { doing: "cannot lock", path: lock, source });
            }
        }
        let shown = state_dir.join(SOCKET);
        let address = Address::of(state_dir).map_err(failed("cannot open", state_dir))?;
        match fs::remove_file(&address.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("cannot remove the old socket", &shown)(error));
            }
            _ => {}
        }
        let listener =
            UnixListener::bind(&address.path).map_err(failed("cannot make the socket", &shown))?;
        let place = Place { address, _claim: claim };
        fs::set_permissions(&place.address.path, Permissions::from_mode(0o600))
            .map_err(failed("cannot make private", &shown))?;
        Ok(Self { listener: Guarded { listener }, _place: place })
    }

    /// Serves these routes until `stopping` is cancelled, and then a moment longer, for what is
    /// under way.
    ///
    /// # Errors
    /// Where the listening itself fails.
    pub async fn serve(self, routes: Router, stopping: CancellationToken) -> io::Result<()> {
        let service = routes.into_make_service_with_connect_info::<Peer>();
        let served = axum::serve(self.listener, service)
            .with_graceful_shutdown(stopping.clone().cancelled_owned());
        let patience = async {
            stopping.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            done = served => done,
            () = patience => Ok(()),
        }
    }
}

/// Who asks, as the system tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The user id.
    pub uid: u32,
    /// The process id, where it is known.
    pub pid: Option<i32>,
}

struct Guarded {
    listener: UnixListener,
}

fn may_enter(uid: u32) -> bool {
    uid == 0 || uid == Uid::effective().as_raw()
}

impl Listener for Guarded {
    type Io = UnixStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (UnixStream, Peer) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if may_enter(peer.uid()) => {
                        let peer = Peer { uid: peer.uid(), pid: peer.pid() };
                        return (stream, peer);
                    }
                    Ok(peer) => tracing::warn!(uid = peer.uid(), "stranger at the admin socket"),
                    Err(error) => tracing::warn!(%error, "peer of the admin socket unknown"),
                },
                Err(error) => {
                    tracing::error!(%error, "the admin socket accepts nobody");
                    // Out of file handles, most likely: asking again at once would not help.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer { uid: Uid::effective().as_raw(), pid: None })
    }
}

impl Connected<IncomingStream<'_, Guarded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Guarded>) -> Self {
        *stream.remote_addr()
    }
}
