//! Asked once about each half of an exchange, and reports each time that it is.

use guests::*;

struct Counter;
guests::export!(Counter);

impl Guest for Counter {
    fn describe() -> Manifest {
        Manifest { once: true, ..manifest("counter", "tools/call") }
    }

    fn start(_: String) -> Result<(), String> {
        Ok(())
    }

    fn inspect(message: Message) -> Result<Verdict, String> {
        let finding = Finding { code: "seen".into(), message: message.payload };
        Ok(Verdict { findings: vec![finding], ..verdict(Decision::Pass) })
    }
}
