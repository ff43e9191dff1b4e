//! A file system in memory that knows what of it is on the disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
};

use fuser::{Errno, FileAttr, FileType, INodeNo};

const BLOCK: u64 = 4096;
const PAGE: usize = BLOCK as usize;

/// Files and folders by number. None is ever forgotten: what is no longer named now may be again
/// after a power cut.
pub struct Tree {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    pub capacity: u64,
}

#[derive(Clone)]
struct Node {
    content: Content,
    /// What is on the disk, where that is something else.
    synced: Option<Content>,
    /// Pages that a sync failed to write. Like Linux, a later sync tries them no more, unless they
    /// are written to again.
    lost: BTreeSet<usize>,
    mode: u16,
}

#[derive(Clone, PartialEq)]
enum Content {
    File(Vec<u8>),
    Folder(BTreeMap<OsString, u64>),
}

/// How much of what was never synced a power cut takes.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    /// All of it
    Everything,
    /// Of each file and folder all or nothing, and of some files some pages: a disk writes in
    /// whatever order it likes
    Some(u64),
}

impl Content {
    fn kind(&self) -> FileType {
        match self {
            Self::File(_) => FileType::RegularFile,
            Self::Folder(_) => FileType::Directory,
        }
    }
}

impl Node {
    fn new(content: Content, mode: u16) -> Self {
        // It is made in memory; on the disk there is nothing yet.
        let nothing = match &content {
            Content::File(_) => Content::File(Vec::new()),
            Content::Folder(_) => Content::Folder(BTreeMap::new()),
        };
        Self { content, synced: Some(nothing), lost: BTreeSet::new(), mode }
    }

    fn change(&mut self) -> &mut Content {
        if self.synced.is_none() {
            self.synced = Some(self.content.clone());
        }
        &mut self.content
    }
}

fn rounded(len: usize) -> u64 {
    (len as u64).div_ceil(BLOCK) * BLOCK
}

/// Fills a page with the same one of another file; with zeros where that has none.
fn copy_page(from: &[u8], at: usize, page: &mut [u8]) {
    page.fill(0);
    let from = from.get(at * PAGE..).unwrap_or_default();
    let len = page.len().min(from.len());
    page[..len].copy_from_slice(&from[..len]);
}

type Answer<T> = Result<T, Errno>;

impl Tree {
    pub fn new(capacity: u64) -> Self {
        let mut root = Node::new(Content::Folder(BTreeMap::new()), 0o755);
        root.synced = None;
        Self { nodes: BTreeMap::from([(INodeNo::ROOT.0, root)]), next: 2, capacity }
    }

    fn node(&self, ino: u64) -> Answer<&Node> {
        self.nodes.get(&ino).ok_or(Errno::ENOENT)
    }

    fn file(&mut self, ino: u64) -> Answer<&mut Vec<u8>> {
        match self.nodes.get_mut(&ino).ok_or(Errno::ENOENT)?.change() {
            Content::File(bytes) => Ok(bytes),
            Content::Folder(_) => Err(Errno::EISDIR),
        }
    }

    fn folder(&mut self, ino: u64) -> Answer<&mut BTreeMap<OsString, u64>> {
        match self.nodes.get_mut(&ino).ok_or(Errno::ENOENT)?.change() {
            Content::Folder(names) => Ok(names),
            Content::File(_) => Err(Errno::ENOTDIR),
        }
    }

    pub fn entries(&self, ino: u64) -> Answer<Vec<(OsString, u64, FileType)>> {
        let Content::Folder(names) = &self.node(ino)?.content else { return Err(Errno::ENOTDIR) };
        names
            .iter()
            .map(|(name, ino)| Ok((name.clone(), *ino, self.node(*ino)?.content.kind())))
            .collect()
    }

    pub fn find(&self, parent: u64, name: &OsStr) -> Answer<u64> {
        let Content::Folder(names) = &self.node(parent)?.content else {
            return Err(Errno::ENOTDIR);
        };
        names.get(name).copied().ok_or(Errno::ENOENT)
    }

