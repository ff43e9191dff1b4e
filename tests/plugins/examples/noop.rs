//! Lets everything pass: the floor of what a plugin costs.

use guests::*;

struct Noop;
guests::export!(Noop);

impl Guest for Noop {
    fn describe() -> Manifest {
        manifest("noop", "*")
    }

    fn start(_: String) -> Result<(), String> {
        Ok(())
    }

    fn inspect(_: Message) -> Result<Verdict, String> {
        Ok(verdict(Decision::Pass))
    }
}
