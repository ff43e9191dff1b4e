//! Replaces the payload by another one every time that it is asked.

use harms::*;

struct NeverSettles;
harms::guest!(NeverSettles);

impl Harm for NeverSettles {
    const NAME: &str = "never-settles";

    fn harm(message: &Message) -> Result<Verdict, String> {
        let longer =
            message.payload.replace(":never-settles\"", ":never-settles\", \"harm:never-settles\"");
        Ok(verdict(Decision::Replace(longer)))
    }
}
