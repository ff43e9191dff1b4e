//! Tells in its verdict what it kept of messages before.

use std::cell::RefCell;

use harms::*;

struct Statics;
harms::guest!(Statics);

thread_local! {
    static KEPT: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

impl Harm for Statics {
    const NAME: &str = "statics";

    fn harm(message: &Message) -> Result<Verdict, String> {
        let kept = KEPT.with_borrow_mut(|kept| {
            kept.push(message.payload.clone());
            kept.len()
        });
        match kept {
            1 => Err("kept 1".into()),
            _ => Ok(refuse(KEPT.with_borrow(|kept| kept.concat()))),
        }
    }
}
