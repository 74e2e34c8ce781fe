//! A bounded cache for many callers at once.
//!
//! Sharded by key, each shard two generations: what is used moves into the young one, and when that is full the old one
//! is dropped whole and the young one becomes old. A hit costs a short lock of one shard of sixteen; nothing is ever
//! searched for a victim.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::mem;
use std::sync::{Mutex, PoisonError};

const SHARDS: usize = 16;

/// Values by number, at most as many as [`Cache::new`] was told.
pub(super) struct Cache<V> {
    shards: [Mutex<Shard<V>>; SHARDS],
    young_max: usize, // entries of one generation of one shard
}

struct Shard<V> {
    young: HashMap<u64, V, BuildHasherDefault<Mix>>,
    old: HashMap<u64, V, BuildHasherDefault<Mix>>,
}

impl<V: Clone> Cache<V> {
    /// A cache of about `entries_max` entries, and at least one a shard and generation.
    pub(super) fn new(entries_max: usize) -> Self {
        let shard = || Mutex::new(Shard { young: HashMap::default(), old: HashMap::default() });
        Self { shards: std::array::from_fn(|_| shard()), young_max: (entries_max / SHARDS / 2).max(1) }
    }

    fn shard(&self, key: u64) -> Option<&Mutex<Shard<V>>> {
        self.shards.get((mix(key) >> 60) as usize)
    }

    pub(super) fn get(&self, key: u64) -> Option<V> {
        let mut shard = self.shard(key)?.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = shard.young.get(&key) {
            return Some(value.clone());
        }
        let value = shard.old.remove(&key)?;
        shard.put(key, value.clone(), self.young_max);
        Some(value)
    }

    pub(super) fn insert(&self, key: u64, value: V) {
        if let Some(shard) = self.shard(key) {
            shard.lock().unwrap_or_else(PoisonError::into_inner).put(key, value, self.young_max);
        }
    }
}

impl<V> Shard<V> {
    fn put(&mut self, key: u64, value: V, young_max: usize) {
        if self.young.len() >= young_max {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

impl<V> fmt::Debug for Cache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("young_max", &self.young_max).finish_non_exhaustive()
    }
}

fn mix(key: u64) -> u64 {
    (key ^ (key >> 29)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// A hash of one number.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = mix(self.0 ^ u64::from(*byte));
        }
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = mix(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_what_is_used_and_stays_bounded() {
        let cache = Cache::new(256);
        for key in 0..100_000_u64 {
            cache.insert(key, key);
            cache.insert(7, 7);
            assert_eq!(cache.get(7), Some(7));
        }
        let held: usize = cache.shards.iter().map(|s| s.lock().unwrap()).map(|s| s.young.len() + s.old.len()).sum();
        assert!(held <= 256, "{held}");
        assert_eq!(cache.get(0), None);
    }
}
