//! When a thread gets the processor: sched_setattr(2).

use std::io;

/// `struct sched_attr` of linux/sched/types.h, in its first version.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// `SCHED_FLAG_RESET_ON_FORK`: what this thread starts does not inherit it.
const RESET_ON_FORK: u64 = 1;

/// The calling thread goes before all ordinary ones, and takes turns with others of its priority (1 to 99): `SCHED_RR`.
/// What it starts is ordinary again.
///
/// # Errors
/// `EPERM` without `CAP_SYS_NICE` and with a smaller `RLIMIT_RTPRIO`.
pub fn set_round_robin(priority: u32) -> io::Result<()> {
    set(Attributes { policy: libc::SCHED_RR as u32, flags: RESET_ON_FORK, priority, ..Attributes::default() })
}

/// The calling thread, an ordinary one, is given the processor for `nanos` at a time (100,000 to 100,000,000): the less
/// that is, the sooner its turn comes. Its niceness stays. Kernels before 6.12 take no notice.
///
/// # Errors
/// What the kernel said.
pub fn set_slice(nanos: u64) -> io::Result<()> {
    let nice = rustix::process::getpriority_process(None)?;
    set(Attributes { policy: libc::SCHED_OTHER as u32, nice, runtime: nanos, ..Attributes::default() })
}

fn set(attributes: Attributes) -> io::Result<()> {
    let attributes = Attributes { size: size_of::<Attributes>() as u32, ..attributes };
    // SAFETY: the structure is whole, says how large it is, and is only read; 0 is the calling thread.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Policy and priority in /proc/thread-self/stat.
    fn policy() -> (u32, u32) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        (fields[38].parse().unwrap(), fields[37].parse().unwrap())
    }

    #[test]
    fn a_thread_goes_before_others_where_it_may() {
        std::thread::spawn(|| {
            set_slice(500_000).unwrap();
            assert_eq!(policy(), (0, 0));
            match set_round_robin(5) {
                Ok(()) => {
                    assert_eq!(policy().0 & 0xff, libc::SCHED_RR as u32);
                    assert_eq!(policy().1, 5);
                    std::thread::spawn(|| assert_eq!(policy(), (0, 0))).join().unwrap();
                }
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
            }
        })
        .join()
        .unwrap();
    }
}
