//! Lives as long as a session, and refuses with how many messages of it there were.

use std::sync::atomic::{AtomicU32, Ordering};

use guests::*;

struct Keeper;
guests::export!(Keeper);

static MESSAGES: AtomicU32 = AtomicU32::new(0);

impl Guest for Keeper {
    fn describe() -> Manifest {
        Manifest { lifetime: Lifetime::Session, ..manifest("keeper", "tools/call") }
    }

    fn start(_: String) -> Result<(), String> {
        Ok(())
    }

    fn inspect(message: Message) -> Result<Verdict, String> {
        match &message.target {
            Target::Tool(tool) if tool == "trap" => core::arch::wasm32::unreachable(),
            Target::Tool(tool) if tool == "spin" => loop {
                std::hint::black_box(());
            },
            _ => {}
        }
        let seen = MESSAGES.fetch_add(1, Ordering::Relaxed);
        Ok(verdict(refuse("seen", seen.to_string())))
    }
}
