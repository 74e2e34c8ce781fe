//! The supervisor: does the steps of a plan up to [`Step::Init`], then passes signals on until the command ends.

use std::fs;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use export::counters::Counters;
use net::capture::Capture;
use net::publish::Listening;
use net::{Error, Kind, Result, ResultExt as _};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use sys::namespace::{UnshareFlags, unshare};
use sys::process::{Fork, fork_first};
use sys::signalfd::SignalFd;

use crate::image::{Image, Owners, Prepared};
use crate::init;
use crate::plan::{Identity, LinkOptions, NAME_SERVER, Plan, Step};
use crate::user::{self, Inside};

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Signalled(i32),
    /// It could not be started: the errno.
    NotStarted(i32),
}

/// What process 1 tells the supervisor: a byte for the kind, a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    Exited(i32),
    Signalled(i32),
    Stopped(i32),
    NotStarted(i32),
    /// A step failed; the errno, and which step.
    Failed(i32, u32),
    /// An image is mounted, and wants to be served: which one.
    Mounted(u32),
}

impl Report {
    pub(crate) const BYTES: usize = 12;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let (kind, number, step) = match self {
            Self::Exited(status) => (0, status, 0),
            Self::Signalled(signal) => (1, signal, 0),
            Self::Stopped(signal) => (2, signal, 0),
            Self::NotStarted(errno) => (3, errno, 0),
            Self::Failed(errno, step) => (4u32, errno, step),
            Self::Mounted(image) => (5, 0, image),
        };
        let mut bytes = [0; Self::BYTES];
        let all = kind.to_ne_bytes().into_iter().chain(number.to_ne_bytes()).chain(step.to_ne_bytes());
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = from);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(i32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?));
        let number = word(4)?;
        match word(0)? {
            0 => Some(Self::Exited(number)),
            1 => Some(Self::Signalled(number)),
            2 => Some(Self::Stopped(number)),
            3 => Some(Self::NotStarted(number)),
            4 => Some(Self::Failed(number, word(8)?.cast_unsigned())),
            5 => Some(Self::Mounted(word(8)?.cast_unsigned())),
            _ => None,
        }
    }
}

/// A command that waits to be let go. Dropping it kills it and all that it started.
#[derive(Debug)]
pub struct Running {
    /// Process 1.
    init: Option<Pid>,
    control: OwnedFd,
    signals: SignalFd,
    publish: Vec<Listening>,
    names: Option<(UdpSocket, net::hosts::Hosts)>,
    link: Option<LinkOptions>,
    capture: Option<Capture>,
    link_socket: Option<PathBuf>,
    images: Vec<Prepared>,
    /// Threads whose end makes durable what was written.
    writers: Vec<JoinHandle<block::Result<()>>>,
    steps: Vec<Step>,
}

/// Before which step process 1, or this one, says so and waits for ever: for tests that kill it there.
fn wait_for_ever(step: usize) -> ! {
    eprintln!("held before step {step}");
    loop {
        std::thread::park();
    }
}

/// Does all steps of `plan` but the last, which [`Running::run`] does. The calling process is then in the namespaces
/// itself (but for those of processes and mounts), so that sockets that it opens belong to the private network.
///
/// # Errors
/// [`Kind::Denied`] where the machine forbids a namespace; [`Kind::Busy`] where a published port is taken, or this
/// process has more than one thread; those of the other steps.
pub fn spawn(plan: &Plan, images: Vec<Image>, hold: Option<usize>) -> Result<Running> {
    let signals = SignalFd::new(sys::signalfd::ALL).context(|| "signals")?;
    let mut owners = Owners { real: true, one: (0, 0) };
    let (mut publish, mut names, mut link) = (Vec::new(), None, None);
    for (number, step) in plan.0.iter().enumerate() {
        if hold == Some(number) {
            wait_for_ever(number);
        }
        match step {
            Step::Publish(what) => publish.push(Listening::open(what)?),
            Step::User { identity, uid, gid, subordinate } => {
                let one = if *identity == Identity::Root { (0, 0) } else { (*uid, *gid) };
                let inside = user::enter(one, (*uid, *gid), *subordinate, &signals)?;
                owners = Owners { real: inside == Inside::Several, one };
            }
            Step::Network => enter(UnshareFlags::NEWNET, "new network namespace")?,
            Step::LoopbackUp => net::interface::set_loopback_up()?,
            Step::Sysctl { name, value } => {
                // Where /proc/sys is read-only, ping and low ports need a capability inside: that is all.
                let _ = fs::write(format!("/proc/sys/{name}"), value);
            }
            Step::Link(options) => link = Some(options.clone()),
            Step::Names(hosts) => {
                let socket = UdpSocket::bind((NAME_SERVER, 53)).context(|| format!("listening at {NAME_SERVER}:53"))?;
                names = Some((socket, hosts.clone()));
            }
            Step::Init => {
                let steps: Vec<Step> = plan.0.iter().skip(number).cloned().collect();
                let images = images.into_iter().map(|image| Prepared::new(image, owners));
                let images = images.collect::<block::Result<Vec<_>>>().map_err(of_disk)?;
                return start_init(signals, publish, names, link, images, Rest { steps, first: number, hold });
            }
            Step::Fuse(_) => {}
            _ => break,
        }
    }
    Err(Error::new(Kind::Invalid, "a plan without process 1"))
}

