//! Traps.

use harms::*;

struct Trap;
harms::guest!(Trap);

impl Harm for Trap {
    const NAME: &str = "trap";

    fn harm(_: &Message) -> Result<Verdict, String> {
        core::arch::wasm32::unreachable()
    }
}
