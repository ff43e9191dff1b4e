//! Reads outside its memory.

use std::hint::black_box;

use harms::*;

struct OutOfBounds;
harms::guest!(OutOfBounds);

impl Harm for OutOfBounds {
    const NAME: &str = "out-of-bounds";

    fn harm(_: &Message) -> Result<Verdict, String> {
        // SAFETY: not sound at all, which is the point: the sandbox has to stop it.
        let byte = unsafe { black_box(usize::MAX as *const u8).read_volatile() };
        Ok(refuse(byte.to_string()))
    }
}
