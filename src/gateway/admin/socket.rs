//! The admin sockets: the owner's in the state folder, and a second one for users with a role.
//! Every peer is identified.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{
            DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
            PermissionsExt as _,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use futures_util::future::BoxFuture;
use nix::unistd::{Uid, User};
use parking_lot::Mutex;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use portcullis_config::SOCKET_PATH_BYTES;
use portcullis_protocol::identity::{Roles, UserRights, is_owner};

use super::{Recorder, authorize::guarded};

/// The socket's name in the state folder.
pub const SOCKET: &str = "admin.sock";
/// Time for requests in flight to finish when the proxy stops.
const GRACE: Duration = Duration::from_secs(2);
/// Connections of one user other than the owner.
const OF_ONE: usize = 32;
/// Connections of all users without a role, who only get a refusal.
const OF_STRANGERS: usize = 16;
/// Connections of all users other than the owner.
const OF_ALL: usize = 256;
/// Peers whose roles are looked up at once.
const LOOKUPS: usize = 8;
/// Time limit of the name service for a user's groups.
const LOOKUP: Duration = Duration::from_secs(5);

/// The system's path of the socket. If the state folder's path is too long for a socket, it leads
/// through the open folder: `/proc/self/fd/N/admin.sock`.
pub struct Address {
    /// The path to connect to.
    pub path: PathBuf,
    _dir: Option<File>,
}

impl Address {
    pub fn of(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(SOCKET);
        if path.as_os_str().len() <= SOCKET_PATH_BYTES {
            return Ok(Self { path, _dir: None });
        }
        let dir = File::open(state_dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(SOCKET);
        Ok(Self { path, _dir: Some(dir) })
    }
}

/// Why the admin socket could not be created.
#[derive(Debug, thiserror::Error)]
pub enum BindFailure {
    /// Another proxy is running with this state folder.
    #[error(
        "another proxy runs with the state folder {}: stop it, or give this one a `state-dir` of \
         its own", .0.display()
    )]
    AlreadyRunning(PathBuf),
    /// Another process listens at `admin.socket`.
    #[error("another process listens on {}: give this proxy another `admin.socket`", .0.display())]
    InUse(PathBuf),
    /// The path exists and is not a socket.
    #[error("{} is there and no socket: remove it, or set another `admin.socket`", .0.display())]
    NoSocket(PathBuf),
    /// Other users could replace the socket with their own.
    #[error(
        "others can write to {} (mode {:o}), and so replace this proxy by a false one: choose a \
         folder for `admin.socket` that only root or this user can write to",
        .0.display(), .1
    )]
    OpenFolder(PathBuf, u32),
    /// The system refused.
    #[error("{doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

/// The admin sockets before they are served. They are removed on drop.
pub struct Server {
    own: UnixListener,
    shared_socket: Option<UnixListener>,
    roles: Arc<Roles>,
    /// Users of the owner's socket, with their names.
    owners: Vec<(u32, Option<Arc<str>>)>,
    recorder: Option<Recorder>,
    _socket_paths: Vec<SocketPath>,
    _claim: File,
}

/// A socket's file.
struct SocketPath(Address);

impl Drop for SocketPath {
    fn drop(&mut self) {
        // If this fails, the next proxy removes it.
        let _ = fs::remove_file(&self.0.path);
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindFailure {
    let path = path.to_owned();
    move |source| BindFailure::Io { doing, path, source }
}

impl Server {
    /// Creates the socket in the state folder, and the folder if it is missing. Only its owner gets
    /// access to the folder. An orphaned socket is replaced.
    ///
    /// # Errors
    /// [`BindFailure`]. Must be called within a tokio runtime.
    pub fn bind(state_dir: &Path) -> Result<Self, BindFailure> {
        Self::bind_with(state_dir, None, Roles::default())
    }

    /// The same, with the socket for users with a role.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub fn bind_with(
        state_dir: &Path,
        shared_socket: Option<&Path>,
        roles: Roles,
    ) -> Result<Self, BindFailure> {
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
            Err(TryLockError::Error(source)) => return Err(failed("cannot lock", &lock)(source)),
        }
        let shown = state_dir.join(SOCKET);
        let address = Address::of(state_dir).map_err(failed("cannot open", state_dir))?;
        let (own, socket_path) = listen(address, &shown, 0o600)?;
        let mut socket_paths = vec![socket_path];
        let shared_socket = match shared_socket {
            Some(path) => {
                let (shared_socket, socket_path) = bind_shared_socket(path, &roles)?;
                socket_paths.push(socket_path);
                Some(shared_socket)
            }
            None => None,
        };
        let roles = Arc::new(roles);
        // Once, and before there are connections.
        let owners = [0, Uid::effective().as_raw()].map(|uid| (uid, name(uid))).into();
        Ok(Self {
            own,
            shared_socket,
            roles,
            owners,
            recorder: None,
            _socket_paths: socket_paths,
            _claim: claim,
        })
    }

