//! The peers that tests compare with, and the ordinary user that runs half of them.

use std::process::Command;

use crate::shell::{self, Result, is_root, succeeds};

/// Debian packages, with what each is for.
const PACKAGES: &[(&str, &str)] = &[
    ("acl", "setfacl: access control lists as others set them"),
    ("alsa-utils", "aplay, arecord"),
    ("attr", "getfattr, setfattr: extended attributes as others see them"),
    ("binutils", "strip: a program that a guest keeps in memory"),
    ("bsdextrautils", "tools that tests call"),
    ("btrfs-progs", "mkfs.btrfs"),
    ("bubblewrap", "bwrap: sandboxes as others start them"),
    ("busybox-static", "the programs of a guest; httpd"),
    ("chromium", "a real browser"),
    ("cryptsetup-bin", "encrypted volumes, made and opened"),
    ("cups-daemon", "a real server"),
    ("curl", "HTTP as a client sees it"),
    ("dbus", "dbus-daemon: a message bus for PipeWire"),
    ("debootstrap", "Debian's own root"),
    ("dnsmasq-base", "a real server"),
    ("dosfstools", "mkfs.fat, fsck.fat"),
    ("e2fsprogs", "mkfs.ext4, e2fsck, debugfs"),
    ("erofs-utils", "mkfs.erofs"),
    ("espeak-ng", "a program that speaks"),
    ("exfat-fuse", "exFAT as another one writes it"),
    ("exfatprogs", "mkfs.exfat, fsck.exfat"),
    ("f2fs-tools", "mkfs.f2fs"),
    ("fdisk", "sfdisk: partition tables"),
    ("ffmpeg", "sound played and recorded as a stream"),
    ("firefox-esr", "another real browser"),
    ("fio", "load on a device, verified"),
    ("fuse3", "fusermount3: mounts of an ordinary user"),
    ("genisoimage", "ISO images, mkzftree"),
    ("genromfs", "romfs images"),
    ("gstreamer1.0-plugins-base", "sound of GStreamer"),
    ("gstreamer1.0-pulseaudio", "GStreamer's way to PulseAudio"),
    ("gstreamer1.0-tools", "gst-launch-1.0"),
    ("iperf3", "throughput as others measure it"),
    ("iproute2", "ip, ss: the interface and its sockets as others show them"),
    ("iputils-ping", "ping"),
    ("kmod", "depmod: modules of a guest"),
    ("knot-dnsutils", "kdig: DNS as a client sees it"),
    ("libarchive-tools", "bsdtar: archives as others read them"),
    ("libasound2-dev", "ALSA for cpal, which a peer is built with"),
    ("libasound2-plugins", "ALSA's way to PulseAudio"),
    ("libnbd-bin", "nbdinfo, nbdcopy: clients of network block devices"),
    ("libsox-fmt-pulse", "sox's way to PulseAudio"),
    ("mplayer", "a player by PulseAudio"),
    ("mpv", "a player by PulseAudio"),
    ("mtools", "mcopy: files into FAT images"),
    ("nbdkit", "its filters: compressed images as another server reads them"),
    ("net-tools", "ifconfig"),
    ("nftables", "nft: refusals, for ping"),
    ("nginx-light", "a real server"),
    ("ntfs-3g", "mkntfs, ntfscp, ntfs-3g"),
    ("openssh-client", "ssh"),
    ("openssh-server", "a real server"),
    ("openssl", "certificates as others make them"),
    ("p7zip-full", "7z: archives and images as another one reads them"),
    ("parted", "partition tables"),
    ("pigz", "gzip by several threads"),
    ("pixz", "xz files of many blocks"),
    ("postgresql-15", "a real server, and pgbench"),
    ("pipewire", "another sound server"),
    ("pipewire-bin", "pw-loopback"),
    ("pipewire-pulse", "PipeWire's way to PulseAudio's clients"),
    ("pkg-config", "where cpal finds ALSA"),
    ("pulseaudio", "another sound server"),
    ("pulseaudio-utils", "pactl, paplay, parec"),
    ("python3", "a terminal that types"),
    ("python3-pyaudio", "PortAudio by ALSA"),
    ("python3-libnbd", "nbdsh: single requests of a client"),
    ("qemu-system-x86", "guests with a kernel of their own"),
    ("qemu-utils", "qemu-img, qemu-io"),
    ("redis-server", "a real server, and redis-benchmark"),
    ("sox", "sound played and recorded"),
    ("squashfs-tools", "mksquashfs"),
    ("squashfuse", "squashfs images as others mount them"),
    ("syslinux", "a disk that a guest boots from"),
    ("systemd-container", "systemd-nspawn"),
    ("tabix", "bgzip: gzip files of many members"),
    ("tshark", "captures as others read them"),
    ("udftools", "mkudffs"),
    ("uidmap", "newuidmap: several users in a namespace of an ordinary one"),
    ("util-linux", "losetup, setpriv, unshare, blkid"),
    ("wireplumber", "what links the streams of PipeWire"),
    ("xfsprogs", "mkfs.xfs"),
    ("xorriso", "ISO images"),
    ("xz-utils", "xz: compressed images, modules of a guest"),
    ("zstd", "compressed images"),
];