    pub fn attr(&self, ino: u64) -> Answer<FileAttr> {
        let node = self.node(ino)?;
        let size = match &node.content {
            Content::File(bytes) => bytes.len() as u64,
            Content::Folder(_) => BLOCK,
        };
        let epoch = std::time::SystemTime::UNIX_EPOCH;
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            kind: node.content.kind(),
            perm: node.mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        })
    }

    pub fn make(&mut self, parent: u64, name: &OsStr, mode: u32, kind: FileType) -> Answer<u64> {
        if self.find(parent, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        if self.free() < BLOCK {
            return Err(Errno::ENOSPC);
        }
        let ino = self.next;
        self.next += 1;
        let content = match kind {
            FileType::Directory => Content::Folder(BTreeMap::new()),
            _ => Content::File(Vec::new()),
        };
        self.nodes.insert(ino, Node::new(content, (mode & 0o7777) as u16));
        self.folder(parent)?.insert(name.to_owned(), ino);
        Ok(ino)
    }

    pub fn set(&mut self, ino: u64, mode: Option<u32>, size: Option<u64>) -> Answer<()> {
        if let (Some(mode), Some(node)) = (mode, self.nodes.get_mut(&ino)) {
            node.mode = (mode & 0o7777) as u16;
        }
        if let Some(size) = size {
            let size = usize::try_from(size).map_err(|_| Errno::EFBIG)?;
            self.room_for(ino, size)?;
            self.file(ino)?.resize(size, 0);
        }
        Ok(())
    }

    fn room_for(&mut self, ino: u64, len: usize) -> Answer<()> {
        let had = match &self.node(ino)?.content {
            Content::File(bytes) => rounded(bytes.len()),
            Content::Folder(_) => return Err(Errno::EISDIR),
        };
        let more = rounded(len).saturating_sub(had);
        if more > self.free() { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    pub fn write(&mut self, ino: u64, at: u64, data: &[u8]) -> Answer<()> {
        let at = usize::try_from(at).map_err(|_| Errno::EFBIG)?;
        let end = at + data.len();
        let Content::File(bytes) = &self.node(ino)?.content else { return Err(Errno::EISDIR) };
        if end > bytes.len() {
            self.room_for(ino, end)?;
        }
        let bytes = self.file(ino)?;
        if end > bytes.len() {
            bytes.resize(end, 0);
        }
        bytes[at..end].copy_from_slice(data);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lost.retain(|page| !(at / PAGE..=end / PAGE).contains(page));
        }
        Ok(())
    }

    pub fn read(&self, ino: u64, at: u64, size: u32) -> Answer<&[u8]> {
        let Content::File(bytes) = &self.node(ino)?.content else { return Err(Errno::EISDIR) };
        let at = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        Ok(&bytes[at..bytes.len().min(at.saturating_add(size as usize))])
    }

    pub fn remove(&mut self, parent: u64, name: &OsStr, kind: FileType) -> Answer<()> {
        let ino = self.find(parent, name)?;
        match (&self.node(ino)?.content, kind) {
            (Content::Folder(names), FileType::Directory) if !names.is_empty() => {
                return Err(Errno::ENOTEMPTY);
            }
            (Content::Folder(_), FileType::Directory)
            | (Content::File(_), FileType::RegularFile) => {}
            (Content::Folder(_), _) => return Err(Errno::EISDIR),
            (Content::File(_), _) => return Err(Errno::ENOTDIR),
        }
        self.folder(parent)?.remove(name);
        Ok(())
    }

    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Answer<()> {
        let ino = self.find(from.0, from.1)?;
        if let Ok(old) = self.find(to.0, to.1)
            && let Content::Folder(names) = &self.node(old)?.content
            && !names.is_empty()
        {
            return Err(Errno::ENOTEMPTY);
        }
        self.folder(from.0)?.remove(from.1);
        self.folder(to.0)?.insert(to.1.to_owned(), ino);
        Ok(())
    }

    pub fn sync(&mut self, ino: u64) -> Answer<()> {
        let node = self.nodes.get_mut(&ino).ok_or(Errno::ENOENT)?;
        node.synced = match (node.synced.take(), &node.content) {
            (Some(Content::File(old)), Content::File(new)) if !node.lost.is_empty() => {
                let mut synced = new.clone();
                for (at, page) in synced.chunks_mut(PAGE).enumerate() {
                    if node.lost.contains(&at) {
                        copy_page(&old, at, page);
                    }
                }
                Some(Content::File(synced))
            }
            _ => None,
        };
        Ok(())
    }

    /// A sync that wrote nothing, and said so.
    pub fn fail_to_sync(&mut self, ino: u64) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let (Some(Content::File(old)), Content::File(new)) = (&node.synced, &node.content) else {
            return;
        };
        let page = |bytes: &[u8], at: usize| {
            bytes.get(at * PAGE..).map(|rest| rest[..rest.len().min(PAGE)].to_vec())
        };
        let pages = 0..new.len().div_ceil(PAGE);
        node.lost.extend(pages.filter(|at| page(old, *at) != page(new, *at)));
    }

    /// Bytes of files that have a name; an open file without one is counted by nobody.
    pub fn used(&self) -> u64 {
        let mut folders = vec![INodeNo::ROOT.0];
        let mut used = 0;
        while let Some(ino) = folders.pop() {
            match self.nodes.get(&ino).map(|node| &node.content) {
                Some(Content::File(bytes)) => used += rounded(bytes.len()),
                Some(Content::Folder(names)) => folders.extend(names.values()),
                None => {}
            }
        }
        used
    }

    pub fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used())
    }

    /// Back to what the disk has.
    pub fn cut(&mut self, cut: Cut) {
        let mut random = match cut {
            Cut::Everything => None,
            Cut::Some(seed) => Some(Random(seed | 1)),
        };
        for node in self.nodes.values_mut() {
            node.lost.clear();
            let Some(synced) = node.synced.take() else { continue };
            node.content = match (&mut random, synced, &node.content) {
                (Some(random), Content::File(old), Content::File(new)) => {
                    Content::File(random.mixed(&old, new))
                }
                (Some(random), old, new) => {
                    if random.next() % 2 == 0 {
                        old
                    } else {
                        new.clone()
                    }
                }
                (None, old, _) => old,
            };
        }
    }
}

/// xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    /// A file of which some pages were written and some not.
    fn mixed(&mut self, old: &[u8], new: &[u8]) -> Vec<u8> {
        match self.next() % 4 {
            0 => return old.to_vec(),
            1 => return new.to_vec(),
            _ => {}
        }
        let len = if self.next().is_multiple_of(2) { old.len() } else { new.len() };
        let mut mixed = vec![0; len];
        for (at, page) in mixed.chunks_mut(PAGE).enumerate() {
            copy_page(if self.next().is_multiple_of(2) { old } else { new }, at, page);
        }
        mixed
    }
}
