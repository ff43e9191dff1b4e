//! Control groups: the kernel's limits on memory, processes and processor time of a whole process
//! tree, where the proxy may create some.
//!
//! - Version 1: a group within the proxy's own, for each controller.
//! - Version 2 forbids a group with processes to delegate controllers. If systemd delegated the
//!   proxy's own group (`Delegate=yes`), the proxy moves into a group within it and creates the
//!   others beside that one.
//! - Version 2 without delegation: groups beside the proxy's own, if the proxy runs as root or in
//!   an ordinary user's manager. systemd may remove a controller there at any time.
//! - Without control groups, the sandbox relies on resource limits, and on its first process, which
//!   checks the tree.

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

/// Prefix of the names of Portcullis's groups.
const NAME_PREFIX: &str = "portcullis_";
/// Period of processor time in microseconds.
const CPU_PERIOD_US: u32 = 100_000;
/// Interval between checks for memory exhaustion.
const OOM_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Number of the launcher's own processes.
const LAUNCHER_PROCESSES: u32 = 2;
/// Group within a delegated one for the proxy itself.
const PROXY_GROUP: &str = "proxy";

/// Resource that a group can limit.
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

/// Folder in which groups can be created.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parent {
    folder: PathBuf,
    version: Version,
    controllers: Vec<Controller>,
}

impl Parent {
    /// Delegates the controllers of this group. Repeated because systemd removes a controller from
    /// its slices when the last unit that requested it ends.
    fn delegate_controllers(&self) {
        if self.version == Version::V2 {
            delegate_controllers(&self.folder, &self.controllers);
        }
    }
}

/// Folders in which this process can create groups on this machine.
#[derive(Debug, Default)]
pub(super) struct CgroupParents {
    all: Vec<Parent>,
    /// Unavailable controllers, with the reasons.
    missing: BTreeMap<Controller, String>,
}

/// What this machine supports. Detected once: a feature that was available then must be available
/// at every start. The proxy may move into another group meanwhile.
pub(super) fn parents() -> &'static CgroupParents {
    static FOUND: LazyLock<CgroupParents> = LazyLock::new(|| {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        let found = find(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        found.tried()
    });
    &FOUND
}

impl CgroupParents {
    /// Version of the groups that limit this resource, or the reason why none does.
    pub(super) fn limits(&self, controller: Controller) -> Result<Version, &str> {
        let parent = self.all.iter().find(|parent| parent.controllers.contains(&controller));
        match parent {
            Some(parent) => Ok(parent.version),
            None => Err(self.missing.get(&controller).map_or("none is mounted", String::as_str)),
        }
    }

    /// Removes folders in which no group can be created, and groups that earlier proxies left.
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

    /// Creates the groups of one tree.
    ///
    /// # Errors
    /// If a group cannot be created now although that worked before.
    pub(super) fn make(&self, resources: &Resources) -> io::Result<Cgroup> {
        let name = name();
        let mut groups = Cgroup(Vec::new());
        for parent in &self.all {
            parent.delegate_controllers();
            let group = Group { folder: parent.folder.join(&name), parent: parent.clone() };
            group.make(resources)?;
            groups.0.push(group);
        }
        Ok(groups)
    }
}

/// Groups of one tree. Removed when this is dropped and the tree has ended.
#[derive(Debug)]
pub(super) struct Cgroup(Vec<Group>);

impl Cgroup {
    /// Folders by which a process enters the groups.
    pub(super) fn folders(&self) -> Vec<PathBuf> {
        self.0.iter().map(|group| group.folder.clone()).collect()
    }

    /// Whether these groups limit this resource.
    pub(super) fn limit(&self, controller: Controller) -> bool {
        self.0.iter().any(|group| group.parent.controllers.contains(&controller))
    }

