//! Pages stay stable while records are written.

use portcullis_audit::{Audit, Order, Query, Seq};

use crate::common::{call, intent, open};

async fn walk(audit: &Audit, mut query: Query, between: impl AsyncFn()) -> Vec<Seq> {
    let mut cursors = Vec::new();
    loop {
        let page = audit.archive().query(query.clone()).await.unwrap();
        cursors.extend(page.lines.iter().map(|line| line.seq()));
        match page.next {
            Some(next) => query.after = Some(next),
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
    let all = Query { limit: Some(1000), order: Order::OldestFirst, ..Query::default() };
    let before = walk(&audit, all.clone(), async || {}).await;
    assert_eq!(before.len(), 50);
    let write = async || intent(&audit, &call()).await.unwrap();

    let newest = Query { limit: Some(7), ..Query::default() };
    let mut seen = walk(&audit, newest, write).await;
    seen.reverse();
    assert_eq!(seen, before, "newest first, later records change nothing");

    // Oldest first runs after the writer; it must see all in order, and each once.
    let mut oldest = Query { limit: Some(7), order: Order::OldestFirst, ..Query::default() };
    let mut seen = Vec::new();
    for _ in 0..12 {
        let page = audit.archive().query(oldest.clone()).await.unwrap();
        seen.extend(page.lines.iter().map(|line| line.seq()));
        oldest.after = page.lines.last().map(|line| line.seq()).or(oldest.after);
        write().await;
    }
    let now = walk(&audit, all, async || {}).await;
    assert_eq!(seen, now[..seen.len()]);
    assert!(seen.len() > before.len());
}
