//! Resolves paths, and compares folders by their identity in the file system instead of by name.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

/// Limit of links on one path, equal to the kernel's.
const MAX_LINKS: usize = 40;

/// A resolved path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedPath {
    /// Links that were followed, and folders that `..` left, in order. A process that can replace
    /// one changes the result.
    pub turns: Vec<PathBuf>,
    /// End of the path, without links. It need not exist.
    pub end: PathBuf,
}

impl ResolvedPath {
    /// Resolves an absolute path.
    pub fn of(path: &Path) -> Self {
        let (mut turns, mut links) = (Vec::new(), 0);
        let mut at = PathBuf::from("/");
        let parts = |path: &Path| {
            let parts = path.components().rev().map(|part| part.as_os_str().to_owned());
            parts.collect::<Vec<_>>()
        };
        let mut pending = parts(path);
        while let Some(part) = pending.pop() {
            match Path::new(&part).components().next() {
                Some(Component::RootDir) => at = PathBuf::from("/"),
                Some(Component::ParentDir) => {
                    turns.push(at.clone());
                    at.pop();
                }
                Some(Component::Normal(name)) => {
                    let next = at.join(name);
                    match fs::read_link(&next) {
                        Ok(target) if links < MAX_LINKS => {
                            links += 1;
                            turns.push(next);
                            pending.extend(parts(&target));
                        }
                        _ => at = next,
                    }
                }
                _ => {}
            }
        }
        Self { turns, end: at }
    }
}

/// Relation of a source to another path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overlap {
    At,
    Within,
    Above,
}

/// Path without links and all folders above it, each with its identity in the file system: a folder
/// may be mounted at two paths, and have names that differ only in case.
pub(crate) struct PathChain(Vec<(PathBuf, Option<(u64, u64)>)>);

impl PathChain {
    pub(crate) fn of(path: &Path) -> Self {
        let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        Self(path.ancestors().map(|path| (path.to_owned(), identity(path))).collect())
    }

    /// Relation of this path to the target of an absolute path. A path that contains a link, or a
    /// folder that `..` leaves, on the way there is above it.
    pub(crate) fn meets(&self, target: &Path) -> Option<Overlap> {
        let ResolvedPath { turns, end } = ResolvedPath::of(target);
        let holds = |turn: &PathBuf| {
            let folder = turn.parent().and_then(|folder| self.overlap(&Self::of(folder)));
            matches!(folder, Some(Overlap::At | Overlap::Above))
        };
        let met = self.overlap(&Self::of(&end));
        met.or_else(|| turns.iter().any(holds).then_some(Overlap::Above))
    }

    fn overlap(&self, target: &Self) -> Option<Overlap> {
        let same = |(one, identity): &(PathBuf, Option<_>), (other, too): &(PathBuf, Option<_>)| {
            one == other || (identity.is_some() && identity == too)
        };
        let (source, above_source) = self.0.split_first()?;
        let (target, above_target) = target.0.split_first()?;
        if same(source, target) {
            Some(Overlap::At)
        } else if above_source.iter().any(|above| same(above, target)) {
            Some(Overlap::Within)
        } else if above_target.iter().any(|above| same(above, source)) {
            Some(Overlap::Above)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn folder_is_recognized_under_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(folder.path()).unwrap();
        fs::write(folder.join("key"), "").unwrap();
        fs::hard_link(folder.join("key"), folder.join("other")).unwrap();
        let chain = PathChain::of(&folder.join("other"));
        assert_eq!(chain.meets(&folder.join("key")), Some(Overlap::At));
        assert_eq!(chain.meets(&folder), Some(Overlap::Within));
        assert_eq!(chain.meets(&folder.join("absent/key")), None);
        assert_eq!(PathChain::of(&folder).meets(&folder.join("absent/key")), Some(Overlap::Above));
    }

    #[test]
    fn links_are_followed_also_to_missing_targets() {
        let folder = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(folder.path()).unwrap();
        let at = |name: &str| folder.join(name);
        fs::create_dir_all(at("real/deep")).unwrap();
        symlink("real/deep", at("link")).unwrap();
        symlink(at("link/absent"), at("dangling")).unwrap();
        symlink("round", at("round")).unwrap();
        for (path, turns, end) in [
            ("real/deep", &[][..], "real/deep"),
            ("link", &["link"], "real/deep"),
            // Above the link's target, not above the link.
            ("link/../x", &["link", "real/deep"], "real/x"),
            ("none/../link/./y", &["none", "link"], "real/deep/y"),
            ("dangling/token", &["dangling", "link"], "real/deep/absent/token"),
        ] {
            let turns = turns.iter().map(|name| at(name)).collect();
            assert_eq!(ResolvedPath::of(&at(path)), ResolvedPath { turns, end: at(end) }, "{path}");
        }
        let round = ResolvedPath::of(&at("round/more"));
        assert_eq!((round.turns.len(), round.end), (MAX_LINKS, at("round/more")));
    }
}