    /// Waits until memory runs out, if the kernel does not end the whole group by itself.
    pub(super) async fn run_out_of_memory(&self) {
        let looked_at = |group: &Group| {
            group.parent.version == Version::V1
                && group.parent.controllers.contains(&Controller::Memory)
        };
        if !self.0.iter().any(looked_at) {
            std::future::pending::<()>().await;
        }
        while !self.ran_out_of_memory() {
            tokio::time::sleep(OOM_CHECK_INTERVAL).await;
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
            let file_path = self.folder.join(file);
            // Swap can be limited only if the kernel accounts for it.
            if !file.contains("sw") || file_path.exists() {
                fs::write(file_path, value)?;
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
        // The last process may still be exiting. The next proxy removes an empty group that
        // remains.
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

/// Files to write, in order.
fn settings(parent: &Parent, resources: &Resources) -> Vec<(&'static str, String)> {
    let memory = resources.memory_mib.saturating_mul(1 << 20).to_string();
    let pids = resources.pids.saturating_add(LAUNCHER_PROCESSES).to_string();
    // The kernel accepts no less than a millisecond.
    let quota = (resources.cpus * f64::from(CPU_PERIOD_US)).max(1000.0) as u64;
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
            vec![
                ("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
                ("cpu.cfs_quota_us", quota.to_string()),
            ]
        }
        (Controller::Cpu, Version::V2) => vec![("cpu.max", format!("{quota} {CPU_PERIOD_US}"))],
    };
    parent.controllers.iter().flat_map(of).collect()
}

/// Name of a group, with its owner and a number.
fn name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let owner = Lease::current().to_string().replace(' ', "_");
    format!("{NAME_PREFIX}{owner}_{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Removes the groups of proxies that have ended. A group that still has processes cannot be
/// removed.
fn sweep(folder: &Path) {
    let own = Lease::current();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_left(&entry, &own) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Whether a folder is a group of this user whose proxy has ended.
fn is_left(entry: &DirEntry, own: &Lease) -> bool {
    let name = entry.file_name();
    let owner = name.to_str().and_then(|name| name.strip_prefix(NAME_PREFIX)?.rsplit_once('_'));
    let owner = owner.and_then(|(owner, _)| owner.replace('_', " ").parse::<Lease>().ok());
    // Any user may give a group any name.
    owner.is_some_and(|owner| owner.gone(own))
        && entry.metadata().is_ok_and(|meta| meta.uid() == geteuid().as_raw())
}

/// Groups that ended proxies of this user left, anywhere in the hierarchies of this machine. A
/// proxy creates them near its own group, which may differ from that of this process.
pub fn groups_left() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mounts.lines().filter_map(Mounted::read);
    let hierarchies = mounts.filter(|mount| mount.kind.starts_with("cgroup"));
    let roots: BTreeSet<_> = hierarchies.map(|mount| PathBuf::from(mount.mount_point)).collect();
    let leftover: BTreeSet<_> = roots.into_iter().flat_map(left_below).collect();
    leftover.into_iter().collect()
}

fn left_below(root: PathBuf) -> Vec<PathBuf> {
    let own = Lease::current();
    let (mut leftover, mut folders) = (Vec::new(), vec![root]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            // A link is not a separate folder.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                match is_left(&entry, &own) {
                    true => leftover.push(entry.path()),
                    false => folders.push(entry.path()),
                }
            }
        }
    }
    leftover
}

/// Removes such a group. While it has processes, blocks until `end` at the latest: those of a
/// killed proxy take a moment to exit.
///
/// # Errors
/// Why it cannot be removed, with the processes that are still in it.
pub fn remove_group(group: &Path, end: Instant) -> Result<(), String> {
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                if Instant::now() >= end {
                    let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                    let pids: Vec<_> = pids.split_whitespace().collect();
                    return Err(format!("it still has processes: {}", pids.join(", ")));
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

/// Reads where the hierarchies are mounted, and the group of this process in each.
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
                    let why = "the proxy's own group is not visible from here";
                    found.missing.insert(controller, why.to_owned());
                }
            }
        }
    }
    let unified = mounts.iter().find(|mount| mount.kind == "cgroup2");
    let path = own.lines().find_map(|line| line.strip_prefix("0::"));
    if let (true, Some(mounted), Some(path)) = (found.all.is_empty(), unified, path) {
        found.unified(mounted.folder(path), mounted.mount_point);
    }
    found
}

impl CgroupParents {
    /// Folder beside the proxy's own group; at the top, or if the group is delegated, within it.
    fn unified(&mut self, own: Option<PathBuf>, top: &str) {
        let Some(own) = own else { return };
        let folder = match own.parent() {
            Some(_)
                if own != Path::new(top) && delegated(&own) && move_to_own_group(&own).is_ok() =>
            {
                own
            }
            Some(parent) if own != Path::new(top) => parent.to_owned(),
            _ => own,
        };
        let (controllers, missing) = delegate_controllers(&folder, &Controller::ALL);
        let why = format!("{} does not delegate it", folder.display());
        self.missing.extend(missing.into_iter().map(|one| (one, why.clone())));
        if !controllers.is_empty() {
            self.all.push(Parent { folder, version: Version::V2, controllers });
        }
    }
}

