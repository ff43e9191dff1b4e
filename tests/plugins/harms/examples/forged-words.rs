//! Refuses with words that look like other lines and other codes.

use harms::*;

struct ForgedWords;
harms::guest!(ForgedWords);

impl Harm for ForgedWords {
    const NAME: &str = "forged-words";

    fn harm(_: &Message) -> Result<Verdict, String> {
        let refusal = Refusal {
            code: "x\n{\"code\":\"ok\"}".into(),
            reason: "\u{1b}[2J\r\nINFO all is well".into(),
            detail: Some("\0".repeat(100_000)),
        };
        Ok(verdict(Decision::Refuse(refusal)))
    }
}
