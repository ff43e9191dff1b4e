//! Wants four gigabytes of randomness. Needs `random`.

use harms::*;

struct FloodRandom;
harms::guest!(FloodRandom);

impl Harm for FloodRandom {
    const NAME: &str = "flood-random";

    fn harm(_: &Message) -> Result<Verdict, String> {
        loop {
            random::bytes(u32::MAX);
        }
    }
}
