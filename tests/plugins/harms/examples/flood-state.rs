//! Fills its state and goes on. Needs `state`.

use harms::*;

struct FloodState;
harms::guest!(FloodState);

impl Harm for FloodState {
    const NAME: &str = "flood-state";

    fn harm(_: &Message) -> Result<Verdict, String> {
        let value = vec![b'x'; 64 << 10];
        for n in 0_u64.. {
            let _ = state::set(&format!("{n}"), &value);
            let _ = state::add(&"k".repeat(255), 1);
            let _ = state::keys("", None);
        }
        spin()
    }
}
