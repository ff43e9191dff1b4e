//! Writes a line of 32 MiB to the log. Needs `log`.

use harms::*;

struct FloodLogWide;
harms::guest!(FloodLogWide);

impl Harm for FloodLogWide {
    const NAME: &str = "flood-log-wide";

    fn harm(_: &Message) -> Result<Verdict, String> {
        log::log(log::Level::Error, &"x".repeat(32 << 20));
        core::arch::wasm32::unreachable()
    }
}
