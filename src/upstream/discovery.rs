//! Lists of a server: its tools, prompts, resources and templates. They are fetched once and kept
//! until the server reports a change.

use std::{
    collections::HashMap,
    ops::Deref,
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
    call_error::CallError,
    handshake::Handshake,
    transport::{Call, Reply, ServerTransport},
};
use portcullis_chain::{Party, Weight, grow, in_turns};
use portcullis_protocol::{
    codec::{Object, era::own_meta, headers::Repeated, may_have},
    exchange::{Definition, Method, Payload},
    names::ServerName,
};

/// Kind of a server's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListKind {
    Tools,
    Prompts,
    Resources,
    Templates,
}

impl ListKind {
    /// All kinds.
    pub const ALL: [ListKind; 4] = [Self::Tools, Self::Prompts, Self::Resources, Self::Templates];

    /// The kind that a list method lists.
    pub fn of(method: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|offer| offer.method() == method)
    }

    /// The list method of this kind.
    pub fn method(self) -> &'static str {
        match self {
            Self::Tools => Method::TOOLS_LIST,
            Self::Prompts => Method::PROMPTS_LIST,
            Self::Resources => Method::RESOURCES_LIST,
            Self::Templates => Method::TEMPLATES_LIST,
        }
    }

    /// The notification of a change of this list.
    pub fn changed(self) -> &'static str {
        match self {
            Self::Tools => "notifications/tools/list_changed",
            Self::Prompts => "notifications/prompts/list_changed",
            Self::Resources | Self::Templates => "notifications/resources/list_changed",
        }
    }

    /// The member of a list result that contains the items.
    pub fn member(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources => "resources",
            Self::Templates => "resourceTemplates",
        }
    }

    /// The member of an item with its name or URI.
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

/// A fetched list.
pub type Items = Arc<List>;

/// Items in the server's order, each name once.
#[derive(Debug, Default)]
pub struct List {
    items: Vec<Arc<Definition>>,
    notices: Notices,
    members: Option<ListMembers>,
}

/// Members of a list result beside its items and cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListMembers {
    /// An object with those of the first page: `_meta`, `ttlMs`, `cacheScope` and members that MCP
    /// does not define. `ttlMs` is the least of all pages.
    pub text: Bytes,
    /// Whether the server is a modern one.
    pub modern: bool,
    /// Time in milliseconds for which the list counts as fresh; 0 if the server does not say it.
    pub ttl_ms: u64,
}

impl List {
    /// Notices about items that were left out.
    pub fn notices(&self) -> &Notices {
        &self.notices
    }

    /// The members beside the items; `None` if the server has no such list.
    pub fn members(&self) -> Option<&ListMembers> {
        self.members.as_ref()
    }

    /// Whether both lists have the same items, byte for byte.
    pub fn is_same(&self, other: &Self) -> bool {
        let raw = |list: &Self| -> Vec<Bytes> {
            list.items.iter().map(|item| item.definition.raw().clone()).collect()
        };
        std::ptr::eq(self, other) || raw(self) == raw(other)
    }

    /// The items of one page of a list result.
    ///
    /// # Errors
    /// [`CallError::Misbehaved`] if `page` is not a list result.
    pub(super) fn of_page(
        server: &ServerName,
        offer: ListKind,
        modern: bool,
        page: Bytes,
    ) -> Result<Self, CallError> {
        let mut gathered = Collected { offer, modern, ..Collected::default() };
        gathered.page(server, page)?;
        Ok(gathered.list)
    }
}

impl Deref for List {
    type Target = [Arc<Definition>];

    fn deref(&self) -> &[Arc<Definition>] {
        &self.items
    }
}

impl FromIterator<Arc<Definition>> for List {
    fn from_iter<T: IntoIterator<Item = Arc<Definition>>>(items: T) -> Self {
        Self { items: items.into_iter().collect(), ..Self::default() }
    }
}

/// Notices for the operator about a server's list. Beyond a limit, they are only counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notices {
    texts: Vec<String>,
    more: usize,
}

impl Notices {
    /// Adds a notice about an item. Its name is text of the server, so it is escaped: it cannot
    /// forge a line or change a terminal's state.
    pub fn item(&mut self, name: &str, why: &str) {
        let shown: String = name.chars().take(SHOWN).flat_map(char::escape_default).collect();
        let more = if name.chars().nth(SHOWN).is_some() { "…" } else { "" };
        self.add(format!("`{shown}{more}` is left out: {why}"));
    }