fn enter(flags: UnshareFlags, what: &'static str) -> Result<()> {
    unshare(flags).context(|| what)
}

/// An error of the disk, as one of ours.
fn of_disk(error: block::Error) -> Error {
    let kind = match error.kind() {
        block::Kind::Denied | block::Kind::NotPermitted => Kind::Denied,
        block::Kind::NotFound | block::Kind::NoDevice => Kind::NotFound,
        block::Kind::Busy => Kind::Busy,
        block::Kind::Unsupported => Kind::Unsupported,
        _ => Kind::Io,
    };
    Error::new(kind, "images of the command").with_source(error)
}

/// What is left for process 1.
#[derive(Debug)]
pub(crate) struct Rest {
    /// The steps, from [`Step::Init`] on.
    pub steps: Vec<Step>,
    /// The number of the first of them in the plan.
    pub first: usize,
    /// Before which of them it waits for ever.
    pub hold: Option<usize>,
}

impl Rest {
    /// Waits for ever where that was asked for.
    pub fn hold(&self, step: usize) {
        if self.hold == Some(self.first + step) {
            wait_for_ever(self.first + step);
        }
    }
}

fn start_init(
    signals: SignalFd,
    publish: Vec<Listening>,
    names: Option<(UdpSocket, net::hosts::Hosts)>,
    link: Option<LinkOptions>,
    images: Vec<Prepared>,
    rest: Rest,
) -> Result<Running> {
    let (control, inner) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .context(|| "socket to process 1")?;
    match fork_first().context(|| "new process namespace")? {
        Fork::Child => {
            drop((control, publish, names));
            init::main(&inner, &signals, &rest, images)
        }
        Fork::Parent(init) => Ok(Running {
            init: Some(init),
            control,
            signals,
            publish,
            names,
            link,
            capture: None,
            link_socket: None,
            images,
            writers: Vec::new(),
            steps: rest.steps,
        }),
    }
}

impl Running {
    /// Where the packets of the link are written.
    #[must_use]
    pub fn capture_to(mut self, capture: Option<Capture>) -> Self {
        self.capture = capture;
        self
    }

    /// Where the link can be asked and changed; the path goes away with this.
    #[must_use]
    pub fn link_at(mut self, path: Option<PathBuf>) -> Self {
        self.link_socket = path;
        self
    }

    /// What is done through the images that loopbox serves, by their numbers in the plan.
    pub fn counters(&self) -> Vec<(usize, Arc<Counters>)> {
        let offers = self.images.iter().enumerate().filter_map(|(number, image)| match image {
            Prepared::Offer { offer, .. } => Some((number, offer.counters())),
            Prepared::Loop { .. } => None,
        });
        offers.collect()
    }

