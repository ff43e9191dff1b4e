//! Control groups: the kernel's own limits on the memory, the processes and the processor time of a
//! whole tree, where the proxy may make some.
//!
//! Version 1 takes a group within the proxy's own, for each controller. Version 2 forbids a group
//! that has processes to hand controllers on. Where systemd has delegated the proxy's own group to it
//! (`Delegate=yes`), the proxy moves into one within it, and makes the others beside that. Else they
//! are beside the proxy's own, where root may make them, and an ordinary user in his own manager's;
//! systemd may take a controller away there at any time. Where neither can be had, the sandbox stands
//! on resource limits, and on the look that its first process takes at the tree.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirEntry},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::unistd::geteuid;

use crate::{config::Resources, container::lease::Lease};

/// What the names of our groups begin with.
const NAME: &str = "portcullis_";
/// A period of processor time, in microseconds.
const PERIOD: u32 = 100_000;
/// The time between two looks at whether memory ran out.
const WATCH: Duration = Duration::from_millis(250);
/// The launcher's own processes.
const OWN: u32 = 2;
/// The group within a delegated one that has the proxy itself.
const PROXY: &str = "proxy";

/// What a group can limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Controller {
    Memory,
    Pids,
    Cpu,
}

impl Controller {
    pub(super) const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// A folder in which groups can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parent {
    folder: PathBuf,
    version: Version,
    controllers: Vec<Controller>,
}

impl Parent {
    /// Hands its controllers on. Again where somebody took one away: systemd does, in the slices that
    /// are its own, when the last of its units that asked for one ends.
    fn hand_on(&self) {
        if self.version == Version::V2 {
            hand_on(&self.folder, &self.controllers);
        }
    }
}

/// Where groups can be made on this machine, by this process.
#[derive(Debug, Default)]
pub(super) struct CgroupParents {
    all: Vec<Parent>,
    /// Controllers that can't be had, and why.
    missing: BTreeMap<Controller, String>,
}

/// What this machine offers. Detected once: what was available then must be available at every start. The
/// proxy may move into another group then.
pub(super) fn parents() -> &'static CgroupParents {
    static FOUND: LazyLock<CgroupParents> = LazyLock::new(|| {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        let found = find(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        found.tried()
    });
    &FOUND
}

impl CgroupParents {
    /// The version of the groups that limit this, or why none does.
    pub(super) fn limits(&self, controller: Controller) -> Result<Version, &str> {
        let parent = self.all.iter().find(|parent| parent.controllers.contains(&controller));
        match parent {
            Some(parent) => Ok(parent.version),
            None => Err(self.missing.get(&controller).map_or("none is mounted", String::as_str)),
        }
    }

    /// Leaves out where none can be made, and takes away what proxies before this one have left.
    fn tried(mut self) -> Self {
        let all = std::mem::take(&mut self.all);
        for parent in all {
            sweep(&parent.folder);
            let group = Group { folder: parent.folder.join(name()), parent: parent.clone() };
            match group.make(&Resources::default()) {
                Ok(()) => self.all.push(parent),
                Err(error) => {
                    let why = format!("{}: {error}", parent.folder.display());
                    self.missing.extend(parent.controllers.iter().map(|one| (*one, why.clone())));
                }
            }
        }
        self
    }

    /// Makes groups for one tree.
    ///
    /// # Errors
    /// Where one that could be made before can't be made now.
    pub(super) fn make(&self, resources: &Resources) -> io::Result<Cgroup> {
        let name = name();
        let mut groups = Cgroup(Vec::new());
        for parent in &self.all {
            parent.hand_on();
            let group = Group { folder: parent.folder.join(&name), parent: parent.clone() };
            group.make(resources)?;
            groups.0.push(group);
        }
        Ok(groups)
    }
}

/// The groups of one tree. They are removed when this is dropped and the tree is gone.
#[derive(Debug)]
pub(super) struct Cgroup(Vec<Group>);

impl Cgroup {
    /// The folders that a process enters them by.
    pub(super) fn folders(&self) -> Vec<PathBuf> {
        self.0.iter().map(|group| group.folder.clone()).collect()
    }

    /// Whether they limit this.
    pub(super) fn limit(&self, controller: Controller) -> bool {
        self.0.iter().any(|group| group.parent.controllers.contains(&controller))
    }

    /// Waits until that has happened, where the kernel does not end the whole group by itself.
    pub(super) async fn run_out_of_memory(&self) {
        let looked_at = |group: &Group| {
            group.parent.version == Version::V1
                && group.parent.controllers.contains(&Controller::Memory)
        };
        if !self.0.iter().any(looked_at) {
            std::future::pending::<()>().await;
        }
        while !self.ran_out_of_memory() {
            tokio::time::sleep(WATCH).await;
        }
    }