    /// Adds a notice without text of the server.
    pub fn add(&mut self, notice: String) {
        if self.texts.len() < MOST_NOTICES {
            self.texts.push(notice);
        } else {
            self.more += 1;
        }
    }

    /// The notices. If some were only counted, the last one has their number.
    pub fn iter(&self) -> impl Iterator<Item = String> {
        let more = (self.more > 0).then(|| format!("and {} more of the kind", self.more));
        self.texts.iter().cloned().chain(more)
    }
}

/// Members of a page.
const CURSOR: &str = "nextCursor";
const TTL: &str = "ttlMs";
/// Maximum number of notices of one list.
const MOST_NOTICES: usize = 16;
/// Maximum number of characters of an item's name in a notice.
const SHOWN: usize = 64;
/// Maximum number of items in one list. Longer lists are cut off.
const MOST_ITEMS: usize = 10_000;
/// Time for which a failure is returned without a new list request.
const FAILED: Duration = Duration::from_secs(5);
/// Maximum number of pages of one list.
const MOST_PAGES: usize = 1_000;
/// Time for which lists are kept, since some servers do not report changes.
const KEPT: Duration = Duration::from_secs(60);

/// Lists of one running instance.
#[derive(Default)]
pub struct Definitions {
    slots: [Slot; 4],
    /// Number of reported changes. A list that was fetched across a change is not kept.
    changes: AtomicU64,
}

#[derive(Default)]
struct Slot {
    cached: Mutex<Option<(Instant, Result<Items, CallError>)>>,
    fetching: tokio::sync::Mutex<()>,
}

impl Definitions {
    /// Drops all lists, because the server reported a change.
    pub fn forget(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        for slot in &self.slots {
            *slot.cached.lock() = None;
        }
    }

    /// The items that were fetched last, or the failure of that request. `None` if that is too
    /// long ago.
    pub fn fresh_list(&self, offer: ListKind) -> Option<Result<Items, CallError>> {
        self.slots[offer as usize].fresh()
    }

    /// The items of a kind, of at most `bytes` bytes, fetched within `deadline`. Concurrent callers
    /// share one request and its result.
    ///
    /// # Errors
    /// A [`CallError`] if the server returns no valid list, or failed to do so less than
    /// `FAILED` ago.
    pub async fn items(
        &self,
        offer: ListKind,
        server: &ServerName,
        handshake: &Handshake,
        link: &dyn ServerTransport,
        bytes: usize,
        deadline: Duration,
    ) -> Result<Items, CallError> {
        if !handshake.offers(offer.capability()) {
            return Ok(Items::default());
        }
        let slot = &self.slots[offer as usize];
        if let Some(fresh) = slot.fresh() {
            return fresh;
        }
        let Ok(_one_at_a_time) = timeout(deadline, slot.fetching.lock()).await else {
            return Err(CallError::Timeout(deadline));
        };
        if let Some(fresh) = slot.fresh() {
            return fresh;
        }
        let changes = self.changes.load(Ordering::SeqCst);
        let fetching =
            async { fetch(offer, server, handshake, link, bytes, deadline).await.map(Items::new) };
        let fetching = in_turns(Party::Server(server.clone()), Weight::NONE, fetching);
        let fetched =
            timeout(deadline, fetching).await.unwrap_or(Err(CallError::Timeout(deadline)));
        if let Ok(items) = &fetched
            && let count @ 1.. = items.notices.iter().count()
        {
            // The notices contain text of the server, which does not belong in the log.
            tracing::warn!(%server, list = offer.method(), count, "entries of the server's list left out");
        }
        if self.changes.load(Ordering::SeqCst) == changes {
            *slot.cached.lock() = Some((Instant::now(), fetched.clone()));
        }
        fetched
    }
}

impl Slot {
    fn fresh(&self) -> Option<Result<Items, CallError>> {
        let cached = self.cached.lock();
        let (since, result) = cached.as_ref()?;
        let limit = if result.is_ok() { KEPT } else { FAILED };
        (since.elapsed() < limit).then(|| result.clone())
    }
}

