//! Encrypted images, by an ordinary user: what cryptsetup made is looked into, mounted, attached and served; what loopbox
//! made, cryptsetup opens.

use std::path::Path;

use rig::{User, requires, requires_kernel, requires_root, run_command};

use crate::session::Session;

/// A disk with an encrypted second partition, which holds an ext4: cryptsetup encrypts a plain file where it is.
const DISK: &str =
    "set -e; cd $0; printf 'pass word' > key; printf other > other; mkdir tree mnt; echo hello > tree/hello
    seq 20000 > tree/numbers; truncate -s 12M volume; mke2fs -q -t ext4 -d tree volume 8M
    truncate -s 40M volume; cryptsetup reencrypt --encrypt --batch-mode --type luks2 --key-file key \
        --pbkdf-force-iterations 4 --pbkdf-memory 64 --pbkdf-parallel 1 --resilience none --force-offline-reencrypt \
        --reduce-device-size 28M volume
    truncate -s 64M disk; printf 'start=2048, size=2048\\nstart=8192\\n' | sfdisk --quiet disk
    dd if=volume of=disk bs=1M seek=4 conv=notrunc status=none";

/// Types words at a terminal, each when it is asked for, and prints what the terminal showed.
const TYPE: &str = "import os, pty, sys
pid, fd = pty.fork()
if pid == 0: os.execv(sys.argv[2], sys.argv[2:])
words, shown, before = sys.argv[1].split('|'), b'', b''
while True:
    try: more = os.read(fd, 4096)
    except OSError: break
    if not more: break
    shown, before = shown + more, before + more
    if before.endswith(b': ') and words: before = b''; os.write(fd, words.pop(0).encode() + b'\\n')
sys.stdout.write(shown.decode().replace('\\r', ''))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))";

fn session() -> Session {
    let session = Session::new(User::Ordinary, "luks");
    // cryptsetup locks what it encrypts in a folder of root's.
    run_command(User::Myself.command("sh").args(["-c", DISK]).arg(session.join("")));
    let (uid, gid) = User::Ordinary.ids();
    for name in ["disk", "key", "other", "mnt"] {
        std::os::unix::fs::chown(session.join(name), Some(uid), Some(gid)).unwrap();
    }
    session
}

#[test]
fn an_encrypted_partition_is_looked_into_mounted_attached_and_served() {
    requires_root!();
    requires!("cryptsetup", "sfdisk", "mke2fs", "fusermount3", "nbdcopy");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let session = session();
    let disk = session.join("disk").display().to_string();
    let key = session.join("key").display().to_string();
    let numbers = std::fs::read_to_string(session.join("tree/numbers")).unwrap();

    let said = session.output(["ls", &disk]);
    let said = rig::text(&said);
    assert!(said.contains(&format!("say `{disk},partition=2,luks`")), "{said}");
    assert!(session.done(["info", &disk]).contains("luks 2"), "{}", session.done(["info", &disk]));

    let image = format!("{disk},partition=2,luks,key-file={key}");
    assert_eq!(session.done(["cat", &format!("{image}:/numbers")]), numbers);
    assert_eq!(session.done(["cat", "--key-file", &key, &format!("{disk},partition=2,luks:/hello")]), "hello\n");
    let by_fd = r#"exec "$0" cat "$1,partition=2,luks,key-fd=7:/hello" 7< "$2""#;
    let mut shell = session.command("sh");
    shell.args(["-c", by_fd]).arg(crate::session::program()).args([&disk, &key]);
    assert_eq!(run_command(&mut shell), "hello\n");

    let point = session.join("mnt").display().to_string();
    session.done(["mount", "--user", &image, &point]);
    assert_eq!(run_command(session.command("cat").arg(session.join("mnt/numbers"))), numbers);
    session.done(["umount", &point]);

    // Behind -o the same words mean the same stack, also on top of what the spec says.
    let comma = session.join("a,key").display().to_string();
    std::fs::copy(&key, &comma).unwrap();
    std::os::unix::fs::chown(&comma, Some(User::Ordinary.ids().0), None).unwrap();
    for (image, options) in [
        (disk.clone(), vec![format!("ro,partition=2,luks,key-file={key}")]),
        (format!("{disk},partition=2"), vec!["luks".to_owned(), format!("key-file={}", comma.replace(',', "\\,"))]),
        (format!("{disk},partition=2,luks"), vec![format!("key-file={key},noexec")]),
    ] {
        let options = options.iter().flat_map(|options| ["-o", options]);
        session.done(["mount", "--user"].into_iter().chain(options).chain([&*image, &*point]));
        assert_eq!(run_command(session.command("cat").arg(session.join("mnt/numbers"))), numbers);
        session.done(["umount", &point]);
    }
    let said = session.fails(["mount", "--user", "-o", &format!("partition=2,key-file={key}"), &disk, &point]);
    assert!(said.contains("luks"), "{said}");

    let node = session.done(["attach", "--user", &image]);
    let node = node.trim_end();
    let label = format!("e2label {node} secret && e2fsck -fn {node}");
    run_command(session.command("sh").args(["-c", &label]));
    session.done(["detach", node]);
    let copy = session.join("copy").display().to_string();
    session.done(["serve", &image, "--", "sh", "-c", "nbdcopy \"$uri\" $0", &copy]);
    assert_eq!(run_command(session.command("e2label").arg(&copy)), "secret\n");
    assert_eq!(session.done(["cat", &format!("{copy}:/numbers")]), numbers);
}

