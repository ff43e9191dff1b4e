//! Writes to the log for ever. Needs `log`.

use harms::*;

struct FloodLog;
harms::guest!(FloodLog);

impl Harm for FloodLog {
    const NAME: &str = "flood-log";

    fn harm(_: &Message) -> Result<Verdict, String> {
        loop {
            log::log(log::Level::Error, "flood\nlevel=INFO forged");
        }
    }
}
