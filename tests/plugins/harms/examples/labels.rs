//! Gives a hundred thousand labels.

use harms::*;

struct Labels;
harms::guest!(Labels);

impl Harm for Labels {
    const NAME: &str = "labels";

    fn harm(_: &Message) -> Result<Verdict, String> {
        Ok(Verdict { labels: vec!["x".into(); 100_000], ..verdict(Decision::Pass) })
    }
}