    /// Records every refusal and every reader of records.
    #[must_use]
    pub fn recorded(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// Serves to each peer the routes that its roles allow. After `stopping` is cancelled, requests
    /// in flight have a moment to finish.
    ///
    /// The future is boxed so that this crate compiles it, with the optimization for messages.
    ///
    /// # Errors
    /// If listening fails.
    pub fn serve(
        self,
        routes: Router,
        stopping: CancellationToken,
    ) -> BoxFuture<'static, io::Result<()>> {
        Box::pin(self.accept_all(routes, stopping))
    }

    async fn accept_all(self, routes: Router, stopping: CancellationToken) -> io::Result<()> {
        let Self { own, shared_socket, roles, owners, recorder, _socket_paths, _claim } = self;
        let service = guarded(routes, recorder).into_make_service_with_connect_info::<Peer>();
        let served = axum::serve(Sockets::open(own, owners, shared_socket, roles), service)
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

/// Creates a socket with this mode, replacing an orphaned one.
fn listen(
    address: Address,
    shown: &Path,
    mode: u32,
) -> Result<(UnixListener, SocketPath), BindFailure> {
    match fs::symlink_metadata(&address.path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(BindFailure::NoSocket(shown.to_owned()));
        }
        Ok(_) => {
            fs::remove_file(&address.path).map_err(failed("cannot remove the old socket", shown))?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("cannot look at", shown)(error)),
    }
    let listener =
        UnixListener::bind(&address.path).map_err(failed("cannot make the socket", shown))?;
    let socket_path = SocketPath(address);
    fs::set_permissions(&socket_path.0.path, Permissions::from_mode(mode))
        .map_err(failed("cannot set the mode of", shown))?;
    Ok((listener, socket_path))
}

/// Creates the socket for users with a role. All users may connect to it, because a file has one
/// group but there are many roles; each peer is authorized separately.
fn bind_shared_socket(
    path: &Path,
    roles: &Roles,
) -> Result<(UnixListener, SocketPath), BindFailure> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    if !parent.exists() {
        DirBuilder::new()
            .mode(0o755)
            .create(parent)
            .and_then(|()| fs::set_permissions(parent, Permissions::from_mode(0o755)))
            .map_err(failed("cannot make the folder of `admin.socket`:", parent))?;
    }
    let meta = fs::metadata(parent).map_err(failed("cannot look at", parent))?;
    if meta.mode() & 0o022 != 0 || !is_owner(meta.uid()) {
        return Err(BindFailure::OpenFolder(parent.to_owned(), meta.mode() & 0o7777));
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(BindFailure::InUse(path.to_owned()));
    }
    let mode = if roles.is_empty() { 0o600 } else { 0o666 };
    listen(Address { path: path.to_owned(), _dir: None }, path, mode)
}

/// A peer, as identified by the kernel, with its roles from the config.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The user id.
    pub uid: u32,
    /// The user's name, if the system knows it.
    pub user: Option<Arc<str>>,
    /// The process id, if known.
    pub pid: Option<i32>,
    /// What the peer may do.
    pub rights: UserRights,
    /// Held as long as the connection.
    _slot: Option<Arc<ConnectionSlot>>,
}

/// The name of a user. Blocks during the lookup.
fn name(uid: u32) -> Option<Arc<str>> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name.into())
}

/// Connections of users other than the owner, by user; users without a role share one count.
#[derive(Debug, Default)]
struct ConnectionSlots(Mutex<HashMap<Option<u32>, usize>>);

#[derive(Debug)]
struct ConnectionSlot {
    counted_uid: Option<u32>,
    slots: Arc<ConnectionSlots>,
}

impl ConnectionSlots {
    fn take(self: &Arc<Self>, uid: u32, rights: UserRights) -> Option<Arc<ConnectionSlot>> {
        let (counted_uid, most) =
            if rights == UserRights::STRANGER { (None, OF_STRANGERS) } else { (Some(uid), OF_ONE) };
        let mut taken = self.0.lock();
        if taken.values().sum::<usize>() >= OF_ALL {
            return None;
        }
        let own = taken.entry(counted_uid).or_default();
        if *own >= most {
            return None;
        }
        *own += 1;
        Some(Arc::new(ConnectionSlot { counted_uid, slots: self.clone() }))
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.slots.0.lock();
        if let Some(count) = taken.get_mut(&self.counted_uid) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.counted_uid);
            }
        }
    }
}

/// Both sockets as one listener. Peers of the second socket are looked up on separate tasks, so
/// that a slow name service does not block the owner's socket.
struct Sockets {
    arrivals: mpsc::Receiver<(UnixStream, Peer)>,
    /// Aborted on drop, which closes the sockets.
    _accepting: JoinSet<()>,
}