    /// Whether a process of the tree was killed because memory ran out.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.0.iter().any(|group| {
            ["memory.events", "memory.oom_control"].iter().any(|file| {
                let text = fs::read_to_string(group.folder.join(file)).unwrap_or_default();
                let killed = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
                killed.is_some_and(|number| number.trim() != "0")
            })
        })
    }
}

#[derive(Debug)]
struct Group {
    folder: PathBuf,
    parent: Parent,
}

impl Group {
    fn make(&self, resources: &Resources) -> io::Result<()> {
        fs::create_dir(&self.folder)?;
        for (file, value) in settings(&self.parent, resources) {
            let place = self.folder.join(file);
            // Swap can't be limited where the kernel does not account for it.
            if !file.contains("sw") || place.exists() {
                fs::write(place, value)?;
            }
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let gone = |folder: &Path| match fs::remove_dir(folder) {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(()) => true,
        };
        if gone(&self.folder) {
            return;
        }
        // The last process may still be on its way out. What stays is empty, and the next proxy's.
        let folder = std::mem::take(&mut self.folder);
        let patient = move || {
            for _ in 0..100 {
                thread::sleep(Duration::from_millis(50));
                if gone(&folder) {
                    return;
                }
            }
        };
        let _ = thread::Builder::new().name("group-remover".to_owned()).spawn(patient);
    }
}

/// The files to write, in their order.
fn settings(parent: &Parent, resources: &Resources) -> Vec<(&'static str, String)> {
    let memory = resources.memory_mib.saturating_mul(1 << 20).to_string();
    let pids = resources.pids.saturating_add(OWN).to_string();
    // The kernel takes no less than a millisecond.
    let quota = (resources.cpus * f64::from(PERIOD)).max(1000.0) as u64;
    let of = |controller: &Controller| match (controller, parent.version) {
        (Controller::Memory, Version::V1) => vec![
            ("memory.limit_in_bytes", memory.clone()),
            ("memory.memsw.limit_in_bytes", memory.clone()),
        ],
        (Controller::Memory, Version::V2) => vec![
            ("memory.max", memory.clone()),
            ("memory.swap.max", "0".to_owned()),
            ("memory.oom.group", "1".to_owned()),
        ],
        (Controller::Pids, _) => vec![("pids.max", pids.clone())],
        (Controller::Cpu, Version::V1) => {
            vec![("cpu.cfs_period_us", PERIOD.to_string()), ("cpu.cfs_quota_us", quota.to_string())]
        }
        (Controller::Cpu, Version::V2) => vec![("cpu.max", format!("{quota} {PERIOD}"))],
    };
    parent.controllers.iter().flat_map(of).collect()
}

/// Whose group it is, and which.
fn name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let owner = Lease::current().to_string().replace(' ', "_");
    format!("{NAME}{owner}_{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Takes away the groups of proxies that are gone. One that still has processes can't be removed.
fn sweep(folder: &Path) {
    let own = Lease::current();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_left(&entry, &own) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Whether that is a group of this user's whose proxy is gone.
fn is_left(entry: &DirEntry, own: &Lease) -> bool {
    let name = entry.file_name();
    let owner = name.to_str().and_then(|name| name.strip_prefix(NAME)?.rsplit_once('_'));
    let owner = owner.and_then(|(owner, _)| owner.replace('_', " ").parse::<Lease>().ok());
    // Anybody may give a group of his own any name.
    owner.is_some_and(|owner| owner.gone(own))
        && entry.metadata().is_ok_and(|meta| meta.uid() == geteuid().as_raw())
}

/// The groups that proxies of this user have left that are gone, wherever in the hierarchies of this
/// machine: a proxy makes them where it is itself, which need not be where this process is.
pub fn groups_left() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mounts.lines().filter_map(Mounted::read);
    let hierarchies = mounts.filter(|mount| mount.kind.starts_with("cgroup"));
    let places: BTreeSet<_> = hierarchies.map(|mount| PathBuf::from(mount.place)).collect();
    let left: BTreeSet<_> = places.into_iter().flat_map(left_below).collect();
    left.into_iter().collect()
}

fn left_below(place: PathBuf) -> Vec<PathBuf> {
    let own = Lease::current();
    let (mut left, mut folders) = (Vec::new(), vec![place]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            // A link is no folder of its own.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                match is_left(&entry, &own) {
                    true => left.push(entry.path()),
                    false => folders.push(entry.path()),
                }
            }
        }
    }
    left
}

