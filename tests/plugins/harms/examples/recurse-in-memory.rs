//! Recurses on the stack that it keeps itself.

use std::hint::black_box;

use harms::*;

struct RecurseInMemory;
harms::guest!(RecurseInMemory);

fn depth(n: u64) -> u64 {
    let here = black_box([n; 64]);
    if black_box(true) { depth(n + 1) + here[0] } else { n }
}

impl Harm for RecurseInMemory {
    const NAME: &str = "recurse-in-memory";

    fn harm(_: &Message) -> Result<Verdict, String> {
        Ok(refuse(depth(1).to_string()))
    }
}