#[test]
fn a_passphrase_is_asked_for_and_not_shown() {
    requires_root!();
    requires!("cryptsetup", "sfdisk", "mke2fs", "python3");
    let session = session();
    let image = format!("{},partition=2,luks:/hello", session.join("disk").display());
    let typed = |words: &str| {
        let mut command = session.command("python3");
        command.args(["-c", TYPE, words]).arg(crate::session::program()).args(["cat", &image]);
        rig::output(&mut command)
    };
    let right = typed("wrong|xx\u{15}pass wosd\u{7f}\u{7f}rd");
    let shown = rig::text(&right);
    assert!(right.status.success() && shown.ends_with("\nhello\n"), "{shown}");
    assert!(shown.contains("Passphrase of ") && !shown.contains("wo"), "the passphrase was shown: {shown}");
    assert!(shown.contains("no key available with this passphrase"), "{shown}");
    let wrong = typed("a|b|c|d");
    let shown = rig::text(&wrong);
    assert_eq!(wrong.status.code(), Some(2), "{shown}");
    assert_eq!(shown.matches("Passphrase of ").count(), 3, "{shown}");
    let interrupted = typed("\u{3}");
    assert_eq!(interrupted.status.code(), Some(2), "{}", rig::text(&interrupted));
    let mut nobody = session.command("setsid");
    let nobody = rig::output(nobody.arg("--wait").arg(crate::session::program()).args(["cat", &image]));
    assert!(rig::text(&nobody).contains("say --key-file FILE"), "{}", rig::text(&nobody));
}

#[test]
fn what_loopbox_creates_cryptsetup_opens() {
    requires!("cryptsetup", "mke2fs", "fusermount3");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let session = Session::new(User::Ordinary, "luks");
    let script = "cd $0; printf 'pass word' > key; printf other > other; mkdir tree; echo hello > tree/hello";
    run_command(session.command("sh").args(["-c", script]).arg(session.join("")));
    let path = |name: &str| session.join(name).display().to_string();
    let (image, key, other) = (path("image"), path("key"), path("other"));
    let opens = |key: &str| {
        let mut command = session.command("cryptsetup");
        rig::output(command.args(["open", "--test-passphrase", "--disable-locks", "--key-file", key, &image]))
            .status
            .success()
    };
    let quick = ["--pbkdf-memory", "64", "--pbkdf-parallel", "1"];
    let create = ["create", "--luks2", "--size", "8M", "--label", "tea", "--key-file", &key, &image];
    session.done(create.iter().chain(&quick));
    assert!(opens(&key) && !opens(&other));
    let again = session.output(create);
    assert!(rig::text(&again).contains("exists"), "{}", rig::text(&again));

    let opened = format!("{image},luks,key-file={key}");
    let node = session.done(["attach", "--user", &opened]);
    let mkfs = ["-q", "-t", "ext4", "-d", &path("tree"), node.trim_end()];
    run_command(session.command("mke2fs").args(mkfs));
    session.done(["detach", node.trim_end()]);
    assert_eq!(session.done(["cat", &format!("{opened}:/hello")]), "hello\n");

    let add = ["key", "add", &image, "--key-file", &key, "--new-key-file", &other];
    assert_eq!(session.done(add.iter().chain(&quick)), "slot 1\n");
    assert!(opens(&key) && opens(&other));
    let listed = session.done(["key", "list", &image]);
    assert_eq!(
        listed.lines().collect::<Vec<_>>(),
        ["slot 0  argon2id, 64.0 KiB, 4 passes, 1 lanes", "slot 1  argon2id, 64.0 KiB, 4 passes, 1 lanes"]
    );
    assert!(session.done(["key", "list", "--json", &image]).contains("\"memory_kib\": 64"));
    assert_eq!(session.done(["key", "remove", &image, "--slot", "0", "--key-file", &other]), "slot 0 removed\n");
    assert!(!opens(&key) && opens(&other));
    let last = session.output(["key", "remove", &image, "--key-file", &other]);
    assert!(rig::text(&last).contains("--slot 1 --force"), "{}", rig::text(&last));
    assert!(opens(&other));
    session.done(["key", "remove", &image, "--slot", "1", "--force"]);
    assert!(!opens(&other));
    let nothing = session.output(["cat", &format!("{image},luks,key-file={other}:/hello")]);
    assert!(rig::text(&nothing).contains("nothing opens it"), "{}", rig::text(&nothing));
}