async fn fetch(
    offer: ListKind,
    server: &ServerName,
    handshake: &Handshake,
    link: &dyn ServerTransport,
    bytes: usize,
    deadline: Duration,
) -> Result<List, CallError> {
    let mut gathered =
        Collected { offer, modern: handshake.revision.is_modern(), ..Collected::default() };
    let mut remaining = bytes;
    let mut cursor: Option<Value> = None;
    for _ in 0..MOST_PAGES {
        let mut params = json!({});
        if gathered.modern {
            params["_meta"] = own_meta();
        }
        if let Some(cursor) = &cursor {
            params["cursor"] = cursor.clone();
        }
        let call = Call::own(offer.method(), Some(params.to_string().into()), deadline);
        let result = match link.call(call).await? {
            Reply::Result(result) => result,
            // A server can offer resources without templates.
            Reply::Error(_) if offer == ListKind::Templates => break,
            Reply::Error(_) => {
                return Err(CallError::Misbehaved(format!("it refused `{}`", offer.method())));
            }
        };
        // Items are slices of their page, which stays in memory with them.
        let Some(rest) = remaining.checked_sub(result.len()) else {
            gathered.list.notices.add(format!("the list is cut off at {bytes} bytes"));
            break;
        };
        remaining = rest;
        grow(Weight::of(&result)).await;
        let next = gathered.page(server, result)?;
        if gathered.list.items.len() > MOST_ITEMS {
            gathered.list.notices.add(format!("the list is cut off at {MOST_ITEMS} items"));
            gathered.list.items.truncate(MOST_ITEMS);
            break;
        }
        match next {
            // An empty cursor is a valid cursor. The same cursor again would repeat the page
            // forever.
            Some(next) if cursor.as_ref() != Some(&next) => cursor = Some(next),
            _ => break,
        }
    }
    Ok(gathered.list)
}

/// Items that were collected from the pages so far.
struct Collected {
    offer: ListKind,
    /// Whether the revision is 2026-07-28, where a tool with a bad `x-mcp-header` is invalid.
    modern: bool,
    list: List,
    /// Index of the item of each name.
    seen: HashMap<String, usize>,
}

impl Default for Collected {
    fn default() -> Self {
        Self { offer: ListKind::Tools, modern: false, list: List::default(), seen: HashMap::new() }
    }
}

impl Collected {
    /// Adds the items of a page. Returns the cursor of the next page.
    fn page(&mut self, server: &ServerName, result: Bytes) -> Result<Option<Value>, CallError> {
        let offer = self.offer;
        let misbehaved =
            || CallError::Misbehaved(format!("its answer to `{}` is not a list", offer.method()));
        let object = Object::parse(result).map_err(|_| misbehaved())?;
        let list = object.get(offer.member()).ok_or_else(misbehaved)?;
        self.members(&object);
        let raws: Vec<&serde_json::value::RawValue> =
            serde_json::from_slice(&list).map_err(|_| misbehaved())?;
        for raw in raws {
            let raw = list.slice_ref(raw.get().as_bytes());
            let name = Object::parse(raw.clone()).ok().and_then(|item| item.string(offer.key()));
            match name {
                Some(name) => self.item(server, name, raw),
                None => {
                    let notice = format!("an item without `{}` is left out", offer.key());
                    self.list.notices.add(notice);
                }
            }
        }
        Ok(object
            .get(CURSOR)
            .and_then(|cursor| serde_json::from_slice::<Value>(&cursor).ok())
            .filter(Value::is_string))
    }

    /// Keeps the members of the first page, with the least `ttlMs` of all.
    fn members(&mut self, page: &Object) {
        let ttl_ms: Option<u64> = page.get(TTL).and_then(|ttl| serde_json::from_slice(&ttl).ok());
        let ttl_ms = ttl_ms.filter(|_| self.modern).unwrap_or_default();
        match &mut self.list.members {
            None => {
                // A list cannot ask the client for input.
                let without = [self.offer.member(), CURSOR, "inputRequests", "requestState"];
                let text = page.with(&without.map(|member| (member, None)));
                self.list.members = Some(ListMembers { text, modern: self.modern, ttl_ms });
            }
            Some(first) if ttl_ms < first.ttl_ms => {
                first.ttl_ms = ttl_ms;
                if let Ok(object) = Object::parse(first.text.clone()) {
                    first.text = object.with(&[(TTL, Some(ttl_ms.to_string().as_bytes()))]);
                }
            }
            Some(_) => {}
        }
    }

