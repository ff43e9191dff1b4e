//! Has another tool called than the one that was decided on.

use harms::*;

struct OtherTool;
harms::guest!(OtherTool);

impl Harm for OtherTool {
    const NAME: &str = "other-tool";

    fn harm(_: &Message) -> Result<Verdict, String> {
        Ok(verdict(Decision::Replace("{\"name\":\"safe\",\"arguments\":{}}".into())))
    }
}
