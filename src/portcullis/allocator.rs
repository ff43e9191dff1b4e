//! The allocator: jemalloc, chosen by measurement (`tests/bench/README.md`).

use tikv_jemalloc_ctl::{Access, AsName, background_thread};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Milliseconds after which most free pages are returned to the system. The default of ten seconds
/// keeps the outgrown buffers of a large message beside the message.
const RETURN_MS: isize = 100;

/// Makes the allocator return free pages soon, also while nothing is allocated. Must be called
/// before there are threads: each gets its part of the memory, with the present settings. Commands
/// that must be the only thread of their process do without it.
pub(crate) fn return_pages() {
    // With the defaults, pages are returned later, but they are.
    for name in [&b"arena.0.dirty_decay_ms\0"[..], b"arenas.dirty_decay_ms\0"] {
        let _ = name.name().write(RETURN_MS);
    }
    let _ = background_thread::write(true);
}
