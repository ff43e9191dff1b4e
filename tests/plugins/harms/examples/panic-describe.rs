//! Panics when it is asked what it is.

use harms::*;

struct PanicDescribe;
harms::guest!(PanicDescribe);

impl Harm for PanicDescribe {
    const NAME: &str = "panic-describe";

    fn describe() -> Manifest {
        panic!("on purpose")
    }
}
