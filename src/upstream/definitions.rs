//! What a server offers: its tools, prompts, resources and templates, fetched once and kept until
//! the server says that they changed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    greeting::Greeting,
    link::{Call, Failure, Link, Reply},
};
use crate::{
    codec::{Object, era::own_meta},
    exchange::{Definition, Method, Payload},
    names::ServerName,
};

/// The kinds of thing that a server offers in lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    Tools,
    Prompts,
    Resources,
    Templates,
}

impl Offer {
    /// All kinds.
    pub const ALL: [Offer; 4] = [Self::Tools, Self::Prompts, Self::Resources, Self::Templates];

    /// The kind that a list method lists.
    pub fn of(method: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|offer| offer.method() == method)
    }

    /// The method that lists it.
    pub fn method(self) -> &'static str {
        match self {
            Self::Tools => Method::TOOLS_LIST,
            Self::Prompts => Method::PROMPTS_LIST,
            Self::Resources => Method::RESOURCES_LIST,
            Self::Templates => Method::TEMPLATES_LIST,
        }
    }

    /// The member of a list's result that holds the items.
    pub fn member(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources => "resources",
            Self::Templates => "resourceTemplates",
        }
    }

    /// The member of an item by which it is called.
    pub fn key(self) -> &'static str {
        match self {
            Self::Tools | Self::Prompts => "name",
            Self::Resources => "uri",
            Self::Templates => "uriTemplate",
        }
    }

    fn capability(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources | Self::Templates => "resources",
        }
    }
}

/// Items, in the server's order.
pub type Items = Arc<Vec<Arc<Definition>>>;

/// Items that one server may offer of a kind. One that offers more is cut off there.
const MOST_ITEMS: usize = 10_000;
/// How long who asks again for a list that was not to be had is told so without a new try.
const FAILED: Duration = Duration::from_secs(5);
/// Pages that one list may have.
const MOST_PAGES: usize = 1_000;
/// How long lists are kept: a server may not tell of changes.
const KEPT: Duration = Duration::from_secs(60);

/// The lists of one running server.
#[derive(Default)]
pub struct Definitions {
    slots: [Slot; 4],
    /// Counts the changes that the server told of, so that a list fetched across one is not kept.
    changes: AtomicU64,
}

#[derive(Default)]
struct Slot {
    kept: Mutex<Option<(Instant, Result<Items, Failure>)>>,
    fetching: tokio::sync::Mutex<()>,
}

impl Definitions {
    /// Forgets everything: the server said that a list changed.
    pub fn forget(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        for slot in &self.slots {
            *slot.kept.lock() = None;
        }
    }

    /// The items of a kind as they were last fetched, or why they could not be, where that is not
    /// long ago.
    pub fn kept(&self, offer: Offer) -> Option<Result<Items, Failure>> {
        self.slots[offer as usize].fresh()
    }

    /// The items of a kind: at most `bytes` bytes of lists, had within `deadline`. Who asks while
    /// they are fetched waits for that, and shares what becomes of it.
    ///
    /// # Errors
    /// A [`Failure`] where the server does not list them as the protocol has it, or did not a
    /// moment ago.
    pub async fn items(
        &self,
        offer: Offer,
        server: &ServerName,
        greeting: &Greeting,
        link: &dyn Link,
        bytes: usize,
        deadline: Duration,
    ) -> Result<Items, Failure> {
        if !greeting.offers(offer.capability()) {
            return Ok(Items::default());
        }
        let slot = &self.slots[offer as usize];
        if let Some(kept) = slot.fresh() {
            return kept;
        }
        let Ok(_one_at_a_time) = timeout(deadline, slot.fetching.lock()).await else {
            return Err(Failure::Timeout(deadline));
        };
        if let Some(kept) = slot.fresh() {
            return kept;
        }
        let changes = self.changes.load(Ordering::SeqCst);
        let fetched = timeout(deadline, fetch(offer, server, greeting, link, bytes, deadline))
            .await
            .unwrap_or(Err(Failure::Timeout(deadline)))
            .map(Items::new);
        if self.changes.load(Ordering::SeqCst) == changes {
            *slot.kept.lock() = Some((Instant::now(), fetched.clone()));
        }
        fetched
    }
}

impl Slot {
    fn fresh(&self) -> Option<Result<Items, Failure>> {
        let kept = self.kept.lock();
        let (since, result) = kept.as_ref()?;
        let limit = if result.is_ok() { KEPT } else { FAILED };
        (since.elapsed() < limit).then(|| result.clone())
    }
}

