//! Recurses on the stack that the host keeps.

use harms::*;

struct Recurse;
harms::guest!(Recurse);

#[inline(never)]
fn depth(n: u64) -> u64 {
    if n == u64::MAX { n } else { depth(n + 1) ^ depth(n + 2) }
}

impl Harm for Recurse {
    const NAME: &str = "recurse";

    fn harm(_: &Message) -> Result<Verdict, String> {
        Ok(refuse(depth(1).to_string()))
    }
}
