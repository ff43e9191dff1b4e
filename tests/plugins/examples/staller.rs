//! Never says what it is.

use guests::*;

struct Staller;
guests::export!(Staller);

impl Guest for Staller {
    fn describe() -> Manifest {
        loop {
            std::hint::spin_loop();
        }
    }

    fn start(_: String) -> Result<(), String> {
        Ok(())
    }

    fn inspect(_: Message) -> Result<Verdict, String> {
        Ok(verdict(Decision::Pass))
    }
}