    /// Lets the command go, and returns when it has ended. Signals that other processes send to this one are passed on
    /// to it; those of the terminal reach it anyway. When it is stopped, this process stops as well.
    ///
    /// # Errors
    /// Those of the steps that process 1 does.
    pub fn run(mut self) -> Result<Ended> {
        // The link comes first: it takes packets from the moment it is there.
        let mut link = None;
        if let Some(options) = self.link.take() {
            let handle = net::driver::start(options.rules, options.seed, self.capture.take())?;
            if let Some(path) = &self.link_socket {
                net::driver::serve(path, handle.clone())?;
            }
            link = Some(handle);
        }
        for listening in std::mem::take(&mut self.publish) {
            listening.serve()?;
        }
        if let Some((socket, hosts)) = self.names.take() {
            net::names::serve(socket, hosts)?;
        }
        send(&self.control, 0).context(|| "process 1")?;
        loop {
            let mut files = [PollFd::new(&self.control, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            match poll(&mut files, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("waiting for the command", error)),
            }
            let told = !files[0].revents().is_empty();
            while let Some(signal) = self.signals.next().context(|| "signals")? {
                if signal.sent && signal.number != CHILD {
                    // A command that has just ended takes no more signals.
                    let _ = send(&self.control, signal.number);
                }
            }
            if told && let Some(ended) = self.report()? {
                self.images.clear();
                let written = self.writers.drain(..).try_for_each(|thread| {
                    thread.join().unwrap_or_else(|_| Err(block::Error::new(block::Kind::Io, "thread of a disk")))
                });
                if let Some(link) = link {
                    link.finish()?;
                }
                written.map_err(|error| of_disk(error).context("writing the image"))?;
                return Ok(ended);
            }
        }
    }

    fn report(&mut self) -> Result<Option<Ended>> {
        let mut bytes = [0; Report::BYTES];
        let (got, _) = rustix::net::recv(&self.control, &mut bytes, rustix::net::RecvFlags::empty())
            .context(|| "the report of process 1")?;
        let report = bytes.get(..got).and_then(Report::from_bytes);
        let ended = match report {
            Some(Report::Stopped(_)) => {
                let myself = rustix::process::getpid();
                kill_process(myself, Signal::STOP).context(|| "stopping")?;
                return Ok(None);
            }
            Some(Report::Exited(status)) => Ended::Exited(u8::try_from(status & 0xff).unwrap_or(u8::MAX)),
            Some(Report::Signalled(signal)) => Ended::Signalled(signal),
            Some(Report::NotStarted(errno)) => Ended::NotStarted(errno),
            Some(Report::Failed(errno, step)) => {
                self.reap();
                let step = self.steps.get(step as usize);
                let why = step.and_then(|step| step.hint(errno)).map(|hint| format!(" ({hint})"));
                let text = step.map(ToString::to_string).unwrap_or_default() + &why.unwrap_or_default();
                return Err(Error::io(text, std::io::Error::from_raw_os_error(errno)));
            }
            Some(Report::Mounted(image)) => {
                if let Some(Prepared::Offer { offer, .. }) = self.images.get(image as usize) {
                    let thread = offer.serve().map_err(of_disk)?;
                    if offer.writes() {
                        self.writers.push(thread);
                    }
                }
                return Ok(None);
            }
            // Process 1 is gone without a word: killed from outside.
            None => Ended::Signalled(KILL),
        };
        self.reap();
        Ok(Some(ended))
    }

    fn reap(&mut self) {
        if let Some(init) = self.init.take() {
            while let Err(rustix::io::Errno::INTR) = waitpid(Some(init), WaitOptions::empty()) {}
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(path) = &self.link_socket {
            let _ = fs::remove_file(path);
        }
        if let Some(init) = self.init {
            let _ = kill_process(init, Signal::KILL);
            self.reap();
        }
    }
}

const CHILD: i32 = Signal::CHILD.as_raw();
const KILL: i32 = Signal::KILL.as_raw();

/// A number for process 1: 0 to let the command go, else a signal for it.
fn send(control: impl AsFd, number: i32) -> rustix::io::Result<()> {
    rustix::net::send(control, &number.to_ne_bytes(), rustix::net::SendFlags::NOSIGNAL).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_the_socket() {
        let all =
            [Report::Exited(3), Report::Signalled(9), Report::Stopped(19), Report::NotStarted(2), Report::Failed(1, 7)];
        for report in all {
            assert_eq!(Report::from_bytes(&report.to_bytes()), Some(report));
        }
        assert_eq!(Report::from_bytes(&[9; 12]), None);
        assert_eq!(Report::from_bytes(&[]), None);
    }
}
