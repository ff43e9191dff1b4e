//! Replaces the payload by 32 MiB.

use harms::*;

struct HugePayload;
harms::guest!(HugePayload);

impl Harm for HugePayload {
    const NAME: &str = "huge-payload";

    fn harm(_: &Message) -> Result<Verdict, String> {
        let payload = format!("{{\"name\":\"{}\"}}", "x".repeat(32 << 20));
        Ok(verdict(Decision::Replace(payload)))
    }
}
