//! `loopbox serve --vhost-user` and a guest of QEMU, whose kernel has the disk as /dev/vda.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Stdio};

use rig::guest::Guest;
use rig::{User, requires, requires_guest, run_command, wait_until};

use crate::session::Session;

const MIB: u64 = 1 << 20;

/// A server in the foreground; killed when dropped.
struct Server(Child);

impl Server {
    fn start(session: &Session, words: &[&str]) -> Self {
        let mut command = session.loopbox();
        command.current_dir(session.join(".")).args(["serve", "--vhost-user", "./vhost.sock"]).args(words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.trim().ends_with("/vhost.sock"), "{said}{:?}", Self(child).said());
        Self(child)
    }

    fn said(&mut self) -> String {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    /// Asks it to end; what it said on standard error.
    fn end(mut self) -> String {
        run_command(std::process::Command::new("kill").arg(self.0.id().to_string()));
        assert!(self.0.wait().unwrap().success());
        self.said()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn guest(session: &Session, queues: u32) -> Guest {
    let socket = session.join("vhost.sock");
    let chardev = format!("socket,id=disk,path={},reconnect=1", socket.display());
    let device = format!("vhost-user-blk-pci,chardev=disk,num-queues={queues}");
    let guest =
        Guest::new().shared_memory().processors(2).module("virtio_blk").patience(std::time::Duration::from_secs(400));
    guest.argument(["-chardev", &chardev, "-device", &device])
}

/// Bytes that are nowhere the same.
fn fill(image: &Path, size: u64) {
    let file = std::fs::File::create(image).unwrap();
    for piece in 0..size / 8192 {
        let bytes: Vec<u8> = (0..1024_u64).flat_map(|n| ((piece << 20) | n).to_le_bytes()).collect();
        file.write_all_at(&bytes, piece * 8192).unwrap();
    }
}

#[test]
fn a_guest_mounts_writes_discards_and_reads_back() {
    requires_guest!();
    requires!("mkfs.ext4", "e2fsck", "qemu-img");
    let session = Session::new(User::Ordinary, "vhost-guest");
    let disk = session.join("disk.img");
    for format in ["raw", "qcow2"] {
        let _ = std::fs::remove_file(&disk);
        let raw = session.join("raw.img");
        run_command(session.command("truncate").arg("--size=64M").arg(&raw));
        run_command(session.command("mkfs.ext4").args(["-q", "-F"]).arg(&raw));
        run_command(session.command("qemu-img").args(["convert", "-f", "raw", "-O", format]).arg(&raw).arg(&disk));
        let server = Server::start(&session, &["disk.img", "--name", "a disk of loopbox"]);
        let script = "set -e
            cat /sys/block/vda/serial; echo; cat /sys/block/vda/size; ls /sys/block/vda/mq | wc -l
            cat /sys/block/vda/ro /sys/block/vda/cache_type /sys/block/vda/queue/discard_max_bytes
            mount -t ext4 -o discard /dev/vda /mnt
            dd if=/dev/urandom of=/mnt/one bs=64k count=160 2>/dev/null
            cp /mnt/one /mnt/two; mkdir /mnt/folder; echo hello > /mnt/folder/file
            (dd if=/mnt/one of=/mnt/three bs=4k oflag=direct 2>/dev/null) & (cp /mnt/two /mnt/four) & wait
            sync; echo 3 > /proc/sys/vm/drop_caches
            cmp /mnt/one /mnt/two; cmp /mnt/one /mnt/three; cmp /mnt/one /mnt/four
            rm /mnt/two /mnt/three; sync; fstrim -v /mnt > /dev/null; cmp /mnt/one /mnt/four
            sha256sum < /mnt/one; umount /mnt";
        let done = guest(&session, 2).module("crc32c_generic").module("ext4").run(script);
        assert_eq!(done.status, 0, "{format}: {done}");
        let lines: Vec<&str> = done.output.lines().collect();
        let facts = ["a disk of loopbox", "131072", "2", "0", "write back", "1073741824"];
        assert_eq!(lines[..6], facts, "{format}: {done}");
        let sum = lines[6].split_whitespace().next().unwrap();
        assert_eq!(server.end(), "", "{format}");
        // What was written is in the image, and what was discarded is not.
        run_command(session.command("qemu-img").args(["convert", "-f", format, "-O", "raw"]).arg(&disk).arg(&raw));
        run_command(session.command("e2fsck").args(["-f", "-n"]).arg(&raw));
        let mut cat = session.loopbox();
        cat.arg("cat").arg(format!("{}:/one", disk.display()));
        let bytes = rig::output(&mut cat).stdout;
        assert_eq!(bytes.len() as u64, 10 * MIB, "{format}");
        let copy = session.join("one");
        std::fs::write(&copy, bytes).unwrap();
        assert!(run_command(std::process::Command::new("sha256sum").arg(&copy)).starts_with(sum), "{format}");
        let map = run_command(session.command("qemu-img").args(["map", "--output=json", "-f", "raw"]).arg(&raw));
        assert!(map.contains("\"data\": false"), "{format}: {map}");
    }
}

#[test]
fn a_guest_boots_from_it_and_zeroes_what_it_is_told_to() {
    requires_guest!();
    requires!("syslinux", "mcopy", "mkfs.fat", "blkdiscard");
    let session = Session::new(User::Ordinary, "vhost-boot");
    let disk = session.join("disk.img");
    let guest = guest(&session, 2).module("vfat").module("nls_cp437").module("nls_ascii").program("blkdiscard");
    // Behind the file system: 3 MiB, of which the guest zeroes the first and discards the second.
    let script = "set -e
        echo booted; ls /sys/block | grep vd; cat /sys/block/vda/queue/write_zeroes_max_bytes
        mount -t vfat /dev/vda /mnt; ls /mnt | tr A-Z a-z; echo hello > /mnt/ANSWER; umount /mnt
        blkdiscard --zeroout --offset 64MiB --length 1MiB /dev/vda
        blkdiscard --offset 65MiB --length 1MiB /dev/vda
        blockdev --flushbufs /dev/vda";
    guest.make_boot_disk(&disk, script);
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o666)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).read(true).open(&disk).unwrap();
    file.write_all_at(&vec![0xa5; 3 << 20], 64 * MIB).unwrap();
    let server = Server::start(&session, &["disk.img"]);
    let done = guest.run_from_disk();
    assert_eq!(done.status, 0, "{done}");
    let lines: Vec<&str> = done.output.lines().collect();
    assert_eq!(lines[..3], ["booted", "vda", "1073741824"], "{done}");
    assert!(lines.contains(&"vmlinuz") && lines.contains(&"initramfs"), "{done}");
    assert_eq!(server.end(), "");
    let answer = run_command(std::process::Command::new("mtype").arg("-i").arg(&disk).arg("::ANSWER"));
    assert_eq!(answer, "hello\n");
    let mut bytes = vec![1; 3 << 20];
    file.read_exact_at(&mut bytes, 64 * MIB).unwrap();
    assert!(bytes[..2 << 20].iter().all(|byte| *byte == 0));
    assert!(bytes[2 << 20..].iter().all(|byte| *byte == 0xa5));
}

#[test]
fn a_guest_cannot_write_to_a_disk_that_is_only_read() {
    requires_guest!();
    let session = Session::new(User::Ordinary, "vhost-read-only");
    fill(&session.join("disk.img"), MIB);
    let before = std::fs::read(session.join("disk.img")).unwrap();
    let server = Server::start(&session, &["disk.img,ro"]);
    let script = "cat /sys/block/vda/ro
        dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null && exit 1
        dd if=/dev/vda bs=4k skip=3 count=1 2>/dev/null | sha256sum";
    let done = guest(&session, 1).run(script);
    assert_eq!(done.status, 0, "{done}");
    assert!(done.output.starts_with("1\n"), "{done}");
    std::fs::write(session.join("piece"), &before[12288..16384]).unwrap();
    let sum = run_command(std::process::Command::new("sha256sum").arg(session.join("piece")));
    assert_eq!(done.output.lines().nth(1).unwrap().split(' ').next(), sum.split(' ').next());
    drop(server);
    assert!(std::fs::read(session.join("disk.img")).unwrap() == before);
}

#[test]
fn a_guest_goes_on_when_loopbox_was_killed_and_started_again() {
    requires_guest!();
    let session = Session::new(User::Ordinary, "vhost-restart");
    let disk = session.join("disk.img");
    run_command(session.command("truncate").arg("--size=32M").arg(&disk));
    let mut server = Server::start(&session, &["disk.img"]);
    let (file, at) = (std::fs::File::open(&disk).unwrap(), 31 * MIB);
    let progress = || {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        String::from_utf8_lossy(&bytes).trim_end_matches(['\0', '\n']).parse::<u32>().unwrap_or(0)
    };
    let guest = guest(&session, 2);
    let running = std::thread::spawn(move || {
        // Two writers at a time, and the count of rounds where the host sees it; then all is read back.
        guest.run(
            "set -e
            dd if=/dev/urandom of=/pattern bs=64k count=16 2>/dev/null
            for round in $(seq 1 40); do
                (dd if=/pattern of=/dev/vda bs=4k seek=$((round * 64)) count=64 oflag=direct conv=notrunc 2>/dev/null) &
                dd if=/pattern of=/dev/vda bs=64k seek=$((256 + round * 4)) count=4 oflag=direct conv=notrunc \
                    2>/dev/null
                wait
                echo $round | dd of=/dev/vda bs=512 seek=63488 conv=notrunc,sync,fsync 2>/dev/null
            done
            echo 3 > /proc/sys/vm/drop_caches
            for round in $(seq 1 40); do
                dd if=/dev/vda bs=4k skip=$((round * 64)) count=64 2>/dev/null | cmp -n 262144 - /pattern
                dd if=/dev/vda bs=64k skip=$((256 + round * 4)) count=4 2>/dev/null | cmp -n 262144 - /pattern
            done
            echo all there",
        )
    });
    // In the middle of the work: killed, and then asked to end.
    for (round, signal) in [(3, "-KILL"), (12, "-KILL"), (20, "-TERM"), (28, "-KILL")] {
        wait_for("the guest", || progress() >= round || running.is_finished());
        run_command(std::process::Command::new("kill").args([signal, &server.0.id().to_string()]));
        server.0.wait().unwrap();
        server = Server::start(&session, &["disk.img"]);
    }
    let done = running.join().unwrap();
    assert_eq!((done.status, done.output.trim()), (0, "all there"), "{done}");
    assert_eq!(progress(), 40);
    assert_eq!(server.end(), "");
}

/// As [`wait_until`], with the patience that a guest needs.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed().as_secs() < 300, "waited in vain: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn words_that_make_no_sense_for_a_guest_are_refused() {
    let session = Session::new(User::Ordinary, "vhost-words");
    fill(&session.join("disk.img"), MIB);
    let server = Server::start(&session, &["disk.img,ro"]);
    let fails = |words: &[&str], wanted: &str| {
        let mut command = session.loopbox();
        let output = rig::output(command.current_dir(session.join(".")).arg("serve").args(words));
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", rig::text(&output));
        assert!(rig::text(&output).contains(wanted), "{words:?}: {}", rig::text(&output));
    };
    fails(&["disk.img,ro", "--vhost-user", "./vhost.sock"], "another server listens");
    fails(&["disk.img,ro", "b=disk.img,ro", "--vhost-user", "./other.sock"], "one image");
    fails(&["disk.img,ro", "--vhost-user", "./other.sock", "--nbd", "0"], "--nbd");
    std::fs::write(session.join("small.img"), "small").unwrap();
    fails(&["small.img,ro", "--vhost-user", "./other.sock"], "5 bytes");
    // Somebody who only looks, and somebody who speaks something else.
    for words in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096]] {
        let mut stream = std::os::unix::net::UnixStream::connect(session.join("vhost.sock"));
        if rig::is_root() {
            std::io::Write::write_all(stream.as_mut().unwrap(), words).unwrap();
        }
    }
    wait_until("the socket is still there", || session.join("vhost.sock").exists());
    assert!(!server.end().contains("panicked"));
    assert!(!session.join("vhost.sock").exists());
}