impl Sockets {
    fn open(
        own: UnixListener,
        owners: Vec<(u32, Option<Arc<str>>)>,
        shared_socket: Option<UnixListener>,
        roles: Arc<Roles>,
    ) -> Self {
        let (arrived, arrivals) = mpsc::channel(1);
        let mut accepting = JoinSet::new();
        if let Some(shared_socket) = shared_socket {
            accepting.spawn(accept_shared(shared_socket, roles, arrived.clone()));
        }
        accepting.spawn(accept_owner(own, owners, arrived));
        Self { arrivals, _accepting: accepting }
    }
}

/// The next connection, with the user, group and process of its peer.
async fn accept(listener: &UnixListener) -> (UnixStream, tokio::net::unix::UCred) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(peer) => return (stream, peer),
                Err(error) => tracing::warn!(%error, "admin socket: peer credentials unavailable"),
            },
            Err(error) => {
                tracing::error!(%error, "admin socket cannot accept connections");
                // Probably out of file descriptors, so an immediate retry would not help.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn accept_owner(
    own: UnixListener,
    owners: Vec<(u32, Option<Arc<str>>)>,
    arrived: mpsc::Sender<(UnixStream, Peer)>,
) {
    loop {
        let (stream, peer) = accept(&own).await;
        let (uid, pid) = (peer.uid(), peer.pid());
        let Some((_, user)) = owners.iter().find(|(owner, _)| *owner == uid) else {
            tracing::warn!(uid, "admin socket: connection from another user refused");
            continue;
        };
        let peer = Peer { uid, user: user.clone(), pid, rights: UserRights::OWNER, _slot: None };
        if arrived.send((stream, peer)).await.is_err() {
            return;
        }
    }
}

async fn accept_shared(
    shared_socket: UnixListener,
    roles: Arc<Roles>,
    arrived: mpsc::Sender<(UnixStream, Peer)>,
) {
    let slots = Arc::new(ConnectionSlots::default());
    let lookups = Arc::new(Semaphore::new(LOOKUPS));
    loop {
        let (stream, peer) = accept(&shared_socket).await;
        let Ok(lookup) = lookups.clone().acquire_owned().await else { return };
        let (roles, slots, arrived) = (roles.clone(), slots.clone(), arrived.clone());
        tokio::spawn(async move {
            let (uid, gid) = (peer.uid(), peer.gid());
            let looking = spawn_blocking(move || {
                // Held by the lookup itself, so that hanging lookups are limited.
                let _lookup = lookup;
                (roles.rights(uid, gid), name(uid))
            });
            let (rights, user) = match tokio::time::timeout(LOOKUP, looking).await {
                Ok(Ok(found)) => found,
                _ => {
                    tracing::error!(uid, "name service returned no groups for the user");
                    (UserRights::STRANGER, None)
                }
            };
            let slot = if rights.owner {
                None
            } else {
                // Connections beyond the limit are closed.
                let Some(slot) = slots.take(uid, rights) else { return };
                Some(slot)
            };
            let peer = Peer { uid, user, pid: peer.pid(), rights, _slot: slot };
            let _ = arrived.send((stream, peer)).await;
        });
    }
}

impl Listener for Sockets {
    type Io = UnixStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (UnixStream, Peer) {
        match self.arrivals.recv().await {
            Some(arrival) => arrival,
            // The accepting tasks end only with this value.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        let uid = Uid::effective().as_raw();
        Ok(Peer { uid, user: None, pid: None, rights: UserRights::OWNER, _slot: None })
    }
}

impl Connected<IncomingStream<'_, Sockets>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Sockets>) -> Self {
        stream.remote_addr().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_limited_by_user() {
        let slots = Arc::new(ConnectionSlots::default());
        let roles = Roles { auditor: vec!["group:4001".parse().unwrap()], ..Roles::default() };
        let auditor = roles.rights(5001, 4001);
        let strangers: Vec<_> =
            (0..1_000).filter_map(|uid| slots.take(uid, UserRights::STRANGER)).collect();
        assert_eq!(strangers.len(), OF_STRANGERS);
        let of_one: Vec<_> = (0..1_000).filter_map(|_| slots.take(5001, auditor)).collect();
        assert_eq!(of_one.len(), OF_ONE);
        assert!(slots.take(5002, auditor).is_some());
        drop(of_one);
        assert!(slots.take(5001, auditor).is_some());
        let all: Vec<_> = (0..1_000).filter_map(|uid| slots.take(uid, auditor)).collect();
        assert_eq!(all.len() + strangers.len(), OF_ALL);
        drop((all, strangers));
        assert!(slots.0.lock().is_empty());
    }
}
