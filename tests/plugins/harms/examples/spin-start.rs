//! Never begins.

use harms::*;

struct SpinStart;
harms::guest!(SpinStart);

impl Harm for SpinStart {
    const NAME: &str = "spin-start";

    fn start(_: &str) -> Result<(), String> {
        spin()
    }
}
