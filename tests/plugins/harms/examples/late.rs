//! Gives a sound verdict when its time is over. Needs `clock`.

use harms::*;

struct Late;
harms::guest!(Late);

impl Harm for Late {
    const NAME: &str = "late";

    fn harm(_: &Message) -> Result<Verdict, String> {
        let begun = clock::monotonic();
        while clock::monotonic() - begun < 120_000_000_000 {}
        Ok(verdict(Decision::Pass))
    }
}
