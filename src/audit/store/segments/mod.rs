//! All segments of a store: sealed blocks, growing blocks, and views of both.

mod head_file;
mod view;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    sync::{Arc, Weak},
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    BLOCK,
    block::Growing,
    fault::Fault,
    segment::{Closed, IndexTrust, Loss, Mode, OpenedSegment, Segment, SegmentEnv, Wal},
};
use crate::{
    digest::DigestKey,
    maintenance::Cipher,
    proof::{Frontier, Hash},
};

pub(super) use head_file::HeadFile;
use head_file::read_head;
pub(crate) use view::View;

/// Maximum number of old segments kept open for queries.
const OPEN: usize = 8;

/// Creates a folder that only its owner can enter, and its missing parents. The folder survives a
/// power cut.
pub(crate) fn private_dir(dir: &Path) -> io::Result<()> {
    let missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let created: Vec<_> = dir.ancestors().take_while(missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // A name is only as durable as its folder.
    for above in created.into_iter().filter_map(Path::parent) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        fs::File::open(above)?.sync_all()?;
    }
    Ok(())
}

/// Time from microseconds since 1970.
pub(crate) fn time(micros: u64) -> Timestamp {
    i64::try_from(micros)
        .ok()
        .and_then(|micros| Timestamp::from_microsecond(micros).ok())
        .unwrap_or(Timestamp::MAX)
}

/// Microseconds since 1970 of a time.
pub(crate) fn stamp(time: Timestamp) -> u64 {
    u64::try_from(time.as_microsecond()).unwrap_or(0)
}

/// Durable end of the log.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// Tree over all records.
    pub tree: Frontier,
    /// Hash of the last record.
    pub last: Hash,
    /// Time of the last record.
    pub recorded: Timestamp,
}

/// Summary of a segment without reading it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SegmentInfo {
    /// `seq` of its first record.
    pub first: u64,
    /// `seq` after its last record.
    pub end: u64,
    /// Time of its first record, if it is closed.
    pub began: Option<Timestamp>,
    /// Time of its last record.
    pub ended: Timestamp,
    /// Whether the segment accepts no more records.
    pub closed: bool,
    /// Folder of the segment.
    pub path: std::path::PathBuf,
}

/// A segment that may be open.
struct Slot {
    first: u64,
    closed: Mutex<Option<Closed>>,
    open: Mutex<SlotState>,
}

/// State of a segment in its slot.
#[derive(Default)]
struct SlotState {
    open: Option<Arc<Segment>>,
    /// An evicted segment that a view may still read: sled cannot open it twice.
    given_up: Weak<Segment>,
}

impl SlotState {
    fn give_up(&mut self) {
        if let Some(segment) = self.open.take() {
            self.given_up = Arc::downgrade(&segment);
        }
    }
}

impl Slot {
    fn new(first: u64, closed: Option<Closed>) -> Arc<Self> {
        Arc::new(Self { first, closed: Mutex::new(closed), open: Mutex::default() })
    }
}

/// Segments of one store.
pub(crate) struct SegmentSet {
    env: Arc<SegmentEnv>,
    inner: Mutex<Inner>,
    ends: watch::Sender<u64>,
    /// Tree before the first segment, if that segment was not closed when the store was opened.
    base: Option<Frontier>,
    /// Parts that could not be read when the store was opened.
    damage: Vec<String>,
}

struct Inner {
    slots: Arc<Vec<Arc<Slot>>>,
    /// Blocks in memory, in order; the last one may still grow.
    growing: Vec<Arc<Growing>>,
    /// `seq` after the last sealed record.
    sealed: u64,
    head: Head,
    /// First records of open old segments, the most recently opened last.
    opened: Vec<u64>,
}

/// Parameters for opening the segments of a store.
pub(crate) struct Opening<'a> {
    pub key: DigestKey,
    pub cipher: Option<Arc<Cipher>>,
    /// Only [`Mode::Write`] permits changes to files of records.
    pub mode: Mode,
    /// Whether summaries of closed segments, and indexes of the others, are trusted. Otherwise the
    /// tree is computed from records, and from the indexes of closed segments.
    pub trust: IndexTrust,
    /// Damage that an opening immediately before found, if any: it has already cut off and set
    /// aside unreadable data.
    pub earlier_damage: Option<Vec<String>>,
    /// State before a record, if retention dropped all earlier records.
    pub dropped: &'a dyn Fn(u64) -> Option<Head>,
}

