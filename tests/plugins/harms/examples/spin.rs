//! Never comes to an end.

use harms::*;

struct Spin;
harms::guest!(Spin);

impl Harm for Spin {
    const NAME: &str = "spin";

    fn harm(_: &Message) -> Result<Verdict, String> {
        spin()
    }
}
