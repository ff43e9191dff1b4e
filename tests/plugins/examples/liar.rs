//! Claims an event that does not exist.

use guests::*;

struct Liar;
guests::export!(Liar);

impl Guest for Liar {
    fn describe() -> Manifest {
        manifest("liar", "everything at once")
    }

    fn start(_: String) -> Result<(), String> {
        Ok(())
    }

    fn inspect(_: Message) -> Result<Verdict, String> {
        Ok(verdict(Decision::Pass))
    }
}
