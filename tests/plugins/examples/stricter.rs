//! A later version of `noop`, which refuses.

use guests::*;

struct Stricter;
guests::export!(Stricter);

impl Guest for Stricter {
    fn describe() -> Manifest {
        Manifest { version: "0.2.0".into(), ..manifest("noop", "tools/call") }
    }

    fn start(_: String) -> Result<(), String> {
        Ok(())
    }

    fn inspect(_: Message) -> Result<Verdict, String> {
        Ok(verdict(refuse("strict", "nothing passes")))
    }
}
