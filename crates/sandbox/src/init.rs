//! Process 1 of the new process namespace: mounts, starts the command, reaps, and dies with the supervisor.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::net::{RecvFlags, SendFlags, recv};
use rustix::process::{Signal, WaitOptions, kill_process, wait};
use sys::namespace::{UnshareFlags, unshare};
use sys::process::{Fork, fork};
use sys::signalfd::SignalFd;

use crate::image::Prepared;
use crate::mounts;
use crate::plan::Step;
use crate::spawn::{Report, Rest};
use crate::stage::Stage;

/// Does the steps and never returns. Whatever happens is told through `control`.
pub(crate) fn main(control: &OwnedFd, signals: &SignalFd, rest: &Rest, images: Vec<Prepared>) -> ! {
    let report = live(control, signals, rest, images);
    let _ = rustix::net::send(control, &report.to_bytes(), SendFlags::NOSIGNAL);
    // The kernel kills all processes of the namespace with its first.
    std::process::exit(0)
}

fn live(control: &OwnedFd, signals: &SignalFd, rest: &Rest, images: Vec<Prepared>) -> Report {
    let failed = |error: &io::Error, step: usize| {
        Report::Failed(error.raw_os_error().unwrap_or(5), u32::try_from(step).unwrap_or(u32::MAX))
    };
    // When the supervisor is gone before this call, the socket is closed, and the next read says so.
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return failed(&error.into(), 0);
    }
    let mut images: Vec<Option<Prepared>> = images.into_iter().map(Some).collect();
    let mut stage = Stage::over_the_machine();
    let mut covers: VecDeque<OwnedFd> = VecDeque::new();
    let mut environment: (bool, &[(OsString, OsString)]) = (false, &[]);
    for (number, step) in rest.steps.iter().enumerate() {
        rest.hold(number);
        let done = match step {
            Step::Environment { alone, variables } => {
                environment = (*alone, variables);
                Ok(())
            }
            Step::File { path, .. } => {
                // All of them are made at once: each time costs an unmount.
                let contents = rest.steps.iter().skip(number).filter_map(|step| match step {
                    Step::File { content, .. } => Some(content.as_str()),
                    _ => None,
                });
                if covers.is_empty() { mounts::covers(&stage, contents).map(|made| covers = made) } else { Ok(()) }
                    .and_then(|()| {
                        let file = covers.pop_front().ok_or(io::ErrorKind::NotFound)?;
                        mounts::cover(&stage, path, &file)
                    })
            }
            Step::Run(command) => {
                drop(images);
                match go(control) {
                    true => return supervise(control, signals, command, environment),
                    false => return Report::Signalled(Signal::KILL.as_raw()),
                }
            }
            other => do_step(other, &mut stage, control, &mut images),
        };
        if let Err(error) = done {
            return failed(&error, number);
        }
    }
    Report::Exited(0)
}

/// Does one of the steps that come before the command. Each image is mounted once, and let go then.
fn do_step(step: &Step, stage: &mut Stage, control: &OwnedFd, images: &mut [Option<Prepared>]) -> io::Result<()> {
    let mut image = |number: usize| {
        images.get_mut(number).and_then(Option::take).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    };
    let told = |number: usize| {
        let report = Report::Mounted(u32::try_from(number).unwrap_or(u32::MAX));
        rustix::net::send(control, &report.to_bytes(), SendFlags::NOSIGNAL)?;
        Ok(())
    };
    match step {
        Step::Mounts => enter_mount_namespace(),
        Step::Stage => stage.begin(),
        Step::Mount(mount) => mounts::files(stage, mount, image(mount.image)?, || told(mount.image)),
        Step::Memory { point, mode } => mounts::memory(stage, point, *mode),
        Step::Dev { all } => mounts::dev(stage, *all),
        Step::Device(device) => mounts::device(stage, device, image(device.image)?, || told(device.image)),
        Step::Bind(bind) => mounts::bind(stage, bind),
        Step::Proc => mounts::proc(stage),
        Step::GuardProc => mounts::guard_proc(stage),
        Step::Seal => mounts::seal(stage),
        Step::Enter => stage.enter(),
        Step::Capabilities => give_up_capabilities(),
        Step::NoNewPrivileges => Ok(rustix::thread::set_no_new_privs(true)?),
        Step::Directory { path, must } => change_directory(path, *must),
        _ => Ok(()),
    }
}

