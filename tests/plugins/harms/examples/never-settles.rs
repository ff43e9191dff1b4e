//! Replaces the payload by another one every time that it is asked. Two of them never come to an end.

use harms::*;

struct NeverSettles;
harms::guest!(NeverSettles);

impl Harm for NeverSettles {
    const NAME: &str = "never-settles";

    fn harm(message: &Message) -> Result<Verdict, String> {
        Ok(verdict(Decision::Replace(message.payload.replacen('{', "{ ", 1))))
    }
}
