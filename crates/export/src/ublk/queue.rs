//! A thread for each queue.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use block::{Error, Kind};
use sys::ublk::{Channel, Info, Queue, Request};

use super::request::{Disk, counted, moves_data};
use crate::counters::Batch;
use crate::locked;
use crate::workers::Workers;

/// Bytes after which results are given back although more requests are there.
const BATCH_BYTES: u64 = 1 << 20;
/// Failures that are told one by one; of a disk that is gone the kernel makes thousands.
const REPORTS_MAX: u64 = 16;

/// What all queues of a device share.
pub struct Shared {
    pub disk: Arc<Disk>,
    pub workers: Workers,
    pub report: Box<dyn Fn(Error) + Send + Sync>,
    pub reports: AtomicU64,
}

impl Shared {
    pub fn report(&self, error: Error) {
        if self.reports.fetch_add(1, Ordering::Relaxed) < REPORTS_MAX {
            (self.report)(error);
        }
    }
}

/// Serves queue `number` until its device is stopped. `ready` is told whether it is served, once.
pub fn serve(
    channel: Arc<Channel>,
    device: &Info,
    number: u16,
    encoded: bool,
    shared: &Arc<Shared>,
    ready: &SyncSender<std::io::Result<()>>,
) {
    // Memory that is needed to write is not made free by writing to this disk: of this thread, and of the workers that it
    // starts, as far as it is allowed to say so.
    let _ = sys::process::set_io_flusher();
    let served = match Queue::new(channel, device, number, encoded) {
        Ok(queue) => {
            let _ = ready.send(Ok(()));
            work(queue, shared)
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    if let Err(error) = served {
        shared.report(Error::io(format!("queue {number} of a disk of the kernel"), error));
    }
}

fn work(mut queue: Queue, shared: &Arc<Shared>) -> std::io::Result<()> {
    let disk = &shared.disk;
    let done: Arc<Mutex<Vec<(Request, i32)>>> = Arc::default();
    let (mut arrived, mut lent) = (Vec::new(), 0_usize);
    while !queue.is_over() {
        queue.wait(&mut arrived)?;
        for (request, result) in std::mem::take(&mut *locked(&done)) {
            lent -= 1;
            queue.commit(request, result)?;
        }
        // Alone, it may wait right here: nobody is held up.
        let alone = arrived.len() == 1 && lent == 0;
        let (mut batch, mut moved, mut begun) = (Batch::default(), 0, Instant::now());
        for mut request in arrived.drain(..) {
            let asked = request.descriptor;
            let quick = !(alone && moves_data(&asked));
            let Some(result) = disk.perform(&asked, request.buffer(), quick, &|error| shared.report(error)) else {
                lent += 1;
                let (shared, done, bell) = (Arc::clone(shared), Arc::clone(&done), queue.bell());
                let give = Arc::clone(&shared);
                give.workers.give(Box::new(move |_| {
                    let begun = Instant::now();
                    let asked = request.descriptor;
                    let report = |error| shared.report(error);
                    let result = shared.disk.perform(&asked, request.buffer(), false, &report);
                    shared.disk.counters.add(counted(&asked), begun.elapsed());
                    // Not quick, it always comes to a result.
                    locked(&done).push((request, result.unwrap_or(-Kind::Io.errno())));
                    bell.ring();
                }));
                continue;
            };
            batch.add(counted(&asked));
            moved += u64::from(asked.sectors) * sys::ublk::SECTOR_BYTES;
            queue.commit(request, result)?;
            if moved >= BATCH_BYTES {
                queue.submit()?;
                disk.counters.add_all(&std::mem::take(&mut batch), begun.elapsed());
                (moved, begun) = (0, Instant::now());
            }
        }
        disk.counters.add_all(&batch, begun.elapsed());
    }
    Ok(())
}
