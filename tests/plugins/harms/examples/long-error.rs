//! Fails with a megabyte of words.

use harms::*;

struct LongError;
harms::guest!(LongError);

impl Harm for LongError {
    const NAME: &str = "long-error";

    fn harm(_: &Message) -> Result<Verdict, String> {
        Err("x\n".repeat(1 << 19))
    }
}