/// Takes such a group away. Blocks until `end`, at the latest, while it has processes: those of a proxy
/// that was killed take a moment to die.
///
/// # Errors
/// Why that can't be, with the processes that are still in it.
pub fn remove_group(group: &Path, end: Instant) -> Result<(), String> {
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                if Instant::now() >= end {
                    let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                    let pids: Vec<_> = pids.split_whitespace().collect();
                    return Err(format!("it has processes still: {}", pids.join(", ")));
                }
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error.to_string());
            }
            _ => return Ok(()),
        }
    }
}

/// Reads where the hierarchies are mounted, and where in them this process is.
fn find(mounts: &str, own: &str) -> CgroupParents {
    let mounts: Vec<Mounted> = mounts.lines().filter_map(Mounted::read).collect();
    let mut found = CgroupParents::default();
    for controller in Controller::ALL {
        let mounted = mounts.iter().find(|mount| {
            mount.kind == "cgroup" && mount.options.split(',').any(|one| one == controller.name())
        });
        let path = own.lines().find_map(|line| {
            let (names, path) = line.split_once(':')?.1.split_once(':')?;
            names.split(',').any(|name| name == controller.name()).then_some(path)
        });
        if let (Some(mounted), Some(path)) = (mounted, path) {
            match mounted.folder(path) {
                Some(folder) => found.all.push(Parent {
                    folder,
                    version: Version::V1,
                    controllers: vec![controller],
                }),
                None => {
                    let why = "the proxy's own group is not to be seen from here";
                    found.missing.insert(controller, why.to_owned());
                }
            }
        }
    }
    let unified = mounts.iter().find(|mount| mount.kind == "cgroup2");
    let path = own.lines().find_map(|line| line.strip_prefix("0::"));
    if let (true, Some(mounted), Some(path)) = (found.all.is_empty(), unified, path) {
        found.unified(mounted.folder(path), mounted.place);
    }
    found
}

impl CgroupParents {
    /// The folder beside the proxy's own group; at the top, and where it is delegated, within it.
    fn unified(&mut self, own: Option<PathBuf>, top: &str) {
        let Some(own) = own else { return };
        let folder = match own.parent() {
            Some(_) if own != Path::new(top) && delegated(&own) && step_aside(&own).is_ok() => own,
            Some(parent) if own != Path::new(top) => parent.to_owned(),
            _ => own,
        };
        let (controllers, missing) = hand_on(&folder, &Controller::ALL);
        let why = format!("{} does not hand it on", folder.display());
        self.missing.extend(missing.into_iter().map(|one| (one, why.clone())));
        if !controllers.is_empty() {
            self.all.push(Parent { folder, version: Version::V2, controllers });
        }
    }
}

/// Has a group hand on what it does not yet. Returns what it does then, and what it does not.
fn hand_on(folder: &Path, wanted: &[Controller]) -> (Vec<Controller>, Vec<Controller>) {
    let file = folder.join("cgroup.subtree_control");
    let listed = || fs::read_to_string(&file).unwrap_or_default();
    let has = |text: &str, one: Controller| text.split_whitespace().any(|w| w == one.name());
    let before = listed();
    for controller in wanted.iter().filter(|one| !has(&before, **one)) {
        // Where it is ours to hand on. If not, the list goes on without it.
        let _ = fs::write(&file, format!("+{}", controller.name()));
    }
    let after = listed();
    wanted.iter().copied().partition(|one| has(&after, *one))
}

/// Whether systemd says that it leaves a group to who is in it.
fn delegated(group: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0; 8];
        rustix::fs::getxattr(group, *name, &mut value).is_ok_and(|length| value[..length] == *b"1")
    })
}

/// Moves the proxy into a group within its own. Not where others are in that, which are not ours to
/// move.
fn step_aside(own: &Path) -> io::Result<()> {
    let me = std::process::id().to_string();
    let inside = fs::read_to_string(own.join("cgroup.procs"))?;
    if inside.split_whitespace().any(|pid| pid != me) {
        return Err(io::Error::other("others are in it"));
    }
    let place = own.join(PROXY);
    match fs::create_dir(&place) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::write(place.join("cgroup.procs"), "0"),
    }
}

