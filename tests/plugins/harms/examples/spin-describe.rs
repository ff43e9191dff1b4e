//! Never says what it is.

use harms::*;

struct SpinDescribe;
harms::guest!(SpinDescribe);

impl Harm for SpinDescribe {
    const NAME: &str = "spin-describe";

    fn describe() -> Manifest {
        spin()
    }
}
