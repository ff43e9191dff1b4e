//! Replaces the payload by JSON that two parsers read differently.

use harms::*;

struct TwoKeys;
harms::guest!(TwoKeys);

impl Harm for TwoKeys {
    const NAME: &str = "two-keys";

    fn harm(message: &Message) -> Result<Verdict, String> {
        let twice = message.payload.replacen('{', "{\"name\":\"safe\",", 1);
        Ok(verdict(Decision::Replace(twice)))
    }
}
