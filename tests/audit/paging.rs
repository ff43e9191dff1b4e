//! Pages stay what they are while records are written.

use portcullis::audit::{Audit, Filter, Order, Seq};

use crate::common::{call, intent, open};

async fn walk(audit: &Audit, mut filter: Filter, between: impl AsyncFn()) -> Vec<Seq> {
    let mut cursors = Vec::new();
    loop {
        let page = audit.archive().query(filter.clone()).await.unwrap();
        cursors.extend(page.entries.iter().map(|entry| entry.seq));
        match page.next {
            Some(next) => filter.after = Some(next),
            None => return cursors,
        }
        between().await;
    }
}

#[tokio::test]
async fn pages_are_stable_while_records_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    for _ in 0..50 {
        intent(&audit, &call()).await.unwrap();
    }
    let all = Filter { limit: Some(1000), order: Order::OldestFirst, ..Filter::default() };
    let before = walk(&audit, all.clone(), async || {}).await;
    assert_eq!(before.len(), 50);
    let write = async || intent(&audit, &call()).await.unwrap();

    let newest = Filter { limit: Some(7), ..Filter::default() };
    let mut seen = walk(&audit, newest, write).await;
    seen.reverse();
    assert_eq!(seen, before, "newest first, later records change nothing");

    // Oldest first runs after the writer; it must see all in order, and each once.
    let mut oldest = Filter { limit: Some(7), order: Order::OldestFirst, ..Filter::default() };
    let mut seen = Vec::new();
    for _ in 0..12 {
        let page = audit.archive().query(oldest.clone()).await.unwrap();
        seen.extend(page.entries.iter().map(|entry| entry.seq));
        oldest.after = page.entries.last().map(|entry| entry.seq).or(oldest.after);
        write().await;
    }
    let now = walk(&audit, all, async || {}).await;
    assert_eq!(seen, now[..seen.len()]);
    assert!(seen.len() > before.len());
}
