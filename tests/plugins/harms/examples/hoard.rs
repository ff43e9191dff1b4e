//! Takes most of its memory before any message has come, in every instance.

use std::{cell::RefCell, hint::black_box};

use harms::*;

struct Hoard;
harms::guest!(Hoard);

thread_local! {
    static HOARD: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Harm for Hoard {
    const NAME: &str = "hoard";

    fn start(_: &str) -> Result<(), String> {
        HOARD.set(black_box(vec![1_u8; 48 << 20]));
        Ok(())
    }

    fn harm(_: &Message) -> Result<Verdict, String> {
        Err(HOARD.with_borrow(Vec::len).to_string())
    }
}
