//! Counts under ever new names. Needs `metrics`.

use harms::*;

struct FloodMetrics;
harms::guest!(FloodMetrics);

impl Harm for FloodMetrics {
    const NAME: &str = "flood-metrics";

    fn harm(_: &Message) -> Result<Verdict, String> {
        for n in 0_u64.. {
            metrics::count(&format!("name-{n}"), u64::MAX);
        }
        spin()
    }
}