/// Waits until the supervisor lets the command go; false when it is gone.
fn go(control: &OwnedFd) -> bool {
    let mut word = [0; 4];
    loop {
        match recv(control, &mut word, RecvFlags::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok((4, _)) if word == [0; 4] => return true,
            Ok((4, _)) => {}
            _ => return false,
        }
    }
}

fn enter_mount_namespace() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    Ok(())
}

/// Takes all capabilities but those that root needs over files and users of its own out of reach of every program that
/// is run from now on.
fn give_up_capabilities() -> io::Result<()> {
    use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
    const KEPT: CapabilitySet = CapabilitySet::CHOWN
        .union(CapabilitySet::DAC_OVERRIDE)
        .union(CapabilitySet::FOWNER)
        .union(CapabilitySet::FSETID)
        .union(CapabilitySet::KILL)
        .union(CapabilitySet::SETGID)
        .union(CapabilitySet::SETUID)
        .union(CapabilitySet::SETPCAP)
        .union(CapabilitySet::SETFCAP)
        .union(CapabilitySet::NET_BIND_SERVICE)
        .union(CapabilitySet::NET_RAW)
        .union(CapabilitySet::SYS_CHROOT)
        .union(CapabilitySet::AUDIT_WRITE);
    for number in 0..u64::BITS {
        let Some(capability) = CapabilitySet::from_bits(1 << number).filter(|one| !KEPT.contains(*one)) else {
            continue;
        };
        match remove_capability_from_bounding_set(capability) {
            // The kernel has no such capability.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Changes to a folder; without `must`, to the top where it is not there.
fn change_directory(path: &Path, must: bool) -> io::Result<()> {
    match rustix::process::chdir(path) {
        Err(_) if !must => Ok(rustix::process::chdir("/")?),
        other => Ok(other?),
    }
}

fn supervise(
    control: &OwnedFd,
    signals: &SignalFd,
    command: &[OsString],
    (alone, environment): (bool, &[(OsString, OsString)]),
) -> Report {
    let errno = |error: &io::Error| Report::NotStarted(error.raw_os_error().unwrap_or(2));
    let Some((program, arguments)) = command.split_first() else { return Report::NotStarted(2) };
    let child = match fork() {
        Ok(Fork::Parent(child)) => child,
        Ok(Fork::Child) => {
            // The program would inherit the mask.
            let variables = environment.iter().map(|(name, value)| (name, value));
            let run = || {
                let mut command = Command::new(program);
                if alone {
                    command.env_clear();
                }
                command.args(arguments).envs(variables).exec()
            };
            let error = signals.unblock().err().unwrap_or_else(run);
            let _ = rustix::net::send(control, &errno(&error).to_bytes(), SendFlags::NOSIGNAL);
            std::process::exit(127)
        }
        Err(error) => return errno(&error),
    };
    loop {
        let mut files = [PollFd::new(control, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        let _ = poll(&mut files, None);
        let told = !files[0].revents().is_empty();
        // Only that something happened matters: the terminal's signals reach the command themselves.
        while let Ok(Some(_)) = signals.next() {}
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            if pid != child {
                continue;
            }
            if let Some(status) = status.exit_status() {
                return Report::Exited(status);
            }
            if let Some(signal) = status.terminating_signal() {
                return Report::Signalled(signal);
            }
            if let Some(signal) = status.stopping_signal() {
                let _ = rustix::net::send(control, &Report::Stopped(signal).to_bytes(), SendFlags::NOSIGNAL);
            }
        }
        if told {
            let mut word = [0; 4];
            match recv(control, &mut word, RecvFlags::DONTWAIT) {
                Ok((4, _)) => {
                    if let Some(signal) = Signal::from_named_raw(i32::from_ne_bytes(word)) {
                        let _ = kill_process(child, signal);
                    }
                }
                Ok((0, _)) => return Report::Signalled(Signal::KILL.as_raw()),
                _ => {}
            }
        }
    }
}
