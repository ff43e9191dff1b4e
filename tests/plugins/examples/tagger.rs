//! Gives the labels that a text asks for (`tag:NAME;`), on the way out and back.

use guests::*;

struct Tagger;
guests::export!(Tagger);

impl Guest for Tagger {
    fn describe() -> Manifest {
        manifest("tagger", "tools/call")
    }

    fn start(_: String) -> Result<(), String> {
        Ok(())
    }

    fn inspect(message: Message) -> Result<Verdict, String> {
        let asked = match message.phase {
            Phase::Request => "tag:",
            Phase::Response => "answer:",
        };
        let rest = message.payload.split(asked).skip(1);
        let labels = rest.filter_map(|rest| rest.split_once(';')).map(|(name, _)| name.into());
        Ok(Verdict { labels: labels.collect(), ..verdict(Decision::Pass) })
    }
}
