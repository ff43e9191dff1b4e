//! A disk that fails when it is told to: a file system in user space, in this process.

use std::{
    ffi::OsStr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use fuser::{
    BackgroundSession, Config, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    SessionACL, TimeOrNow, WriteFlags,
};
use tokio::sync::watch;

use super::tree::{Cut, Tree};

/// Nothing is cached: a fault shows with the next system call.
const NOW: Duration = Duration::ZERO;

/// What is wrong with the disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Every change of a file or a folder
    pub writes: Option<Errno>,
    /// Every sync
    pub syncs: Option<Errno>,
    /// Syncs wait until they no longer are held
    pub hold: bool,
}

struct State {
    tree: Mutex<Tree>,
    faults: Mutex<Faults>,
    /// Syncs that wait.
    held: Mutex<Vec<(INodeNo, ReplyEmpty)>>,
    /// How many there are.
    count: watch::Sender<usize>,
    /// Syncs that were answered so far.
    syncs: watch::Sender<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The disk, in place as long as this is.
pub struct Disk {
    at: std::path::PathBuf,
    state: Arc<State>,
    session: Option<BackgroundSession>,
}

impl Disk {
    /// Puts an empty disk of so many bytes at this folder.
    pub fn new(at: &Path, bytes: u64) -> Self {
        let state = Arc::new(State {
            tree: Mutex::new(Tree::new(bytes)),
            faults: Mutex::default(),
            held: Mutex::default(),
            count: watch::Sender::new(0),
            syncs: watch::Sender::new(0),
        });
        let mut disk = Self { at: at.to_owned(), state, session: None };
        disk.mount();
        disk
    }

    fn mount(&mut self) {
        let mut config = Config::default();
        config.mount_options =
            vec![MountOption::FSName("faulty".into()), MountOption::DefaultPermissions];
        config.acl = SessionACL::All;
        let session = fuser::spawn_mount(Doors(self.state.clone()), &self.at, &config);
        self.session = Some(session.expect("/dev/fuse and root, to mount a disk that fails"));
    }

    /// Breaks the disk, or mends it.
    pub fn set(&self, faults: Faults) {
        *lock(&self.state.faults) = faults;
        if !faults.hold {
            for (ino, reply) in std::mem::take(&mut *lock(&self.state.held)) {
                self.state.finish(ino, reply);
            }
            self.state.count.send_replace(0);
        }
    }

    /// Waits until syncs wait.
    pub async fn holding(&self) {
        let mut count = self.state.count.subscribe();
        // The sender is in this disk.
        let _ = crate::support::in_time("a sync", count.wait_for(|count| *count > 0)).await;
    }

    /// Syncs that were answered so far.
    pub fn syncs(&self) -> u64 {
        *self.state.syncs.borrow()
    }

    /// Leaves so many bytes free.
    pub fn leave(&self, bytes: u64) {
        let mut tree = lock(&self.state.tree);
        tree.capacity = tree.used() + bytes;
    }

    /// Takes the power away, after whoever used it is dead: what was never synced may be gone. Then
    /// it is there again.
    pub fn power_cut(&mut self, cut: Cut) {
        self.set(Faults::default());
        self.unmount();
        lock(&self.state.tree).cut(cut);
        self.mount();
    }

    fn unmount(&mut self) {
        if let Some(session) = self.session.take() {
            // A file that is still open must not keep the test from its end.
            let _ = nix::mount::umount2(&self.at, nix::mount::MntFlags::MNT_DETACH);
            drop(session);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.set(Faults::default());
        self.unmount();
    }
}

impl State {
    /// Whether changes go through.
    fn writable(&self) -> Result<(), Errno> {
        lock(&self.faults).writes.map_or(Ok(()), Err)
    }

    fn finish(&self, ino: INodeNo, reply: ReplyEmpty) {
        let fault = lock(&self.faults).syncs;
        let mut tree = lock(&self.tree);
        let synced = match fault {
            None => tree.sync(ino.0),
            Some(error) => {
                tree.fail_to_sync(ino.0);
                Err(error)
            }
        };
        drop(tree);
        done(synced, reply);
        self.syncs.send_modify(|count| *count += 1);
    }

    fn sync(&self, ino: INodeNo, reply: ReplyEmpty) {
        // Held together with the faults, so that no sync slips in between a release and its list.
        let faults = lock(&self.faults);
        if faults.hold {
            let mut held = lock(&self.held);
            held.push((ino, reply));
            self.count.send_replace(held.len());
            return;
        }
        drop(faults);
        self.finish(ino, reply);
    }
}

struct Doors(Arc<State>);

impl Doors {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        lock(&self.0.tree)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Tree) -> Result<T, Errno>) -> Result<T, Errno> {
        self.0.writable()?;
        change(&mut self.tree())
    }
}

fn done(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Doors {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let tree = self.tree();
        match tree.find(parent.0, name).and_then(|ino| tree.attr(ino)) {
            Ok(attr) => reply.entry(&NOW, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.tree().attr(ino.0) {
            Ok(attr) => reply.attr(&NOW, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.change(|tree| tree.set(ino.0, mode, size).and_then(|()| tree.attr(ino.0))) {
            Ok(attr) => reply.attr(&NOW, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.change(|tree| {
            let ino = tree.make(parent.0, name, mode & !umask, FileType::Directory)?;
            tree.attr(ino)
        });
        match made {
            Ok(attr) => reply.entry(&NOW, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.change(|tree| tree.remove(parent.0, name, FileType::RegularFile)), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.change(|tree| tree.remove(parent.0, name, FileType::Directory)), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        to_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        done(self.change(|tree| tree.rename((parent.0, name), (to.0, to_name))), reply);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let made = self.change(|tree| {
            let ino = tree.make(parent.0, name, mode & !umask, FileType::RegularFile)?;
            tree.attr(ino)
        });
        match made {
            Ok(attr) => {
                reply.created(&NOW, &attr, Generation(0), FileHandle(0), FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.tree().read(ino.0, offset, size) {
            Ok(bytes) => reply.data(bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.change(|tree| tree.write(ino.0, offset, data)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.sync(ino, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.sync(ino, reply);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.tree().entries(ino.0) {
            Ok(entries) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                for (at, (name, ino, kind)) in entries.into_iter().enumerate().skip(from) {
                    if reply.add(INodeNo(ino), at as u64 + 1, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let tree = self.tree();
        let (all, free) = (tree.capacity / 4096, tree.free() / 4096);
        reply.statfs(all, free, free, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}