/// Result for a writer.
pub(crate) struct Opened {
    pub segment_set: Arc<SegmentSet>,
    pub(super) current: Option<Current>,
    /// Blocks to seal, with their segments.
    pub(super) unsealed: Vec<(Arc<Segment>, Arc<Growing>)>,
    /// Segments to close after that.
    pub(super) unclosed: Vec<Arc<Segment>>,
    pub(super) loss: Option<Loss>,
    /// Reason why the tree before the first segment is unknown.
    pub(crate) groundless: Option<String>,
}

/// Segment that is being written.
pub(super) struct Current {
    pub segment: Arc<Segment>,
    pub growing: Arc<Growing>,
    pub wal: Option<Wal>,
}

impl SegmentSet {
    /// Opens the segments of the store in `dir`.
    pub(crate) fn open(dir: &Path, opening: Opening<'_>) -> Result<Opened, Fault> {
        let Opening { key, cipher, mode, trust, earlier_damage, dropped } = opening;
        let env = Arc::new(SegmentEnv::new(dir, key, cipher));
        let mut slots = Vec::new();
        let mut head =
            Head { tree: Frontier::default(), last: Hash::ZERO, recorded: Timestamp::UNIX_EPOCH };
        let mut end = 0;
        let (mut growing, mut unsealed, mut unclosed) = (Vec::new(), Vec::new(), Vec::new());
        let mut current = None;
        let mut damage = Vec::new();
        let (mut base, mut groundless) = (Some(Frontier::default()), None);
        let mark = read_head(dir);
        let acknowledged = mark.map_or(0, |(seq, _)| seq + 1);
        let firsts = firsts(dir)?;
        for (at, &first) in firsts.iter().enumerate() {
            // Damage costs few records at a segment's end; only retention moves the first one.
            if at > 0 && first > acknowledged.max(end) + 16 * BLOCK {
                damage.push(format!(
                    "{}: it begins after records that never existed",
                    env.path(first).display()
                ));
                continue;
            }
            let next = firsts.get(at + 1).copied();
            let fits = |closed: &Closed| {
                closed.first == first
                    && closed.tree.size() == closed.end
                    && next.is_none_or(|next| next == closed.end)
            };
            let closed = match Segment::closed(&env, first) {
                Ok(Some(closed)) if !fits(&closed) => {
                    damage.push(format!(
                        "{}: `segment.json` does not match",
                        env.path(first).display()
                    ));
                    None
                }
                Ok(closed) => closed,
                Err(fault) => {
                    damage.push(fault.to_string());
                    None
                }
            };
            // An unclosed segment in the middle is rare: a stop between two days, or damage.
            let index = match (&closed, next) {
                (Some(_), _) => IndexTrust::Believe,
                (None, Some(_)) => IndexTrust::Doubt,
                (None, None) => trust,
            };
            let closed = closed.filter(|_| trust == IndexTrust::Believe);
            let slot = Slot::new(first, closed.clone());
            slots.push(slot.clone());
            if let Some(closed) = closed {
                head = Head { tree: closed.tree, last: closed.last, recorded: closed.ended };
                groundless = None;
                end = closed.end;
                continue;
            }
            if at == 0 && first > 0 {
                match dropped(first) {
                    Some(before) => {
                        base = Some(before.tree.clone());
                        head = before;
                    }
                    None => {
                        base = None;
                        let path = env.path(first);
                        let path = path.display();
                        let why = format!("{path}: the state before its records is unknown");
                        damage.push(why.clone());
                        groundless = Some(why);
                    }
                }
            }
            let expected = if earlier_damage.is_some() { 0 } else { acknowledged };
            let found = Segment::open(&env, first, mode, expected, index)?;
            let OpenedSegment { segment, growing: blocks, wal, end: after, damage: bad } = found;
            damage.extend(bad);
            slot.open.lock().open = Some(segment.clone());
            head.tree.pad(first);
            head.read(&segment, &blocks)?;
            end = after;
            unsealed.extend(blocks.iter().map(|block| (segment.clone(), block.clone())));
            growing.extend(blocks);
            if at + 1 < firsts.len() {
                unclosed.push(segment);
                continue;
            }
            let last = unsealed.pop_if(|(of, block)| of.first == first && !block.is_full());
            let block = match last {
                Some((_, block)) => block,
                None => {
                    let block = Arc::new(Growing::new(end));
                    growing.push(block.clone());
                    block
                }
            };
            // A full block accepts no more commits.
            let wal = wal.filter(|_| !block.is_empty());
            current = Some(Current { segment, growing: block, wal });
        }
        let sealed = growing.first().map_or(end, |block| block.first);
        let loss =
            mark.filter(|(seq, _)| *seq >= end).map(|(seq, _)| Loss { from: end, until: seq + 1 });
        if let Some((_, hash)) = mark.filter(|(seq, hash)| *seq + 1 == end && *hash != head.last) {
            damage.push(format!(
                "the last record is not the one that was acknowledged, of which the hash was {hash}"
            ));
        }
        if let Some(mut earlier) = earlier_damage {
            damage.retain(|what| !earlier.contains(what));
            earlier.append(&mut damage);
            damage = earlier;
        }
        let segment_set = Self {
            env,
            inner: Mutex::new(Inner {
                slots: Arc::new(slots),
                growing,
                sealed,
                head,
                opened: Vec::new(),
            }),
            ends: watch::Sender::new(end),
            base,
            damage,
        };
        Ok(Opened {
            segment_set: Arc::new(segment_set),
            current,
            unsealed,
            unclosed,
            loss,
            groundless,
        })
    }

