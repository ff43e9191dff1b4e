//! Search for servers in the added catalogs. Their copies are on this machine, so it needs no
//! network.

use portcullis_catalog::{Entry, ParsedFile, Run, brief};
use portcullis_protocol::names::nearest;

/// A catalog, with its local name and its servers.
pub type Catalog = (String, ParsedFile);

/// A server of a catalog.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    pub catalog: &'a str,
    pub entry: &'a Entry,
}

/// The servers whose name or description contains all words, in any case.
#[must_use]
pub fn matching<'a>(catalogs: &'a [Catalog], words: &[String]) -> Vec<Found<'a>> {
    let words: Vec<String> = words.iter().map(|word| word.to_lowercase()).collect();
    let matches = |found: &Found<'_>| {
        let mut text = found.entry.name.to_lowercase();
        if let Ok(server) = &found.entry.server {
            for part in [&server.title, &server.description].into_iter().flatten() {
                text.push(' ');
                text.push_str(&part.to_lowercase());
            }
        }
        words.iter().all(|word| text.contains(word))
    };
    all(catalogs).filter(matches).collect()
}

/// The only server with that name, or with `CATALOG/NAME`.
///
/// # Errors
/// No catalog, or several catalogs, have such a server.
pub fn named<'a>(catalogs: &'a [Catalog], name: &str) -> anyhow::Result<Found<'a>> {
    let in_catalog = |found: &Found<'_>| {
        let rest = name.strip_prefix(found.catalog).and_then(|rest| rest.strip_prefix('/'));
        rest == Some(&found.entry.name)
    };
    // A name of a registry is `PUBLISHER/NAME`.
    let last = |found: &Found<'_>| found.entry.name.rsplit('/').next() == Some(name);
    let exactly = |found: &Found<'_>| found.entry.name == name || in_catalog(found);
    let mut found: Vec<Found<'a>> = all(catalogs).filter(exactly).collect();
    if found.is_empty() {
        found = all(catalogs).filter(last).collect();
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] if catalogs.is_empty() => anyhow::bail!(
            "no catalog is installed to find `{}` in: add one with `catalog add` or `catalog pull`, or name the \
             server itself: `add -- COMMAND`, `add image IMAGE`, `add https://…`",
            brief(name)
        ),
        [] => {
            let names = all(catalogs).map(|found| found.entry.name.as_str());
            let near = nearest(name, names);
            let near =
                near.first().map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            anyhow::bail!(
                "no catalog has a server `{}`{near}; `portcullis server search` lists all",
                brief(name)
            )
        }
        several => {
            let several: Vec<String> = several
                .iter()
                .map(|found| format!("`{}/{}`", found.catalog, found.entry.name))
                .collect();
            anyhow::bail!(
                "several servers are called `{}`: name one of {}",
                brief(name),
                several.join(", ")
            )
        }
    }
}

/// How a server runs, in one word: its image, its program or its URL.
#[must_use]
pub fn runs_as(entry: &Entry) -> &str {
    match entry.server.as_ref().map(|server| &server.run) {
        Ok(Run::Image { image, .. }) => &image.name,
        Ok(Run::Command { program, .. }) => program,
        Ok(Run::Remote { url, .. }) => url,
        Err(_) => "-",
    }
}

/// Title of a server, or the first problem of its description.
#[must_use]
pub fn about(entry: &Entry) -> String {
    let text = match &entry.server {
        Ok(server) => server.title.as_ref().or(server.description.as_ref()).map(String::as_str),
        Err(problems) => problems.first().map(|problem| problem.text.as_str()),
    };
    text.unwrap_or_default().chars().take(80).collect()
}

fn all(catalogs: &[Catalog]) -> impl Iterator<Item = Found<'_>> {
    catalogs
        .iter()
        .flat_map(|(catalog, file)| file.servers.iter().map(|entry| Found { catalog, entry }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(name: &str, servers: &[&str]) -> Catalog {
        let servers: Vec<_> = servers
            .iter()
            .map(|name| {
                serde_json::json!({
                    "name": name, "version": "1", "description": format!("Finds {name}"),
                    "remotes": [{ "type": "sse", "url": "https://a.example/sse" }],
                })
            })
            .collect();
        let text = serde_json::json!({ "servers": servers }).to_string();
        (name.to_owned(), portcullis_catalog::read(&text, &Default::default()).unwrap())
    }

    #[test]
    fn server_is_found_by_its_name_or_the_last_part_of_it() {
        let catalogs = [catalog("one", &["a.b/time", "a.b/fetch"]), catalog("two", &["c.d/fetch"])];
        for (name, catalog, server) in [
            ("time", "one", "a.b/time"),
            ("a.b/fetch", "one", "a.b/fetch"),
            ("two/c.d/fetch", "two", "c.d/fetch"),
        ] {
            let found = named(&catalogs, name).unwrap();
            assert_eq!((found.catalog, &*found.entry.name), (catalog, server));
        }
        for (name, why) in [
            ("fetch", "`one/a.b/fetch`, `two/c.d/fetch`"),
            ("a.b/tim", "did you mean `a.b/time`?"),
            ("three/time", "no catalog has"),
        ] {
            let error = named(&catalogs, name).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(named(&[], "time").unwrap_err().to_string().contains("catalog pull"));
    }

    #[test]
    fn search_finds_all_words_in_any_case() {
        let catalogs = [catalog("one", &["a.b/time", "a.b/fetch"])];
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(matching(&catalogs, &words("FINDS")).len(), 2);
        assert_eq!(matching(&catalogs, &words("finds fetch")).len(), 1);
        assert!(matching(&catalogs, &words("fetch time")).is_empty());
        assert_eq!(matching(&catalogs, &[]).len(), 2);
    }
}
