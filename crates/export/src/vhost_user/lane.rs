//! Answers of one queue, given in the order of its requests.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

use vhost_user_backend::VringT as _;

use super::Vring;
use crate::locked;

/// A request that was taken from a queue.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// Its first descriptor.
    pub head: u16,
    /// Bytes that were written to the guest's memory; `None` while a worker has it.
    pub done: Option<u32>,
}

#[derive(Debug, Default)]
struct State {
    /// Those that have no answer yet.
    pending: VecDeque<Taken>,
    /// The number of the first of those.
    first: u64,
    /// Requests are being taken from the queue.
    busy: bool,
    /// Nobody wants answers any more.
    closed: bool,
}

/// The answers of one queue.
#[derive(Debug, Default)]
pub struct Lane {
    state: Mutex<State>,
    changed: Condvar,
}

impl Lane {
    /// From here on requests may be taken, until [`Lane::rest`].
    pub fn begin(&self) {
        locked(&self.state).busy = true;
    }

    /// None are taken any more.
    pub fn rest(&self) {
        locked(&self.state).busy = false;
        self.changed.notify_all();
    }

    /// Whether a worker has a request.
    pub fn is_waited_for(&self) -> bool {
        !locked(&self.state).pending.is_empty()
    }

    /// Appends requests that were taken in this order, and answers what can be. Returns the number of the first one.
    pub fn append(&self, taken: &[Taken], vring: &Vring) -> u64 {
        let mut state = locked(&self.state);
        let number = state.first + state.pending.len() as u64;
        state.pending.extend(taken);
        Self::answer(&mut state, vring);
        number
    }

    /// A worker is done with a request.
    pub fn finish(&self, number: u64, written: u32, vring: &Vring) {
        let mut state = locked(&self.state);
        let at = usize::try_from(number.saturating_sub(state.first)).unwrap_or(usize::MAX);
        if let Some(taken) = state.pending.get_mut(at) {
            taken.done = Some(written);
        }
        Self::answer(&mut state, vring);
        if state.pending.is_empty() {
            self.changed.notify_all();
        }
    }

    fn answer(state: &mut State, vring: &Vring) {
        let ready = state.pending.iter().take_while(|taken| taken.done.is_some()).count();
        if ready == 0 {
            return;
        }
        let mut ring = vring.get_mut();
        for taken in state.pending.drain(..ready) {
            // A ring outside of the guest's memory: nobody can be told.
            if !state.closed {
                let _ = ring.add_used(taken.head, taken.done.unwrap_or_default());
            }
        }
        state.first += ready as u64;
        if !state.closed && ring.needs_notification().unwrap_or(true) {
            let _ = ring.signal_used_queue();
        }
    }

    /// Waits until all that was taken is answered.
    pub fn settle(&self) {
        let mut state = locked(&self.state);
        while state.busy || !state.pending.is_empty() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// From here on nothing is answered; waits until nobody has a request any more.
    pub fn close(&self) {
        locked(&self.state).closed = true;
        self.settle();
    }
}