    /// Folder of the store.
    pub(crate) fn dir(&self) -> &Path {
        &self.env.dir
    }

    pub(super) fn env(&self) -> &Arc<SegmentEnv> {
        &self.env
    }

    /// Descriptions of parts that could not be read when the store was opened.
    pub(crate) fn damage(&self) -> &[String] {
        &self.damage
    }

    /// Number of records that the log has had: `seq` after the last durable record. The channel
    /// reports changes.
    pub(crate) fn ends(&self) -> watch::Receiver<u64> {
        self.ends.subscribe()
    }

    /// Durable end of the log.
    pub(crate) fn head(&self) -> Head {
        self.inner.lock().head.clone()
    }

    /// View of all durable records. Later records are not in it.
    pub(crate) fn view(self: &Arc<Self>) -> View {
        let inner = self.inner.lock();
        let memory = inner
            .growing
            .iter()
            .map(|block| {
                let count = usize::try_from(block.end() - block.first).unwrap_or(0);
                (block.clone(), count)
            })
            .collect::<Vec<_>>();
        let end = memory.last().map_or(inner.sealed, |(block, count)| block.first + *count as u64);
        View {
            segment_set: self.clone(),
            slots: inner.slots.clone(),
            sealed: inner.sealed,
            memory,
            end,
        }
    }

    /// Summaries of all segments, in order.
    pub(crate) fn segments(&self) -> Vec<SegmentInfo> {
        let (slots, head, end) = {
            let inner = self.inner.lock();
            (inner.slots.clone(), inner.head.clone(), *self.ends.borrow())
        };
        slots
            .iter()
            .map(|slot| {
                let closed = slot.closed.lock();
                SegmentInfo {
                    first: slot.first,
                    end: closed.as_ref().map_or(end, |closed| closed.end),
                    began: closed.as_ref().map(|closed| closed.begin),
                    ended: closed.as_ref().map_or(head.recorded, |closed| closed.ended),
                    closed: closed.is_some(),
                    path: self.env.path(slot.first),
                }
            })
            .collect()
    }

    /// Tree at the end of the last closed segment that ends at or before `size`.
    pub(crate) fn closed_before(&self, size: u64) -> Option<Frontier> {
        let slots = self.inner.lock().slots.clone();
        slots.iter().rev().find_map(|slot| {
            let closed = slot.closed.lock();
            closed.as_ref().filter(|closed| closed.end <= size).map(|closed| closed.tree.clone())
        })
    }

    /// Removes a closed segment from the set, so that its folder can be removed. Existing views
    /// keep their files open.
    pub(crate) fn forget(&self, first: u64) {
        let mut inner = self.inner.lock();
        Arc::make_mut(&mut inner.slots)
            .retain(|slot| slot.first != first || slot.closed.lock().is_none());
    }

    /// Blocks of a segment. Opens it if necessary.
    fn open_slot(&self, slot: &Slot) -> Result<Arc<Segment>, Fault> {
        let mut held = slot.open.lock();
        if let Some(segment) = &held.open {
            return Ok(segment.clone());
        }
        let segment = match held.given_up.upgrade() {
            Some(segment) => segment,
            None => {
                let path = self.env.path(slot.first);
                if !path.join("records").is_file() {
                    let what = format!("{}: its records are missing", path.display());
                    return Err(Fault::Damaged(what));
                }
                let trust = IndexTrust::Believe;
                let found = Segment::open(&self.env, slot.first, Mode::Read, 0, trust)?;
                for what in &found.damage {
                    tracing::error!("{what}");
                }
                found.segment
            }
        };
        held.open = Some(segment.clone());
        drop(held);
        self.give_up_oldest(slot.first);
        Ok(segment)
    }