/// A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
struct Mounted<'a> {
    /// The part of the hierarchy that is seen.
    root: &'a str,
    place: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mounted<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let mut after = after.split(' ');
        Some(Self {
            root: before.next()?,
            place: before.next()?,
            kind: after.next()?,
            options: after.nth(1)?,
        })
    }

    /// The folder of a group in it.
    fn folder(&self, path: &str) -> Option<PathBuf> {
        let rest = Path::new(path).strip_prefix(self.root).ok()?;
        let plain = !path.split('/').any(|part| part == "..");
        plain.then(|| match rest.as_os_str().is_empty() {
            true => PathBuf::from(self.place),
            false => Path::new(self.place).join(rest),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(version: Version, controllers: &[Controller]) -> Parent {
        Parent { folder: "/g".into(), version, controllers: controllers.to_vec() }
    }

    #[test]
    fn version_1_is_found_by_controller() {
        let mounts = "\
            25 24 0:22 / /sys/fs/cgroup ro - tmpfs tmpfs rw\n\
            26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            27 25 0:24 /docker/ab /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
            28 25 0:25 /other /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let own = "4:memory:/docker/ab/x\n3:cpu,cpuacct:/\n2:pids:/elsewhere\n0::/\n";
        let found = find(mounts, own);
        let folders: Vec<_> = found.all.iter().map(|p| p.folder.to_str().unwrap()).collect();
        assert_eq!(folders, ["/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/cpu,cpuacct"]);
        assert_eq!(found.limits(Controller::Cpu), Ok(Version::V1));
        assert!(found.limits(Controller::Pids).unwrap_err().contains("not to be seen"));
        assert!(find("", "").limits(Controller::Memory).unwrap_err().contains("mounted"));
        assert!(find("nonsense - \n - cgroup", "0:\n:::").all.is_empty());
        assert!(find(mounts, "4:memory:/docker/ab/../..\n").all.is_empty());
    }

    /// A folder stands in for the hierarchy: what the kernel answers is not tried by this.
    #[test]
    fn version_2_is_beside_the_proxys_own_with_what_is_handed_on() {
        let top = tempfile::tempdir().unwrap();
        let slice = top.path().join("user.slice");
        fs::create_dir_all(slice.join("proxy.scope")).unwrap();
        fs::write(slice.join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
        let mount = format!("30 24 0:26 / {} rw - cgroup2 cgroup2 rw", top.path().display());
        let found = find(&mount, "0::/user.slice/proxy.scope\n");
        assert_eq!(found.all[0].folder, slice);
        assert_eq!(found.limits(Controller::Memory), Ok(Version::V2));
        // At the top there is nothing beside it; and what is not handed on is missing.
        assert!(find(&mount, "0::/\n").all.is_empty());
        fs::write(top.path().join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
        assert_eq!(find(&mount, "0::/\n").all[0].folder, top.path());
        fs::remove_file(slice.join("cgroup.subtree_control")).unwrap();
        fs::create_dir(slice.join("cgroup.subtree_control")).unwrap();
        let found = find(&mount, "0::/user.slice/proxy.scope\n");
        assert!(
            found.all.is_empty() && found.limits(Controller::Cpu).unwrap_err().contains("hand")
        );
    }

    #[test]
    fn what_is_written() {
        let resources = Resources { memory_mib: 64, cpus: 0.5, pids: 16, ..Resources::default() };
        let memory = (64u64 << 20).to_string();
        assert_eq!(
            settings(&parent(Version::V2, &Controller::ALL), &resources),
            [
                ("memory.max", memory.clone()),
                ("memory.swap.max", "0".into()),
                ("memory.oom.group", "1".into()),
                ("pids.max", "18".into()),
                ("cpu.max", "50000 100000".into()),
            ]
        );
        assert_eq!(
            settings(&parent(Version::V1, &[Controller::Memory, Controller::Cpu]), &resources),
            [
                ("memory.limit_in_bytes", memory.clone()),
                ("memory.memsw.limit_in_bytes", memory),
                ("cpu.cfs_period_us", "100000".into()),
                ("cpu.cfs_quota_us", "50000".into()),
            ]
        );
    }

    #[test]
    fn groups_of_proxies_that_are_gone_are_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let own = name();
        let dead = Lease::current().to_string().replace(' ', "_");
        // The number of this process, at another time.
        let (rest, _) = dead.rsplit_once('_').unwrap();
        let dead = format!("{NAME}{rest}_1_0");
        for name in [own.as_str(), &dead, "portcullis_nonsense", "other"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        sweep(folder.path());
        assert!(!folder.path().join(&dead).exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        // Wherever it is.
        let below = folder.path().join("other").join(&dead);
        fs::create_dir(&below).unwrap();
        assert_eq!(left_below(folder.path().to_owned()), std::slice::from_ref(&below));
        if geteuid().is_root() {
            // Another user's, by whatever name.
            std::os::unix::fs::chown(&below, Some(65534), None).unwrap();
            assert_eq!(left_below(folder.path().to_owned()), Vec::<PathBuf>::new());
            sweep(&folder.path().join("other"));
            assert!(below.exists());
        }
        let end = Instant::now();
        assert_eq!(remove_group(&below, end), Ok(()));
        assert!(!below.exists() && folder.path().join(&own).exists());
        assert_eq!(remove_group(&below, end), Ok(()));
    }
}
