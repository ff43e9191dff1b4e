//! Takes memory in large pieces until there is none.

use std::hint::black_box;

use harms::*;

struct Allocate;
harms::guest!(Allocate);

impl Harm for Allocate {
    const NAME: &str = "allocate";

    fn harm(_: &Message) -> Result<Verdict, String> {
        let mut all = Vec::new();
        loop {
            all.push(black_box(vec![1_u8; 1 << 20]));
        }
    }
}