    fn item(&mut self, server: &ServerName, name: String, raw: Bytes) {
        if let Some(&first) = self.seen.get(&name) {
            // A list that repeats itself has identical items again, which needs no notice.
            if self.list.items.get(first).is_some_and(|item| *item.definition.raw() != raw) {
                self.list.notices.item(&name, "the list has one of this name before it");
            }
            return;
        }
        let definition = Payload::new(raw);
        if self.modern
            && self.offer == ListKind::Tools
            && may_have(definition.raw(), "x-mcp-header")
            && let Some(schema) = definition.value().get("inputSchema")
            && let Err(why) = Repeated::of(schema)
        {
            self.list.notices.item(&name, why);
            return;
        }
        self.seen.insert(name.clone(), self.list.items.len());
        let server = server.clone();
        self.list.items.push(Arc::new(Definition::new(server, name, definition)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(modern: bool, pages: &[&'static str]) -> List {
        let mut gathered = Collected { modern, ..Collected::default() };
        for page in pages {
            let page = Bytes::from_static(page.as_bytes());
            gathered.page(&"s".parse().unwrap(), page).unwrap();
        }
        gathered.list
    }

    fn names(list: &List) -> Vec<&str> {
        list.iter().map(|item| item.name.as_str()).collect()
    }

    #[test]
    fn pages_keep_the_text_of_items() {
        let text = r#"{"tools":[{"name":"a","x":1.0},{"noname":1},{"name":"b"}],"nextCursor":""}"#;
        let server = "s".parse().unwrap();
        let mut gathered = Collected::default();
        let next = gathered.page(&server, Bytes::from_static(text.as_bytes())).unwrap();
        assert_eq!(names(&gathered.list), ["a", "b"]);
        assert_eq!(gathered.list[0].definition.raw(), r#"{"name":"a","x":1.0}"#);
        assert_eq!(next, Some(Value::from("")));
        for bad in ["[]", "{}", r#"{"tools":{}}"#] {
            let bad = Bytes::copy_from_slice(bad.as_bytes());
            assert!(Collected::default().page(&server, bad).is_err());
        }
    }

    #[test]
    fn members_beside_the_items_are_those_of_the_first_page() {
        let first = r#"{"_meta":{"a":1.0},"tools":[],"ttlMs":900,"x": 50.00,"nextCursor":"2"}"#;
        let second = r#"{"_meta":{"b":2},"tools":[{"name":"b"}],"ttlMs":70,"y":1}"#;
        let third = r#"{"tools":[],"ttlMs":800,"inputRequests":{},"requestState":""}"#;
        let members = |modern, pages: &[&'static str]| gathered(modern, pages).members.unwrap();
        let merged = members(true, &[first]);
        assert_eq!(merged.text, r#"{"_meta":{"a":1.0},"ttlMs":900,"x": 50.00}"#);
        assert_eq!((merged.modern, merged.ttl_ms), (true, 900));
        let merged = members(true, &[first, second, third]);
        assert_eq!(merged.text, r#"{"_meta":{"a":1.0},"ttlMs":70,"x": 50.00}"#);
        assert_eq!(merged.ttl_ms, 70);
        assert_eq!(members(true, &[third]).text, r#"{"ttlMs":800}"#);
        // Earlier revisions have no such member, so it means nothing there.
        let merged = members(false, &[first, second]);
        assert_eq!((merged.modern, merged.ttl_ms), (false, 0));
        assert!(may_have(&merged.text, "900"));
        for bad in [r#"{"tools":[],"ttlMs":-1}"#, r#"{"tools":[],"ttlMs":"1"}"#, r#"{"tools":[]}"#]
        {
            assert_eq!(members(true, &[bad]).ttl_ms, 0, "{bad}");
        }
        assert!(List::default().members().is_none());
    }

    #[test]
    fn first_item_of_a_name_counts() {
        let list = gathered(
            false,
            &[
                r#"{"tools":[{"name":"a","n":1},{"name":"b"},{"name":"a","n":2}]}"#,
                r#"{"tools":[{"name":"b"},{"name":"c"}]}"#,
            ],
        );
        assert_eq!(names(&list), ["a", "b", "c"]);
        assert_eq!(list[0].definition.raw(), r#"{"name":"a","n":1}"#);
        // Both definitions of `b` are identical.
        let notices: Vec<_> = list.notices().iter().collect();
        assert_eq!(notices, ["`a` is left out: the list has one of this name before it"]);
    }

    #[test]
    fn modern_tool_with_an_invalid_header_is_omitted() {
        let page = r#"{"tools":[
            {"name":"a\u001b[2J\n","inputSchema":{"properties":{"x":{"type":"number","x-mcp-header":"X"}}}},
            {"name":"b","inputSchema":{"properties":{"x":{"type":"string","x-mcp-header":"X"}}}}
        ]}"#;
        let list = gathered(true, &[page]);
        assert_eq!(names(&list), ["b"]);
        let notices: Vec<_> = list.notices().iter().collect();
        let why = "`x-mcp-header` is on a property that is not a string, integer or boolean";
        assert_eq!(notices, [format!(r"`a\u{{1b}}[2J\n` is left out: {why}")]);
        // In the legacy era, `x-mcp-header` has no meaning.
        assert_eq!(gathered(false, &[page]).len(), 2);
    }

    #[test]
    fn excess_notices_are_only_counted() {
        let mut notices = Notices::default();
        for number in 0..1_000 {
            notices.item(&format!("{number}{}", "é".repeat(1_000)), "why");
        }
        let notices: Vec<_> = notices.iter().collect();
        assert_eq!(notices.len(), MOST_NOTICES + 1);
        assert_eq!(notices.last().unwrap(), "and 984 more of the kind");
        assert!(notices.iter().all(|notice| notice.len() < 1_000));
    }

    /// A server whose list never ends, with pages of `page` bytes, or that never answers.
    struct ListFetcher {
        page: Option<usize>,
        requests: AtomicU64,
    }

    #[async_trait::async_trait]
    impl ServerTransport for ListFetcher {
        async fn call(&self, _: Call) -> Result<Reply, CallError> {
            let requests = self.requests.fetch_add(1, Ordering::SeqCst);
            let Some(bytes) = self.page else { return std::future::pending().await };
            let item = json!({ "name": requests.to_string(), "x": "x".repeat(bytes) });
            let page = json!({ "tools": [item], "nextCursor": requests.to_string() });
            Ok(Reply::Result(page.to_string().into()))
        }

        async fn notify(&self, _: &str, _: Bytes) -> Result<(), CallError> {
            Ok(())
        }

        fn agreed(&self, _: portcullis_protocol::exchange::Revision) {}

        fn dead(&self) -> Option<String> {
            None
        }
    }

    fn handshake() -> Handshake {
        Handshake {
            revision: portcullis_protocol::exchange::Revision::LATEST_LEGACY,
            words: Payload::new(Bytes::from_static(br#"{"capabilities":{"tools":{}}}"#)),
        }
    }

    #[tokio::test]
    async fn endless_list_is_cut_off() {
        let link = ListFetcher { page: Some(1_000), requests: AtomicU64::new(0) };
        let (definitions, server) = (Definitions::default(), "s".parse().unwrap());
        let items = definitions
            .items(ListKind::Tools, &server, &handshake(), &link, 10_000, Duration::from_secs(9))
            .await
            .unwrap();
        assert_eq!(items.len(), 9);
    }

    #[tokio::test]
    async fn waiting_callers_share_the_failure_of_a_list() {
        let link = ListFetcher { page: None, requests: AtomicU64::new(0) };
        let (definitions, server) = (Definitions::default(), "s".parse().unwrap());
        let (handshake, deadline) = (handshake(), Duration::from_millis(50));
        let waiting = (0..20)
            .map(|_| definitions.items(ListKind::Tools, &server, &handshake, &link, 1, deadline));
        for result in futures_util::future::join_all(waiting).await {
            assert_eq!(result.unwrap_err(), CallError::Timeout(deadline));
        }
        let second =
            definitions.items(ListKind::Tools, &server, &handshake, &link, 1, deadline).await;
        assert_eq!(second.unwrap_err(), CallError::Timeout(deadline));
        assert_eq!(link.requests.load(Ordering::SeqCst), 1);
    }
}