/// Makes a group delegate the wanted controllers. Returns those it delegates then, and those it
/// does not.
fn delegate_controllers(
    folder: &Path,
    wanted: &[Controller],
) -> (Vec<Controller>, Vec<Controller>) {
    let file = folder.join("cgroup.subtree_control");
    let listed = || fs::read_to_string(&file).unwrap_or_default();
    let has = |text: &str, one: Controller| text.split_whitespace().any(|w| w == one.name());
    let before = listed();
    for controller in wanted.iter().filter(|one| !has(&before, **one)) {
        // If this group cannot delegate it, continue without it.
        let _ = fs::write(&file, format!("+{}", controller.name()));
    }
    let after = listed();
    wanted.iter().copied().partition(|one| has(&after, *one))
}

/// Whether systemd marks a group as delegated.
fn delegated(group: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0; 8];
        rustix::fs::getxattr(group, *name, &mut value).is_ok_and(|length| value[..length] == *b"1")
    })
}

/// Moves the proxy into a group within its own. Fails if other processes are there, which the proxy
/// must not move.
fn move_to_own_group(own: &Path) -> io::Result<()> {
    let me = std::process::id().to_string();
    let inside = fs::read_to_string(own.join("cgroup.procs"))?;
    if inside.split_whitespace().any(|pid| pid != me) {
        return Err(io::Error::other("other processes are in it"));
    }
    let file_path = own.join(PROXY_GROUP);
    match fs::create_dir(&file_path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::write(file_path.join("cgroup.procs"), "0"),
    }
}

/// Line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
struct Mounted<'a> {
    /// Visible part of the hierarchy.
    root: &'a str,
    mount_point: &'a str,
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
            mount_point: before.next()?,
            kind: after.next()?,
            options: after.nth(1)?,
        })
    }

    /// Folder of a group in this hierarchy.
    fn folder(&self, path: &str) -> Option<PathBuf> {
        let rest = Path::new(path).strip_prefix(self.root).ok()?;
        let plain = !path.split('/').any(|part| part == "..");
        plain.then(|| match rest.as_os_str().is_empty() {
            true => PathBuf::from(self.mount_point),
            false => Path::new(self.mount_point).join(rest),
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
    fn version_1_folders_are_found_by_controller() {
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
        assert!(found.limits(Controller::Pids).unwrap_err().contains("not visible"));
        assert!(find("", "").limits(Controller::Memory).unwrap_err().contains("mounted"));
        assert!(find("nonsense - \n - cgroup", "0:\n:::").all.is_empty());
        assert!(find(mounts, "4:memory:/docker/ab/../..\n").all.is_empty());
    }

    /// A folder replaces the hierarchy. The kernel's answers are not tested here.
    #[test]
    fn version_2_folder_is_beside_the_proxys_own_with_delegated_controllers() {
        let top = tempfile::tempdir().unwrap();
        let slice = top.path().join("user.slice");
        fs::create_dir_all(slice.join("proxy.scope")).unwrap();
        fs::write(slice.join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
        let mount = format!("30 24 0:26 / {} rw - cgroup2 cgroup2 rw", top.path().display());
        let found = find(&mount, "0::/user.slice/proxy.scope\n");
        assert_eq!(found.all[0].folder, slice);
        assert_eq!(found.limits(Controller::Memory), Ok(Version::V2));
        // There is nothing beside the top; and a controller that is not delegated is missing.
        assert!(find(&mount, "0::/\n").all.is_empty());
        fs::write(top.path().join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
        assert_eq!(find(&mount, "0::/\n").all[0].folder, top.path());
        fs::remove_file(slice.join("cgroup.subtree_control")).unwrap();
        fs::create_dir(slice.join("cgroup.subtree_control")).unwrap();
        let found = find(&mount, "0::/user.slice/proxy.scope\n");
        assert!(
            found.all.is_empty() && found.limits(Controller::Cpu).unwrap_err().contains("delegate")
        );
    }

    #[test]
    fn limits_are_written_in_each_version() {
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
    fn groups_of_ended_proxies_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let own = name();
        let dead = Lease::current().to_string().replace(' ', "_");
        // This process's number at another time.
        let (rest, _) = dead.rsplit_once('_').unwrap();
        let dead = format!("{NAME_PREFIX}{rest}_1_0");
        for name in [own.as_str(), &dead, "portcullis_nonsense", "other"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        sweep(folder.path());
        assert!(!folder.path().join(&dead).exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        // At any depth.
        let below = folder.path().join("other").join(&dead);
        fs::create_dir(&below).unwrap();
        assert_eq!(left_below(folder.path().to_owned()), std::slice::from_ref(&below));
        if geteuid().is_root() {
            // A group of another user, whatever its name.
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
