//! Begins well when it is loaded, and never again. Needs `state`.

use harms::*;

struct StartOnce;
harms::guest!(StartOnce);

impl Harm for StartOnce {
    const NAME: &str = "start-once";

    fn start(_: &str) -> Result<(), String> {
        match state::add("starts", 1) {
            Ok(1) | Err(_) => Ok(()),
            Ok(_) => panic!("on purpose"),
        }
    }
}