async fn fetch(
    offer: Offer,
    server: &ServerName,
    greeting: &Greeting,
    link: &dyn Link,
    bytes: usize,
    deadline: Duration,
) -> Result<Vec<Arc<Definition>>, Failure> {
    let mut items = Vec::new();
    let mut left = bytes;
    let mut cursor: Option<Value> = None;
    for _ in 0..MOST_PAGES {
        let mut params = json!({});
        if greeting.revision.is_modern() {
            params["_meta"] = own_meta();
        }
        if let Some(cursor) = &cursor {
            params["cursor"] = cursor.clone();
        }
        let call = Call::own(offer.method(), Some(params.to_string().into()), deadline);
        let result = match link.call(call).await? {
            Reply::Result(result) => result,
            // A server may offer resources and know no templates.
            Reply::Error(_) if offer == Offer::Templates => return Ok(items),
            Reply::Error(_) => {
                return Err(Failure::Misbehaved(format!("it refused `{}`", offer.method())));
            }
        };
        // Items are slices of their page, which stays in memory with them.
        let Some(rest) = left.checked_sub(result.len()) else {
            tracing::warn!(%server, list = offer.method(), "the server's list is cut off at {bytes} bytes");
            return Ok(items);
        };
        left = rest;
        let (page, next) = page(offer, server, result)?;
        items.extend(page);
        if items.len() >= MOST_ITEMS {
            tracing::warn!(%server, list = offer.method(), "the server's list is cut off at {MOST_ITEMS} items");
            items.truncate(MOST_ITEMS);
            return Ok(items);
        }
        match next {
            // The same cursor again would go round for ever.
            Some(next) if cursor.as_ref() != Some(&next) => cursor = Some(next),
            _ => return Ok(items),
        }
    }
    Ok(items)
}

type Page = (Vec<Arc<Definition>>, Option<Value>);

fn page(offer: Offer, server: &ServerName, result: Bytes) -> Result<Page, Failure> {
    let misbehaved =
        || Failure::Misbehaved(format!("its answer to `{}` is no list", offer.method()));
    let object = Object::parse(result).map_err(|_| misbehaved())?;
    let list = object.get(offer.member()).ok_or_else(misbehaved)?;
    let raws: Vec<&serde_json::value::RawValue> =
        serde_json::from_slice(&list).map_err(|_| misbehaved())?;
    let mut items = Vec::with_capacity(raws.len());
    for raw in raws {
        let raw = list.slice_ref(raw.get().as_bytes());
        let Some(name) = Object::parse(raw.clone()).ok().and_then(|item| item.string(offer.key()))
        else {
            tracing::warn!(%server, list = offer.method(), "an item without `{}` is left out", offer.key());
            continue;
        };
        items.push(Arc::new(Definition {
            server: server.clone(),
            name,
            definition: Payload::new(raw),
        }));
    }
    let next = object
        .get("nextCursor")
        .and_then(|cursor| serde_json::from_slice::<Value>(&cursor).ok())
        .filter(Value::is_string);
    Ok((items, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_keep_the_text_of_items() {
        let text = r#"{"tools":[{"name":"a","x":1.0},{"noname":1},{"name":"b"}],"nextCursor":""}"#;
        let server = "s".parse().unwrap();
        let (items, next) =
            page(Offer::Tools, &server, Bytes::from_static(text.as_bytes())).unwrap();
        assert_eq!(items.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(items[0].definition.raw(), r#"{"name":"a","x":1.0}"#);
        assert_eq!(next, Some(Value::from("")));
        for bad in ["[]", "{}", r#"{"tools":{}}"#] {
            assert!(page(Offer::Tools, &server, Bytes::copy_from_slice(bad.as_bytes())).is_err());
        }
    }
    /// A server that lists for ever, `page` bytes at a time, or never answers.
    struct Lister {
        page: Option<usize>,
        asked: AtomicU64,
    }

    #[async_trait::async_trait]
    impl Link for Lister {
        async fn call(&self, _: Call) -> Result<Reply, Failure> {
            let asked = self.asked.fetch_add(1, Ordering::SeqCst);
            let Some(bytes) = self.page else { return std::future::pending().await };
            let item = json!({ "name": asked.to_string(), "x": "x".repeat(bytes) });
            let page = json!({ "tools": [item], "nextCursor": asked.to_string() });
            Ok(Reply::Result(page.to_string().into()))
        }

        async fn notify(&self, _: &str, _: Bytes) -> Result<(), Failure> {
            Ok(())
        }

        fn agreed(&self, _: crate::exchange::Revision) {}

        fn dead(&self) -> Option<String> {
            None
        }
    }

    fn greeting() -> Greeting {
        Greeting {
            revision: crate::exchange::Revision::LATEST_LEGACY,
            words: Payload::new(Bytes::from_static(br#"{"capabilities":{"tools":{}}}"#)),
        }
    }

    #[tokio::test]
    async fn a_list_without_end_is_cut_off() {
        let link = Lister { page: Some(1_000), asked: AtomicU64::new(0) };
        let (definitions, server) = (Definitions::default(), "s".parse().unwrap());
        let items = definitions
            .items(Offer::Tools, &server, &greeting(), &link, 10_000, Duration::from_secs(9))
            .await
            .unwrap();
        assert_eq!(items.len(), 9);
    }

    #[tokio::test]
    async fn all_who_wait_for_a_list_share_its_failure() {
        let link = Lister { page: None, asked: AtomicU64::new(0) };
        let (definitions, server) = (Definitions::default(), "s".parse().unwrap());
        let (greeting, deadline) = (greeting(), Duration::from_millis(50));
        let waiting = (0..20)
            .map(|_| definitions.items(Offer::Tools, &server, &greeting, &link, 1, deadline));
        for result in futures_util::future::join_all(waiting).await {
            assert_eq!(result.unwrap_err(), Failure::Timeout(deadline));
        }
        let again = definitions.items(Offer::Tools, &server, &greeting, &link, 1, deadline).await;
        assert_eq!(again.unwrap_err(), Failure::Timeout(deadline));
        assert_eq!(link.asked.load(Ordering::SeqCst), 1);
    }
}
