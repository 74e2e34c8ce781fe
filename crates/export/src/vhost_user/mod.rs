//! The disk as a virtio block device of a guest, over vhost-user: the guest's memory is mapped here, and its requests
//! are taken from its queues without the hypervisor in between.
//!
//! ```text
//! server   listening; one hypervisor at a time
//! device   what the device is (features, configuration), and its threads: a queue is emptied, batch by batch
//! lane     answers of one queue, given in the order of its requests
//! request  a chain of descriptors becomes a request, and is done
//! ```
//!
//! **Batches.** A thread takes all requests that a queue holds, does what is in the page cache itself, hands over what
//! would wait for the disk, and tells the guest once. Then it looks again for a few microseconds before it sleeps, so
//! that a busy guest need not wake it. Of a long batch the first half is answered while the second is done; of several
//! large reads, which are nothing but copying, a worker does every other one where a processor is free for it.
//!
//! **In order.** Answers are given in the order of the requests. So what the guest has been answered is the beginning
//! of what it has asked for, and a hypervisor whose loopbox was killed knows where the next one has to go on: with the
//! first request that has no answer. Doing a request twice does no harm; losing one does.
//!
//! Sources: the vhost-user protocol of QEMU (docs/interop/vhost-user.rst); virtio 1.2, sections 2.7 (split virtqueues)
//! and 5.2 (block device).

mod device;
mod lane;
mod request;
mod server;
#[cfg(test)]
mod tests;

pub use server::{Ending, Server};

/// Most queues: a guest takes one a processor.
pub const QUEUES_MAX: usize = 64;
/// Most requests of a queue.
pub const QUEUE_SIZE_MAX: usize = 1024;
/// Bytes of a name that a guest is told (VIRTIO_BLK_ID_BYTES).
pub const ID_BYTES: usize = 20;
/// A sector, whatever the blocks of the disk are.
const SECTOR_BYTES: u64 = 512;

type Memory = vm_memory::GuestMemoryMmap<()>;
type SharedMemory = vm_memory::GuestMemoryAtomic<Memory>;
type Vring = vhost_user_backend::VringMutex<SharedMemory>;
