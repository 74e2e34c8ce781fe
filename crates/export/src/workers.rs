//! Threads that wait for the disk, started when they are needed first.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::locked;

/// How many at the most.
const THREADS_MAX: usize = 16;

/// What a worker does; it is given memory that it may use.
pub type Job = Box<dyn FnOnce(&mut Vec<u8>) + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

/// The threads. Dropping them waits until all jobs are done.
#[derive(Default)]
pub struct Workers {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Workers {
    /// Has a job done: by a thread, or here and now where there is none to be had.
    pub fn give(&self, job: Job) {
        let mut queue = locked(&self.shared.queue);
        queue.jobs.push_back(job);
        let wanted = queue.jobs.len() > queue.idle;
        drop(queue);
        self.shared.arrived.notify_one();
        if wanted && !self.start() {
            // Outside of the lock.
            let job = locked(&self.shared.queue).jobs.pop_front();
            if let Some(job) = job {
                job(&mut Vec::new());
            }
        }
    }

    /// Whether there is a thread at least.
    fn start(&self) -> bool {
        let mut threads = locked(&self.threads);
        if threads.len() < THREADS_MAX {
            let shared = Arc::clone(&self.shared);
            let started = std::thread::Builder::new().name("disk-worker".to_owned()).spawn(move || work(&shared));
            threads.extend(started);
        }
        !threads.is_empty()
    }
}

fn work(shared: &Shared) {
    let mut buffer = Vec::new();
    let mut queue = locked(&shared.queue);
    loop {
        match queue.jobs.pop_front() {
            Some(job) => {
                drop(queue);
                job(&mut buffer);
                queue = locked(&shared.queue);
            }
            None if queue.closed => return,
            None => {
                queue.idle += 1;
                queue = shared.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        locked(&self.shared.queue).closed = true;
        self.shared.arrived.notify_all();
        for thread in locked(&self.threads).drain(..) {
            let _ = thread.join();
        }
    }
}
