//! Where paths lead, and how folders stand to each other: by what the file system knows them by, and
//! not by what they are called.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

/// Links that are followed on one way: as many as the kernel follows.
const LINKS: usize = 40;

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedPath {
    /// The links that are followed, and the folders that `..` leaves, in their order: whoever can put
    /// another there leads elsewhere.
    pub turns: Vec<PathBuf>,
    /// Where it ends, without links; something need not be there.
    pub end: PathBuf,
}

impl ResolvedPath {
    /// The way of an absolute path.
    pub fn of(path: &Path) -> Self {
        let (mut turns, mut links) = (Vec::new(), 0);
        let mut at = PathBuf::from("/");
        let parts = |path: &Path| {
            let parts = path.components().rev().map(|part| part.as_os_str().to_owned());
            parts.collect::<Vec<_>>()
        };
        let mut left = parts(path);
        while let Some(part) = left.pop() {
            match Path::new(&part).components().next() {
                Some(Component::RootDir) => at = PathBuf::from("/"),
                Some(Component::ParentDir) => {
                    turns.push(at.clone());
                    at.pop();
                }
                Some(Component::Normal(name)) => {
                    let next = at.join(name);
                    match fs::read_link(&next) {
                        Ok(target) if links < LINKS => {
                            links += 1;
                            turns.push(next);
                            left.extend(parts(&target));
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

/// How a source stands to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overlap {
    At,
    Within,
    Above,
}

/// A path without links, with all that is above it, each with what the file system knows it by: a
/// folder may be mounted at two places, and be found by names that differ in case alone.
pub(crate) struct PathChain(Vec<(PathBuf, Option<(u64, u64)>)>);

impl PathChain {
    pub(crate) fn of(path: &Path) -> Self {
        let known = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        Self(path.ancestors().map(|path| (path.to_owned(), known(path))).collect())
    }

    /// How this one stands to what an absolute path leads to. One that has a link, or what `..`
    /// leaves, on the way there is above it.
    pub(crate) fn meets(&self, place: &Path) -> Option<Overlap> {
        let ResolvedPath { turns, end } = ResolvedPath::of(place);
        let holds = |turn: &PathBuf| {
            let folder = turn.parent().and_then(|folder| self.stands_to(&Self::of(folder)));
            matches!(folder, Some(Overlap::At | Overlap::Above))
        };
        let met = self.stands_to(&Self::of(&end));
        met.or_else(|| turns.iter().any(holds).then_some(Overlap::Above))
    }

    fn stands_to(&self, place: &Self) -> Option<Overlap> {
        let same = |(one, known): &(PathBuf, Option<_>), (other, too): &(PathBuf, Option<_>)| {
            one == other || (known.is_some() && known == too)
        };
        let (source, above_source) = self.0.split_first()?;
        let (place, above_place) = place.0.split_first()?;
        if same(source, place) {
            Some(Overlap::At)
        } else if above_source.iter().any(|above| same(above, place)) {
            Some(Overlap::Within)
        } else if above_place.iter().any(|above| same(above, source)) {
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
    fn a_folder_is_known_by_what_it_is_whatever_it_is_called() {
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
    fn ways_end_where_their_links_lead_whether_something_is_there_or_not() {
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
            // Above what the link leads to, not above the link.
            ("link/../x", &["link", "real/deep"], "real/x"),
            ("none/../link/./y", &["none", "link"], "real/deep/y"),
            ("dangling/token", &["dangling", "link"], "real/deep/absent/token"),
        ] {
            let turns = turns.iter().map(|name| at(name)).collect();
            assert_eq!(ResolvedPath::of(&at(path)), ResolvedPath { turns, end: at(end) }, "{path}");
        }
        let round = ResolvedPath::of(&at("round/more"));
        assert_eq!((round.turns.len(), round.end), (LINKS, at("round/more")));
    }
}
