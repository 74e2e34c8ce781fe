//! Values that were worked out once, for many callers at once, within a limit in bytes that all of them share.
//!
//! A lock is held to find a slot, never to fill one: whoever wants a value that another is working out waits for that
//! slot alone. What is used stays; of the rest, the oldest goes first (second chance).

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Result;

const SHARDS: usize = 8;
/// What a slot itself takes, about, bytes: so that small values count, too.
const SLOT_BYTES: usize = 128;

/// What a value is found by: two numbers, the second of them counting in ones.
pub type Key = (u64, u64);

type Value<V> = Arc<Mutex<Option<V>>>;

struct Slot<V> {
    value: Value<V>,
    /// What it counts for; 0 while it is worked out.
    bytes: usize,
    /// Whether it was wanted since it was last looked at for removal.
    used: bool,
}

struct Shard<V> {
    slots: HashMap<Key, Slot<V>>,
    /// The keys of slots that hold a value, the oldest in front.
    order: VecDeque<Key>,
}

/// A bounded number of bytes of values.
pub struct Cache<V> {
    shards: [Mutex<Shard<V>>; SHARDS],
    bytes: AtomicUsize,
    bytes_max: usize,
    weigh: fn(&V) -> usize,
}

impl<V: Clone> Cache<V> {
    /// A cache of values that `weigh` together at most `bytes_max`; those that are being worked out come on top.
    pub fn new(bytes_max: usize, weigh: fn(&V) -> usize) -> Self {
        let shard = || Mutex::new(Shard { slots: HashMap::new(), order: VecDeque::new() });
        Self { shards: std::array::from_fn(|_| shard()), bytes: AtomicUsize::new(0), bytes_max, weigh }
    }

    fn shard(&self, number: usize) -> Option<MutexGuard<'_, Shard<V>>> {
        Some(self.shards.get(number % SHARDS)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn number(key: Key) -> usize {
        let mixed = (key.0 ^ key.1.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 61) as usize
    }

    fn value(&self, key: Key) -> Option<Value<V>> {
        let mut shard = self.shard(Self::number(key))?;
        let new = || Slot { value: Value::default(), bytes: 0, used: false };
        let slot = shard.slots.entry(key).or_insert_with(new);
        slot.used = slot.bytes > 0;
        Some(Arc::clone(&slot.value))
    }

    /// The value of `key`; `load` works it out where it is not remembered. What failed is not remembered.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn get(&self, key: Key, load: impl FnOnce() -> Result<V>) -> Result<V> {
        let Some(held) = self.value(key) else { return load() };
        let mut place = held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = &*place {
            return Ok(value.clone());
        }
        match load() {
            Ok(value) => {
                *place = Some(value.clone());
                drop(place);
                self.keep(key, &held, (self.weigh)(&value));
                Ok(value)
            }
            Err(error) => {
                drop(place);
                if let Some(mut shard) = self.shard(Self::number(key))
                    && shard.slots.get(&key).is_some_and(|slot| slot.bytes == 0 && Arc::ptr_eq(&slot.value, &held))
                {
                    shard.slots.remove(&key);
                }
                Err(error)
            }
        }
    }

    /// The value of `key`, where it is remembered.
    pub fn peek(&self, key: Key) -> Option<V> {
        let held = {
            let mut shard = self.shard(Self::number(key))?;
            let slot = shard.slots.get_mut(&key)?;
            slot.used = slot.bytes > 0;
            Arc::clone(&slot.value)
        };
        held.try_lock().ok()?.clone()
    }

