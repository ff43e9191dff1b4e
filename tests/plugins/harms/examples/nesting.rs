//! Replaces the payload by a hundred thousand brackets.

use harms::*;

struct Nesting;
harms::guest!(Nesting);

impl Harm for Nesting {
    const NAME: &str = "nesting";

    fn harm(_: &Message) -> Result<Verdict, String> {
        let (open, shut) = ("[".repeat(100_000), "]".repeat(100_000));
        Ok(verdict(Decision::Replace(format!("{{\"a\":{open}{shut}}}"))))
    }
}
