//! Lives as long as a session, and refuses with how many messages of it there were. `hold 50` has
//! it take that many MiB more.

use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering},
};

use guests::*;

struct Keeper;
guests::export!(Keeper);

static MESSAGES: AtomicU32 = AtomicU32::new(0);
static HELD: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

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
            Target::Tool(tool) => {
                let mib = tool.strip_prefix("hold ").and_then(|mib| mib.parse::<usize>().ok());
                if let (Some(mib), Ok(mut held)) = (mib, HELD.lock()) {
                    held.push(std::hint::black_box(vec![1; mib << 20]));
                }
            }
            _ => {}
        }
        let seen = MESSAGES.fetch_add(1, Ordering::Relaxed);
        Ok(verdict(refuse("seen", seen.to_string())))
    }
}
