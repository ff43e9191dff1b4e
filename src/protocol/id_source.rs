//! Makes UUIDs of version 7 (RFC 9562) with few system calls.

use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use uuid::{Builder, Uuid};

/// Bytes of randomness in an id.
const RANDOM: usize = 10;
/// Random bytes that the system is asked for at once: for 64 ids.
const POOL: usize = 64 * RANDOM;
/// Bits of an id after its time, version and variant.
const TAIL_BITS: u32 = 74;
/// Bits of [`RANDOM`] bytes that a new tail has. The highest bit of the tail is free for additions.
const FRESH: u128 = (1 << (TAIL_BITS - 1)) - 1;

static SOURCE: Mutex<IdSource> = Mutex::new(IdSource::new());

/// A new id with the present time, greater than all ids that this process made before.
pub(crate) fn next() -> Uuid {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    // Without random bytes, the crate decides what to do.
    SOURCE.lock().next(millis, |pool| getrandom::fill(pool)).unwrap_or_else(|_| Uuid::now_v7())
}

/// Ids are in the order of their making, also within a millisecond and if the clock is set back.
/// Nobody can guess one from others.
struct IdSource {
    /// Milliseconds since 1970 of the last id.
    millis: u64,
    /// The other bits of the last id.
    tail: u128,
    pool: [u8; POOL],
    /// Bytes of the pool that ids have used.
    used: usize,
}

impl IdSource {
    const fn new() -> Self {
        Self { millis: 0, tail: 0, pool: [0; POOL], used: POOL }
    }

    fn next<E>(
        &mut self,
        now: u64,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Uuid, E> {
        let random = self.random(fill)?;
        // Within a millisecond, a random addition of at least one.
        let more = self.tail + 1 + (random & u128::from(u32::MAX));
        if now > self.millis {
            (self.millis, self.tail) = (now, random & FRESH);
        } else if more >> TAIL_BITS == 0 {
            self.tail = more;
        } else {
            (self.millis, self.tail) = (self.millis + 1, random & FRESH);
        }
        // 12 bits are before the variant, 62 after it.
        let spread = (self.tail >> 62 << 64) | (self.tail & ((1 << 62) - 1));
        let [_, _, _, _, _, _, tail @ ..] = spread.to_be_bytes();
        Ok(Builder::from_unix_timestamp_millis(self.millis, &tail).into_uuid())
    }

    /// Random bits that no other id has used.
    fn random<E>(&mut self, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<u128, E> {
        if self.used >= POOL {
            fill(&mut self.pool)?;
            self.used = 0;
        }
        let mut bytes = [0; 16];
        let unused = self.pool.iter_mut().skip(self.used);
        for (byte, unused) in bytes.iter_mut().zip(unused.take(RANDOM)) {
            *byte = std::mem::take(unused);
        }
        self.used += RANDOM;
        Ok(u128::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, convert::Infallible, thread};

    use super::*;

    fn made(source: &mut IdSource, now: u64, random: u8) -> Uuid {
        let fill = |pool: &mut [u8]| {
            pool.fill(random);
            Ok::<(), Infallible>(())
        };
        let Ok(id) = source.next(now, fill);
        id
    }

    #[test]
    fn an_id_has_its_time_and_all_of_its_random_bits() {
        let mut source = IdSource::new();
        let id = made(&mut source, 0x0123_4567_89ab, 0xff);
        assert_eq!(id.to_string(), "01234567-89ab-77ff-bfff-ffffffffffff");
        assert_eq!(
            made(&mut IdSource::new(), 1, 0).to_string(),
            "00000000-0001-7000-8000-000000000000"
        );
    }

    #[test]
    fn ids_grow_within_a_millisecond_and_if_the_clock_is_set_back() {
        for random in [0, 0x80, 0xff] {
            let mut source = IdSource::new();
            // So far that the bits overflow.
            source.tail = (1 << TAIL_BITS) - (1 << 40);
            source.millis = 1_000;
            let mut last = Uuid::nil();
            for at in 0..2_000 {
                let id = made(&mut source, if at % 2 == 0 { 1_000 } else { 900 }, random);
                assert!(id > last, "{id} after {last}");
                assert_eq!(id.get_version_num(), 7);
                last = id;
            }
        }
    }

    #[test]
    fn no_random_byte_is_used_twice() {
        let mut source = IdSource::new();
        let mut fills = 0_u8;
        let mut tails = BTreeSet::new();
        for millis in 1..=200 {
            let id = source.next(millis, |pool| {
                for (at, bytes) in pool.chunks_mut(RANDOM).enumerate() {
                    bytes.fill(fills * 64 + u8::try_from(at).unwrap());
                }
                fills += 1;
                Ok::<(), Infallible>(())
            });
            let Ok(id) = id;
            tails.insert(id.as_bytes()[8..].to_vec());
        }
        assert_eq!((fills, tails.len()), (4, 200));
    }

    #[test]
    fn a_source_without_random_bytes_makes_no_id() {
        let mut source = IdSource::new();
        assert_eq!(source.next(1, |_| Err("none")), Err("none"));
        assert!(made(&mut source, 1, 1) > Uuid::nil());
    }

    #[test]
    fn threads_get_different_ids() {
        let threads: Vec<_> = (0..4)
            .map(|_| thread::spawn(|| (0..1_000).map(|_| next()).collect::<Vec<_>>()))
            .collect();
        let mut all = BTreeSet::new();
        for thread in threads {
            let ids = thread.join().unwrap();
            assert!(ids.is_sorted());
            all.extend(ids);
        }
        assert_eq!(all.len(), 4_000);
    }
}
