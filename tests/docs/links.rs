//! Links: files of the tree, headings of pages.

use std::path::Path;

use crate::pages::{Page, root};

/// The kind of a link, and what is wrong with it. Hosts elsewhere are not asked.
pub fn check(page: &Page, pages: &[Page], link: &str) -> (&'static str, Result<(), String>) {
    if link.contains("://") {
        let outcome = url::Url::parse(link).map(drop).map_err(|error| error.to_string());
        return ("links elsewhere (their form alone)", outcome);
    }
    ("links within the tree", within(page, pages, link))
}

fn within(page: &Page, pages: &[Page], link: &str) -> Result<(), String> {
    let (file, anchor) = link.split_once('#').map_or((link, None), |(f, a)| (f, Some(a)));
    let path = match file {
        "" => page.path.clone(),
        _ => {
            let folder = Path::new(&page.path).parent().unwrap_or(Path::new(""));
            let path = path_clean::clean(folder.join(file));
            path.to_str().unwrap_or_default().to_owned()
        }
    };
    if path.starts_with("..") || !root().join(&path).exists() {
        return Err(format!("there is no {path}"));
    }
    let Some(anchor) = anchor else { return Ok(()) };
    let target = pages.iter().find(|page| page.path == path);
    let target = target.ok_or_else(|| format!("{path} is not a page, so it has no headings"))?;
    match target.anchors.contains(anchor) {
        true => Ok(()),
        false => Err(format!("{path} has no heading `{anchor}`: {:?}", target.anchors)),
    }
}
