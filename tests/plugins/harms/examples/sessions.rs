//! Keeps an instance, and much memory, for every session.

use std::{cell::RefCell, hint::black_box};

use harms::*;

struct Sessions;
harms::guest!(Sessions);

thread_local! {
    static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

impl Harm for Sessions {
    const NAME: &str = "sessions";

    fn describe() -> Manifest {
        Manifest { lifetime: Lifetime::Session, ..manifest(Self::NAME) }
    }

    fn harm(_: &Message) -> Result<Verdict, String> {
        KEPT.with_borrow_mut(|kept| kept.push(black_box(vec![1_u8; 8 << 20])));
        Ok(verdict(Decision::Pass))
    }
}
