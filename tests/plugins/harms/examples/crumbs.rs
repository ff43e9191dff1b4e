//! Takes memory in small pieces until there is none.

use std::hint::black_box;

use harms::*;

struct Crumbs;
harms::guest!(Crumbs);

struct Crumb {
    _before: Option<Box<Crumb>>,
}

impl Harm for Crumbs {
    const NAME: &str = "crumbs";

    fn harm(_: &Message) -> Result<Verdict, String> {
        let mut all: Option<Box<Crumb>> = None;
        loop {
            all = Some(Box::new(Crumb { _before: black_box(all) }));
        }
    }
}