/// The ordinary user of the tests; the rig has the same name.
const ORDINARY_USER: &str = "loopbox-test";

/// Installs what is missing, and says so.
pub fn install(packages: &[&str]) -> Result {
    // Twice: what is installed may take away another version of something that was there.
    for _ in 0..2 {
        let missing = missing(packages);
        if missing.is_empty() {
            return Ok(());
        }
        eprintln!("xtask: installing what the tests compare with: {}", missing.join(" "));
        shell::run(&mut privileged("apt-get", &["update", "-qq"])?)?;
        let words = [&["install", "-y", "-qq", "--no-install-recommends"], &missing[..]].concat();
        // RUNLEVEL: servers among them are not started (invoke-rc.d); tests start their own.
        shell::run(privileged("apt-get", &words)?.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1"))?;
    }
    match missing(packages) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(format!("these packages take each other away: {}", missing.join(" "))),
    }
}

fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let installed = |package: &&str| {
        let query = Command::new("dpkg-query").args(["-W", "-f=${Status}", package]).output();
        query.is_ok_and(|output| output.stdout.ends_with(b"ok installed"))
    };
    packages.iter().copied().filter(|package| !installed(package)).collect()
}

/// Packages, user, and an open /dev/fuse as ordinary distributions have it.
pub fn run() -> Result {
    let packages: Vec<&str> = PACKAGES.iter().map(|(package, _)| *package).collect();
    install(&packages)?;
    if !is_root() {
        return Ok(());
    }
    if !succeeds("id", &[ORDINARY_USER]) {
        shell::run(Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", ORDINARY_USER]))?;
    }
    for (device, why) in [("/dev/fuse", "FUSE"), ("/dev/net/tun", "TUN")] {
        use std::os::unix::fs::PermissionsExt as _;
        let Ok(meta) = std::fs::metadata(device) else { continue };
        if meta.permissions().mode() & 0o666 != 0o666 {
            eprintln!(
                "xtask: opening {device} to all users, as ordinary distributions do ({why} of the ordinary user)"
            );
            std::fs::set_permissions(device, std::fs::Permissions::from_mode(0o666))
                .map_err(|error| format!("{device}: {error}"))?;
        }
    }
    Ok(())
}

fn privileged(program: &str, words: &[&str]) -> Result<Command> {
    if is_root() {
        let mut command = Command::new(program);
        command.args(words);
        return Ok(command);
    }
    if succeeds("sudo", &["-n", "true"]) {
        let mut command = Command::new("sudo");
        command.arg("-n").arg(program).args(words);
        return Ok(command);
    }
    Err(format!("no root and no sudo; ask an administrator to run: {program} {}", words.join(" ")))
}