    /// Evicts the old segment that was opened first, if there are too many. `opened` is the newest.
    fn give_up_oldest(&self, opened: u64) {
        let oldest = {
            let mut inner = self.inner.lock();
            inner.opened.retain(|first| *first != opened);
            inner.opened.push(opened);
            let more = inner.opened.len() > OPEN;
            let oldest = more.then(|| inner.opened.remove(0));
            oldest.and_then(|oldest| inner.slots.iter().find(|slot| slot.first == oldest).cloned())
        };
        // Without the other lock, which the writer needs: a thread may be opening this segment.
        if let Some(slot) = oldest {
            slot.open.lock().give_up();
        }
    }

    /// Adds a segment for writing.
    pub(super) fn add(&self, segment: &Arc<Segment>) {
        let slot = Slot::new(segment.first, None);
        slot.open.lock().open = Some(segment.clone());
        Arc::make_mut(&mut self.inner.lock().slots).push(slot);
    }

    /// Moves the durable end to `head`, after new records in `block`: the last block or a new one.
    pub(super) fn grown(&self, block: &Arc<Growing>, head: Head) {
        let mut inner = self.inner.lock();
        if inner.growing.last().is_none_or(|last| last.first != block.first) {
            inner.growing.push(block.clone());
        }
        inner.head = head;
        self.ends.send_replace(block.end());
    }

    /// Removes a block from memory after it was sealed.
    pub(super) fn sealed(&self, block: &Growing) {
        let mut inner = self.inner.lock();
        inner.growing.retain(|growing| growing.first != block.first);
        inner.sealed = block.end();
    }

    /// Bytes of records that are not sealed.
    pub(super) fn unsealed(&self) -> usize {
        self.inner.lock().growing.iter().map(|block| block.bytes()).sum()
    }

    /// Closes a segment whose records are all sealed.
    pub(super) fn close(&self, segment: &Segment) -> Result<(), Fault> {
        let slots = self.inner.lock().slots.clone();
        let at = slots.iter().position(|slot| slot.first == segment.first);
        let before = at.and_then(|at| slots.get(at.checked_sub(1)?));
        let tree = match before {
            None => self.base.clone(),
            Some(before) => before.closed.lock().as_ref().map(|closed| closed.tree.clone()),
        };
        let tree = tree.ok_or_else(|| {
            let path = segment.path().display();
            Fault::Damaged(format!("{path} cannot be closed: the tree before it is unknown"))
        })?;
        let closed = segment.close(tree)?;
        if let Some(slot) = at.and_then(|at| slots.get(at)) {
            *slot.closed.lock() = Some(closed);
            self.give_up_oldest(segment.first);
        }
        Ok(())
    }
}

impl Head {
    /// Appends the records of a segment and of its unsealed blocks.
    fn read(&mut self, segment: &Segment, growing: &[Arc<Growing>]) -> Result<(), Fault> {
        for block in segment.blocks().iter() {
            block.append_to(&mut self.tree)?;
            self.last = block.last;
            self.recorded = time(block.end);
        }
        for block in growing {
            block.append_to(&mut self.tree);
            if let Some((last, recorded)) = block.last() {
                self.last = last;
                self.recorded = time(recorded);
            }
        }
        Ok(())
    }
}

/// First records of all segments, in order.
fn firsts(dir: &Path) -> Result<Vec<u64>, Fault> {
    let dir = dir.join("segments");
    let failed = |e: io::Error| Fault::io("reading", &dir, &e);
    let mut firsts = Vec::new();
    match fs::read_dir(&dir) {
        Ok(entries) => {
            for entry in entries {
                let name = entry.map_err(failed)?.file_name();
                let digits = name.to_str().filter(|name| name.len() == 16);
                firsts.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// First record of the oldest segment in `dir`; 0 without segments.
pub(crate) fn first_segment(dir: &Path) -> io::Result<u64> {
    let firsts = firsts(dir).map_err(io::Error::other)?;
    Ok(firsts.first().copied().unwrap_or(0))
}
