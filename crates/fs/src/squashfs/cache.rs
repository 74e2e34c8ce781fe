//! Values that were worked out once, for many callers at once.
//!
//! Each shard holds a few slots, the one last used in front; its lock is held to find a slot, never to fill one. Whoever
//! wants a value that another is working out waits for that slot alone.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use block::Result;

const SHARDS: usize = 16;

/// What a value is found by: two numbers, the second of them counting in ones.
pub(super) type Key = (u64, u64);

type Slot<V> = Arc<Mutex<Option<V>>>;
type Shard<V> = VecDeque<(Key, Slot<V>)>;

/// A bounded number of values.
pub(super) struct Cache<V> {
    shards: [Mutex<Shard<V>>; SHARDS],
    slots_max: usize, // of one shard
}

impl<V: Clone> Cache<V> {
    /// A cache of about `values_max` values, and at least one a shard.
    pub fn new(values_max: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::new(VecDeque::new())),
            slots_max: values_max.div_ceil(SHARDS).max(1),
        }
    }

    fn slot(&self, key: Key) -> Option<Slot<V>> {
        let mixed = (key.0 ^ key.1.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let shard = self.shards.get((mixed >> 60) as usize)?;
        let mut slots = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = slots.iter().position(|(other, _)| *other == key) {
            if place > 0 {
                let found = slots.remove(place)?;
                slots.push_front(found);
            }
        } else {
            slots.truncate(self.slots_max.saturating_sub(1));
            slots.push_front((key, Slot::default()));
        }
        slots.front().map(|(_, slot)| Arc::clone(slot))
    }

    /// The value of `key`; `load` works it out where it is not remembered. What failed is not remembered.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn get(&self, key: Key, load: impl FnOnce() -> Result<V>) -> Result<V> {
        let Some(slot) = self.slot(key) else { return load() };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = &*slot {
            return Ok(value.clone());
        }
        let value = load()?;
        *slot = Some(value.clone());
        Ok(value)
    }
}

impl<V> fmt::Debug for Cache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("slots_max", &self.slots_max).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use block::{Error, Kind};

    use super::*;

    #[test]
    fn it_loads_once_keeps_what_is_used_and_stays_bounded() {
        let cache = Cache::new(64);
        for key in 0..10_000_u64 {
            assert_eq!(cache.get((key, 1), || Ok(key)).unwrap(), key);
            assert_eq!(cache.get((7, 1), || if key <= 7 { Ok(7) } else { panic!("forgotten") }).unwrap(), 7);
        }
        let held: usize = cache.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(held <= 64, "{held}");
    }

    #[test]
    fn failures_are_not_remembered() {
        let cache = Cache::new(64);
        let failed = cache.get((1, 1), || Err::<u8, _>(Error::new(Kind::Io, "no")));
        assert_eq!(failed.unwrap_err().kind(), Kind::Io);
        assert_eq!(cache.get((1, 1), || Ok(2)).unwrap(), 2);
    }
}
