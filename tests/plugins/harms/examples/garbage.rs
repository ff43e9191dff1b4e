//! Replaces the payload by what is not JSON.

use harms::*;

struct Garbage;
harms::guest!(Garbage);

impl Harm for Garbage {
    const NAME: &str = "garbage";

    fn harm(_: &Message) -> Result<Verdict, String> {
        Ok(verdict(Decision::Replace("{\"a\":".into())))
    }
}
