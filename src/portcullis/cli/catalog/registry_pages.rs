//! Pages of a registry: a response with servers names the next page by a cursor.

use std::collections::HashSet;

use anyhow::bail;
use serde::Deserialize;
use serde_json::value::RawValue;
use url::Url;

/// Maximum number of pages of one registry.
const MAX_PAGES: usize = 1000;

/// One page. The text of each server is kept as it is.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    servers: Vec<&'a RawValue>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
struct Metadata {
    /// `next_cursor` in the first version of the protocol.
    #[serde(rename = "nextCursor", alias = "next_cursor")]
    next: Option<String>,
}

/// The pages that were read so far.
#[derive(Debug, Default)]
pub(super) struct Pages {
    servers: String,
    cursors: HashSet<String>,
}

impl Pages {
    /// Adds the response of a URL. Returns the URL of the next page, if there is one.
    ///
    /// # Errors
    /// A page repeats a cursor, is no page though another led to it, or there are too many.
    pub fn add(&mut self, url: &Url, text: &str) -> anyhow::Result<Option<Url>> {
        let page = match serde_json::from_str::<Page<'_>>(text) {
            Ok(page) => page,
            // Another format, which has one page.
            Err(_) if self.cursors.is_empty() => return Ok(None),
            Err(error) => bail!("the page {url} of the registry has no list of servers: {error}"),
        };
        for server in page.servers {
            let separator = if self.servers.is_empty() { "" } else { ",\n" };
            self.servers.push_str(separator);
            self.servers.push_str(server.get());
        }
        let Some(cursor) = page.metadata.next.filter(|cursor| !cursor.is_empty()) else {
            return Ok(None);
        };
        if self.cursors.len() >= MAX_PAGES {
            bail!("the registry {url} has more than {MAX_PAGES} pages");
        }
        if !self.cursors.insert(cursor.clone()) {
            bail!("the registry {url} repeats a cursor, so its list has no end");
        }
        let others: Vec<_> = url
            .query_pairs()
            .filter(|(name, _)| name != "cursor")
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        let mut next = url.clone();
        next.query_pairs_mut().clear().extend_pairs(others).append_pair("cursor", &cursor);
        Ok(Some(next))
    }

    /// Bytes of all servers so far.
    pub fn bytes(&self) -> usize {
        self.servers.len()
    }

    /// All servers as one response; `None` if there was only one page.
    pub fn joined(self) -> Option<String> {
        (!self.cursors.is_empty()).then(|| format!("{{\"servers\":[{}]}}\n", self.servers))
    }
}