    /// Counts a value that was worked out, and makes room for it.
    fn keep(&self, key: Key, held: &Value<V>, bytes: usize) {
        let number = Self::number(key);
        let bytes = bytes.saturating_add(SLOT_BYTES);
        if let Some(mut shard) = self.shard(number)
            && let Some(slot) = shard.slots.get_mut(&key)
            && slot.bytes == 0
            && Arc::ptr_eq(&slot.value, held)
        {
            slot.bytes = bytes;
            shard.order.push_back(key);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        for step in 0..SHARDS {
            if self.bytes.load(Ordering::Relaxed) <= self.bytes_max {
                return;
            }
            if let Some(mut shard) = self.shard(number.wrapping_add(step)) {
                self.shrink(&mut shard, key);
            }
        }
    }

    /// Lets values of a shard go, but not that of `kept`, until the limit is kept again or nothing is left.
    fn shrink(&self, shard: &mut Shard<V>, kept: Key) {
        // Each is looked at twice at most: once to lose its mark, once to go.
        let mut left = shard.order.len().saturating_mul(2);
        while left > 0 && self.bytes.load(Ordering::Relaxed) > self.bytes_max {
            left = left.saturating_sub(1);
            let Some(key) = shard.order.pop_front() else { return };
            match shard.slots.get_mut(&key) {
                Some(slot) if slot.used || key == kept => {
                    slot.used = false;
                    shard.order.push_back(key);
                }
                Some(slot) => {
                    self.bytes.fetch_sub(slot.bytes, Ordering::Relaxed);
                    shard.slots.remove(&key);
                }
                None => {}
            }
        }
    }
}

impl<V> fmt::Debug for Cache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes.load(Ordering::Relaxed);
        f.debug_struct("Cache").field("bytes", &bytes).field("bytes_max", &self.bytes_max).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Error, Kind};

    use super::*;

    fn held<V>(cache: &Cache<V>) -> usize {
        cache.shards.iter().map(|shard| shard.lock().unwrap().slots.len()).sum()
    }

    #[test]
    fn it_loads_once_keeps_what_is_used_and_stays_bounded() {
        let cache = Cache::new(64 * (SLOT_BYTES + 8), |_| 8);
        for key in 0..10_000_u64 {
            assert_eq!(cache.get((key, 1), || Ok(key)).unwrap(), key);
            assert_eq!(cache.get((7, 1), || if key <= 7 { Ok(7) } else { panic!("forgotten") }).unwrap(), 7);
            assert!(cache.bytes.load(Ordering::Relaxed) <= cache.bytes_max);
        }
        assert!((32..=64).contains(&held(&cache)), "{}", held(&cache));
        assert_eq!((cache.peek((7, 1)), cache.peek((8, 1))), (Some(7), None));
    }

    #[test]
    fn large_values_push_out_small_ones() {
        let cache = Cache::new(1 << 20, Vec::len);
        for key in 0..100 {
            cache.get((key, 0), || Ok(vec![0_u8; 1000])).unwrap();
        }
        for key in 100..200 {
            cache.get((key, 0), || Ok(vec![0_u8; 900_000])).unwrap();
            assert!(cache.bytes.load(Ordering::Relaxed) <= 1 << 20, "{cache:?}");
        }
        // One that is larger than all there is room for stays until the next comes.
        cache.get((1000, 0), || Ok(vec![0_u8; 2 << 20])).unwrap();
        assert_eq!(held(&cache), 1);
        assert!(cache.peek((1000, 0)).is_some());
        cache.get((1001, 0), || Ok(vec![0_u8; 10])).unwrap();
        assert_eq!(held(&cache), 1);
    }

    #[test]
    fn failures_are_not_remembered() {
        let cache = Cache::new(64, |_| 1);
        for key in 0..100 {
            let failed = cache.get((key, 1), || Err::<u8, _>(Error::new(Kind::Io, "no")));
            assert_eq!(failed.unwrap_err().kind(), Kind::Io);
        }
        assert_eq!(held(&cache), 0);
        assert_eq!(cache.get((1, 1), || Ok(2)).unwrap(), 2);
    }

    #[test]
    fn many_threads_load_each_value_once() {
        let cache = Cache::new(1 << 20, |_| 8);
        let loads = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for key in 0..500_u64 {
                        let load = || {
                            loads.fetch_add(1, Ordering::Relaxed);
                            Ok(key)
                        };
                        assert_eq!(cache.get((key, 0), load).unwrap(), key);
                    }
                });
            }
        });
        assert_eq!(loads.into_inner(), 500);
    }
}
