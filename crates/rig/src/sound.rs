//! Other sound servers, without hardware: PulseAudio with null sinks, and PipeWire with all that it needs.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Scratch;

/// The null sinks of both: 48 kHz, stereo, 32-bit floats.
pub const SINKS: [&str; 2] = ["A", "B"];

/// A sound server of its own, ended when dropped.
#[derive(Debug)]
pub struct Server {
    children: Vec<Child>,
    address: String,
    begun: Instant,
    /// Time from its start to when it could be connected to.
    pub ready: Duration,
    scratch: Scratch,
}

impl Server {
    /// PulseAudio.
    ///
    /// # Panics
    /// When it does not start.
    pub fn pulseaudio() -> Self {
        let mut server = Self::new("socket");
        let mut words: Vec<String> =
            ["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "--disallow-exit", "-L"]
                .map(str::to_owned)
                .into();
        let socket = server.scratch.join("socket");
        words.push(format!("module-native-protocol-unix auth-anonymous=1 socket={}", socket.display()));
        for sink in SINKS {
            let module = format!("module-null-sink sink_name={sink} rate=48000 channels=2 format=float32le");
            words.extend(["-L".to_owned(), module]);
        }
        server.start("pulseaudio", &words);
        server.wait("PulseAudio");
        server
    }

    /// PipeWire, WirePlumber and pipewire-pulse, on a message bus of their own.
    ///
    /// # Panics
    /// When they do not start.
    pub fn pipewire() -> Self {
        let mut server = Self::new("pulse/native");
        let bus = server.scratch.join("bus");
        let address = format!("--address=unix:path={}", bus.display());
        server.start("dbus-daemon", &["--session", "--nofork", "--nopidfile", "--nosyslog", &address]);
        crate::wait_until("the message bus", || bus.exists());
        server.start("pipewire", &[""; 0]);
        let socket = server.scratch.join("pipewire-0");
        crate::wait_until("PipeWire", || socket.exists());
        server.start("wireplumber", &[""; 0]);
        server.start("pipewire-pulse", &[""; 0]);
        server.wait("pipewire-pulse");
        for sink in SINKS {
            let name = format!("sink_name={sink}");
            server.pactl(&["load-module", "module-null-sink", &name, "rate=48000", "channels=2"]);
        }
        crate::wait_until("the sinks of PipeWire", || {
            let sources = server.pactl(&["list", "short", "sources"]);
            SINKS.iter().all(|sink| sources.contains(&format!("{sink}.monitor")))
        });
        server
    }

    fn new(socket: &str) -> Self {
        let scratch = Scratch::new("sound-server");
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(scratch.path(), private).unwrap();
        let address = format!("unix:{}", scratch.join(socket).display());
        Self { children: Vec::new(), address, begun: Instant::now(), ready: Duration::ZERO, scratch }
    }

    fn start<S: AsRef<std::ffi::OsStr>>(&mut self, program: &str, words: &[S]) {
        let mut command = self.command(program);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.children.push(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}")));
    }

    fn wait(&mut self, what: &str) {
        let socket = self.address.trim_start_matches("unix:");
        crate::wait_until(what, || UnixStream::connect(socket).is_ok());
        self.ready = self.begun.elapsed();
        crate::wait_until(what, || {
            let asked = self.command("pactl").arg("info").output();
            asked.is_ok_and(|output| output.status.success())
        });
    }

    /// A program that comes to this server.
    pub fn command(&self, program: &str) -> Command {
        let folder = self.scratch.path();
        let mut command = Command::new(program);
        command.env("HOME", folder).env("XDG_RUNTIME_DIR", folder).env_remove("PULSE_RUNTIME_PATH");
        command.env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", folder.join("bus").display()));
        command.env("PULSE_SERVER", &self.address).env_remove("PIPEWIRE_REMOTE");
        command
    }

    /// What pactl prints.
    ///
    /// # Panics
    /// When it fails.
    pub fn pactl(&self, words: &[&str]) -> String {
        crate::run_command(self.command("pactl").args(words))
    }

    /// What stands in `PULSE_SERVER`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The processes that it is made of.
    pub fn processes(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    /// A folder that is its own.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
