//! Refuses calls of a caller who made too many, over all sessions and restarts of the proxy: what it is
//! granted is `state` and `log`, and it imports nothing else.

use portcullis_plugin::{Fault, Manifest, Message, Phase, Plugin, Verdict, info, state};
use serde::Deserialize;

#[derive(Deserialize)]
struct Quota {
    calls: i64,
}

portcullis_plugin::export!(Quota);

impl Plugin for Quota {
    fn describe() -> Manifest {
        Manifest::new("quota", "0.1.0", "Refuses calls of who made too many")
            .on("tools/call", Phase::Request)
            .once()
    }

    fn start(&mut self) -> Result<(), Fault> {
        if self.calls < 1 { Err("`calls` has to be 1 or more".into()) } else { Ok(()) }
    }

    fn inspect(&mut self, message: &Message) -> Result<Verdict, Fault> {
        let caller = &message.principal;
        let made = state::add(&format!("{:?}/{}", caller.kind, caller.name), 1)?;
        if made <= self.calls {
            return Ok(Verdict::pass());
        }
        info!("{} has made {made} calls", caller.name);
        Ok(Verdict::refuse("spent", "you have made as many calls as you may").label("spent"))
    }
}
