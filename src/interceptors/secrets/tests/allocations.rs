//! Memory of a scan. Each thread counts what it allocates.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fmt::Write as _,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{encodings::gzip, *};

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

impl Counting {
    fn count(change: impl FnOnce(usize) -> usize) {
        // A thread that ends has no counters.
        let _ = HELD.try_with(|held| {
            held.set(change(held.get()));
            PEAK.try_with(|peak| peak.set(peak.get().max(held.get())))
        });
    }
}

#[expect(unsafe_code, reason = "only an allocator sees every allocation")]
// SAFETY: the system's allocator does all the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(|held| held.wrapping_add(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // Another thread may have allocated it.
        Self::count(|held| held.saturating_sub(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes that some work holds at most.
fn peak<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = HELD.get();
    PEAK.set(before);
    let done = work();
    (PEAK.get() - before, done)
}

/// Texts of many times the size of a part.
const BYTES: usize = 12 << 20;
/// Less than one copy of such a text.
const LIMIT: usize = 8 << 20;

#[test]
fn memory_of_a_scan_does_not_grow_with_the_text() {
    let scanner = scanner();
    let noise = || -> Vec<u8> {
        let mut seed = Seed::new(9);
        (0..BYTES * 3 / 4).map(|_| seed.below(256) as u8).collect()
    };
    let mut lines = String::new();
    for i in 0..BYTES / 64 {
        let _ = writeln!(
            lines,
            "{i:0>10} INFO caf\u{e9} a=%41 \"b\" \\\\n and words of a log of a server"
        );
    }
    let archive = gzip(&noise()[..BYTES / 4]);
    for (name, text) in [
        ("one letter", "x".repeat(BYTES)),
        ("digits", "0123456789abcdef".repeat(BYTES / 16)),
        ("base64", STANDARD.encode(noise())),
        ("log", lines),
        ("archive", STANDARD.encode(&archive)),
    ] {
        let (peak, hits) = peak(|| scanner.scan(text.as_bytes(), &mut Budget::of(text.len())));
        assert_eq!(hits, Ok(Vec::new()), "{name}");
        println!("{name}: {} KiB for {} MiB", peak >> 10, text.len() >> 20);
        assert!(peak < LIMIT, "{name}: {peak}");
    }
}

#[test]
fn secrets_in_an_archive_need_no_memory_each() {
    let scanner = scanner();
    let url = made("http://{colon}abd@a ");
    let text = STANDARD.encode(gzip(url.repeat(BYTES / 4 / url.len()).as_bytes()));
    // An archive of many texts beside it pays for its content.
    let text = format!("{text} {}", "words of a text ".repeat(BYTES / 32 / 16));
    let (peak, hits) = peak(|| scanner.scan(text.as_bytes(), &mut Budget::of(text.len())));
    assert_eq!(hits.map(|hits| hits.len()), Ok(1));
    assert!(peak < LIMIT, "{peak}");
}

#[test]
fn secret_is_found_at_each_place_of_a_long_text() {
    let scanner = scanner();
    let token = token();
    let key = made(
        "-----BEGIN RSA PRIVATE{sp}KEY-----{nl}{base64lines:3200}{nl}-----END RSA PRIVATE KEY-----",
    );
    let step = 449 << 10;
    for filler in ["words of a text, ", "abcdefgh", "é\\n"] {
        let text = filler.repeat((2 << 20) / filler.len());
        for place in (0..4).map(|i| i * step + (10 << 10)) {
            let place = text.floor_char_boundary(place / filler.len() * filler.len());
            let (before, after) = text.split_at(place);
            for (id, secret) in [("github-token", &token), ("private-key", &key)] {
                let text = format!("{before} {secret} {after}");
                let hits = scanner.scan(text.as_bytes(), &mut Budget::of(text.len())).unwrap();
                assert_eq!(hits.len(), 1, "{id} at {place} in {filler}: {hits:?}");
                assert_eq!(scanner.ids[hits[0].id], id);
                assert_eq!(text[hits[0].range.clone()], **secret);
            }
        }
    }
    // In one run of base64, and in an archive longer than a part.
    let mut seed = Seed::new(5);
    let noise: Vec<u8> = (0..2 << 20).map(|_| seed.below(256) as u8).collect();
    for place in (0..4).map(|i| i * step + 1) {
        let (before, after) = noise.split_at(place);
        let bytes = [before, format!(" {token} ").as_bytes(), after].concat();
        for bytes in [gzip(&bytes), bytes] {
            let text = STANDARD.encode(bytes);
            assert_eq!(found(&scanner, &text)[0], "github-token", "{place}");
        }
    }
}
