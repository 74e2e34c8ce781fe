//! How a device or a file system is offered to other programs.
//!
//! ```text
//! loop_device   the kernel's loop driver: /dev/loopN                 root
//! nbd           a network block device: unix socket, TCP, standard streams   any user
//! vhost_user    a virtio disk of a guest: unix socket          any user
//! ublk          a disk of the kernel, served from user space: /dev/ublkbN    root, or who udev lets
//! fuse          a node file that is a disk; a directory of files     any user
//! counters      what they did, for those who ask
//! copy          one device into another, on several threads
//! registry      what loopbox holds on this machine, and the cleaning up after a crash
//! ```
//! Exports own all threads.

#![forbid(unsafe_code)]

pub mod copy;
pub mod counters;
pub mod fuse;
mod holders;
pub mod loop_device;
pub mod mount_table;
pub mod nbd;
mod pace;
pub mod registry;
pub mod server;
mod socket;
pub mod ublk;
pub mod user;
pub mod vhost_user;
mod workers;

use std::sync::Arc;

use block::{BlockDevice, Result};

fn locked<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A way to offer a device.
pub trait Export {
    /// Offers `device` until the attachment is detached or dropped.
    ///
    /// # Errors
    /// What the kernel, or a missing privilege, said.
    fn attach(&self, device: Arc<dyn BlockDevice>) -> Result<Box<dyn Attachment>>;
}

/// A device that is offered. Dropping it detaches.
pub trait Attachment: Send {
    /// Where: a path or an address.
    fn location(&self) -> String;

    /// Ends the offer: flushes, waits for requests under way, and gives back all that it took.
    ///
    /// # Errors
    /// [`block::Kind::Busy`] while somebody uses it; the failure of the flush.
    fn detach(self: Box<Self>) -> Result<()>;
}
