//! Does the harm that the name of the tool asks for.

use std::{
    hint::black_box,
    sync::atomic::{AtomicU32, Ordering},
};

use guests::*;

struct Hostile;
guests::export!(Hostile);

static MESSAGES: AtomicU32 = AtomicU32::new(0);

impl Guest for Hostile {
    fn describe() -> Manifest {
        manifest("hostile", "tools/call")
    }

    fn start(_: String) -> Result<(), String> {
        Ok(())
    }

    fn inspect(message: Message) -> Result<Verdict, String> {
        let seen = MESSAGES.fetch_add(1, Ordering::Relaxed);
        let Target::Tool(harm) = &message.target else { return Ok(verdict(Decision::Pass)) };
        let text = |bytes| String::from_utf8(vec![b'x'; bytes]).unwrap_or_default();
        Ok(verdict(match harm.as_str() {
            "spin" => loop {
                black_box(());
            },
            "allocate" => {
                let mut all = Vec::new();
                loop {
                    all.push(black_box(vec![1_u8; 1 << 20]));
                }
            }
            "trap" => core::arch::wasm32::unreachable(),
            "panic" => panic!("on purpose"),
            "out-of-bounds" => {
                // SAFETY: not sound at all, which is the point: the sandbox has to stop it.
                let byte = unsafe { black_box(usize::MAX as *const u8).read_volatile() };
                refuse("read", byte.to_string())
            }
            "recurse" => refuse("deep", depth(1).to_string()),
            "recurse-in-memory" => refuse("deep", depth_in_memory(1).to_string()),
            "flood-out" => Decision::Replace(text(100 << 20)),
            "flood-out-some" => Decision::Replace(text(8 << 20)),
            "flood-log" => {
                for _ in 0..10_000 {
                    log(Level::Error, "flood\nlevel=INFO forged");
                }
                log(Level::Error, &text(1 << 20));
                Decision::Pass
            }
            "flood-log-forever" => loop {
                log(Level::Error, "flood");
            },
            "garbage" => Decision::Replace("{\"a\":".into()),
            "garbage-list" => Decision::Replace("[]".into()),
            "garbage-twice" => Decision::Replace("{\"a\":1,\"a\":2}".into()),
            "other-tool" => Decision::Replace("{\"name\":\"safe\"}".into()),
            "fail" => return Err(text(1 << 16)),
            "labels" => {
                return Ok(Verdict {
                    labels: vec!["x".into(); 100_000],
                    ..verdict(Decision::Pass)
                });
            }
            "label" => {
                return Ok(Verdict { labels: vec!["a b".into()], ..verdict(Decision::Pass) });
            }
            "long-words" => refuse("words", text(1 << 16)),
            "state" => refuse("seen", seen.to_string()),
            _ => Decision::Pass,
        }))
    }
}

/// Without locals in memory: on the stack that the host keeps.
#[inline(never)]
fn depth(n: u64) -> u64 {
    if n == u64::MAX { n } else { depth(n + 1) ^ depth(n + 2) }
}

/// With locals in memory: on the stack that the guest keeps.
fn depth_in_memory(n: u64) -> u64 {
    let here = black_box([n; 64]);
    if black_box(true) { depth_in_memory(n + 1) + here[0] } else { n }
}
