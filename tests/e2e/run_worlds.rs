//! `loopbox run` with real worlds inside: Debian's own root, PostgreSQL, sound, and a hundred side by side.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rig::{User, requires, requires_kernel};
use rustix::fs::{FlockOperation, flock};

use crate::run_files::{Guard, SYSTEM, ext4, point, spec, squashfs};
use crate::session::Session;

/// A minimal Debian as squashfs and as ext4, made once on a machine (some minutes) and kept.
fn debian() -> PathBuf {
    let folder = PathBuf::from("/var/tmp/loopbox-test-debian");
    std::fs::create_dir_all(&folder).unwrap();
    let lock = std::fs::File::create(folder.join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    if !folder.join("root.ext4").exists() {
        let script = "cd $0; rm -rf tree root.*; debootstrap --variant=minbase bookworm tree >log 2>&1
            rm -rf tree/var/cache/apt/archives/*.deb; mksquashfs tree root.squashfs -quiet -no-progress -comp zstd
            truncate -s 512M new.ext4; mke2fs -q -t ext4 -d tree new.ext4; rm -rf tree; mv new.ext4 root.ext4";
        rig::run("sh", ["-euc", script, folder.to_str().unwrap()]);
    }
    folder
}

#[test]
fn debian_installs_a_package_inside() {
    requires!("debootstrap", "mksquashfs", "mke2fs", "newuidmap");
    rig::requires_root!();
    requires_kernel!(Path::new("/dev/fuse").exists() && rig::have_filesystem("overlay"), "FUSE or overlayfs");
    let folder = debian();
    let script = "mkdir -p /tmp/p/DEBIAN /tmp/p/opt/inside
        printf 'Package: inside\\nVersion: 1\\nArchitecture: all\\nMaintainer: a <a@b>\\nDescription: a\\n' >/tmp/p/DEBIAN/control
        printf '#!/bin/sh\\nset -e\\nadduser --system --quiet --group --home /opt/inside inside\\nchown inside: /opt/inside/file\\n' \
            >/tmp/p/DEBIAN/postinst; chmod 755 /tmp/p/DEBIAN/postinst; echo works >/tmp/p/opt/inside/file
        dpkg-deb --build /tmp/p /tmp/inside.deb >/dev/null; apt-get install -qq -y /tmp/inside.deb >/tmp/log 2>&1 || cat /tmp/log
        dpkg --audit; su inside -s /bin/sh -c 'id -un; cat ~/file'; stat -c %U /opt/inside/file; dpkg --verify base-files";
    for (user, image) in [(User::Ordinary, "root.squashfs"), (User::Myself, "root.ext4")] {
        let session = Session::new(user, "run-debian");
        let changes = format!("{},overlay={}", folder.join(image).display(), session.join("changes").display());
        let root = ["run", "--root", &changes, "--", "sh", "-euc"];
        assert_eq!(session.done([&root[..], &[script]].concat()), "inside\nworks\ninside\n", "{user:?}");
        assert_eq!(
            session.done([&root[..], &["dpkg -s inside | grep Status"]].concat()),
            "Status: install ok installed\n"
        );
        // Those of other users belong to numbers of its own outside.
        let delete =
            ["run", "--as", "root", "--net", "host", "--", "rm", "-rf", session.join("changes").to_str().unwrap()]
                .map(str::to_owned);
        session.done(delete);
    }
    // As ext4 for the ordinary user, and in the image's own root for a look.
    let session = Session::new(User::Ordinary, "run-debian");
    let said =
        session.done(["run", "--root", folder.join("root.ext4").to_str().unwrap(), "--", "apt-cache", "policy", "apt"]);
    assert!(said.contains("Installed: 2."), "{said}");
}

/// Where Debian keeps PostgreSQL's programs.
fn postgresql() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("pgbench").exists()).max()
}

#[test]
fn postgresql_lives_on_an_image_over_a_slow_link_and_survives_a_kill() {
    requires!("mkfs.ext4", "tshark", "setpriv");
    let Some(bin) = postgresql() else {
        assert!(!rig::strict(), "needs PostgreSQL's pgbench (Debian: postgresql)");
        return;
    };
    requires_kernel!(Path::new("/dev/fuse").exists() && rig::have_filesystem("overlay"), "FUSE or overlayfs");
    // As an ordinary user with changes beside the image; by root, the server as another user, in the image itself.
    for user in [User::Ordinary, User::Myself] {
        let session = Session::new(user, "run-postgres");
        let (image, place) = (session.join("data.img"), point(&session, "data"));
        rig::run_command(session.command("truncate").arg("--size=192M").arg(&image));
        rig::run_command(session.command("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        let changes = match user {
            User::Ordinary => format!(",overlay={}", session.join("changes").display()),
            User::Myself => String::new(),
        };
        let mount = spec(&image, &format!("{changes}:{}", place.display()));
        // The server refuses root.
        let script = "cd $DATA; if test $(id -u) = 0; then mkdir -p own; chown $SERVER own
                exec setpriv --reuid $SERVER --regid $SERVER --clear-groups sh -euc \"$INNER\"; fi; mkdir -p own; exec sh -euc \"$INNER\"";
        let begin = "cd own; test -e db || initdb -D db -A trust -U bench --no-sync >/dev/null
            postgres -D db -k $PWD -c listen_addresses=127.0.0.1 -c max_connections=10 >>log 2>&1 &
            until psql -h 127.0.0.1 -U bench -Atc 'select 1' postgres >/dev/null 2>&1; do sleep 0.1; done;";
        let command = |inner: &str, options: &[&str]| {
            let mut command = session.loopbox();
            command.args(["run", "--mount", &mount]).args(options).args(["--", "sh", "-euc", script]);
            command.env("DATA", &place).env("SERVER", rig::ORDINARY_USER).env("INNER", format!("{begin}{inner}"));
            command.env("PATH", format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", bin.display()));
            command
        };
        let capture = session.join("packets.pcapng");
        let bench = "pgbench -h 127.0.0.1 -U bench -i -q postgres >/dev/null 2>&1
            echo 'select 1' >one; pgbench -h 127.0.0.1 -U bench -n -t 20 -f one postgres | grep 'latency average'
            pg_ctl -D db -m fast -w stop >/dev/null";
        let said = rig::run_command(&mut command(bench, &["--latency", "2ms", "--capture", capture.to_str().unwrap()]));
        let average: f64 = said.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
        assert!((4.0..200.0).contains(&average), "2 ms each way: {said}");
        let shown = rig::run_command(session.command("tshark").arg("-r").arg(&capture).args([
            "-Y",
            "pgsql.query",
            "-d",
            "tcp.port==5432,pgsql",
        ]));
        assert!(shown.lines().count() >= 20, "{shown}");

        // Each number that was said to be committed is there after the kill.
        let write = "psql -h 127.0.0.1 -U bench -qc 'create table n (n int)' postgres
            for n in $(seq 100000); do psql -h 127.0.0.1 -U bench -qc \"insert into n values ($n)\" postgres; echo $n; done";
        let mut child = Guard(command(write, &[]).stdout(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let mut last = 0;
        while last < 5 {
            last = lines.next().unwrap().unwrap().parse().unwrap();
        }
        drop(child);
        let last = lines.map_while(Result::ok).filter_map(|line| line.parse::<u32>().ok()).last().unwrap_or(last);
        let image = image.to_str().unwrap();
        rig::wait_until("the image is let go", || {
            !rig::run("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"]).contains(image)
        });
        let read = "psql -h 127.0.0.1 -U bench -Atc 'select count(*) from n' postgres; grep -c 'database system was not properly shut down' log
            pg_ctl -D db -m fast -w stop >/dev/null";
        let said = rig::run_command(&mut command(read, &[]));
        let numbers: Vec<u32> = said.lines().map(|line| line.parse().unwrap()).collect();
        assert!(numbers[0] >= last && numbers[0] <= last + 1 && numbers[1] == 1, "{last}: {said}");
    }
}

#[test]
fn in_a_root_of_its_own_a_program_plays_and_another_records() {
    requires!("mksquashfs", "paplay", "parec");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    for user in [User::Ordinary, User::Myself] {
        let session = Session::new(user, "run-sound");
        let root = squashfs(&session, "root", SYSTEM);
        let noise = rig::noise(192_000);
        std::fs::write(session.join("in.raw"), &noise).unwrap();
        let bind = format!("{}:/srv", session.join("").display());
        let script = "parec --raw --rate=48000 --latency-msec=50 >/srv/recorded & until test -s /srv/recorded; do sleep 0.05; done; paplay --raw --rate=48000 /srv/in.raw
            until test $(stat -c %s /srv/recorded) -gt 300000; do sleep 0.05; done; kill $!";
        let wav = session.join("out.wav");
        let words = [
            "run",
            "--root",
            root.to_str().unwrap(),
            "--bind",
            "/usr,ro",
            "--bind",
            &bind,
            "--sound",
            wav.to_str().unwrap(),
        ];
        session.done([&words[..], &["--", "sh", "-euc", script]].concat());
        let recorded = std::fs::read(session.join("recorded")).unwrap();
        let start = recorded.windows(64).position(|window| window == &noise[..64]).expect("the beginning was recorded");
        // It plays when all of it is there, and the recorder has whatever was played since it came.
        let heard = &recorded[start..];
        let same = heard.iter().zip(&noise).take_while(|(heard, played)| heard == played).count();
        assert_eq!(same, heard.len().min(noise.len()), "the first byte that differs");
        assert!(same > 10_000, "{same} of {} bytes", heard.len());
    }
}

#[test]
fn a_hundred_side_by_side_each_with_its_own_image_and_the_same_port() {
    requires!("mksquashfs", "busybox");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    const MANY: usize = 100;
    let session = Session::new(User::Ordinary, "run-many");
    let place = point(&session, "www");
    let script = format!(
        "busybox httpd -f -p 127.0.0.1:8080 -h {0} & until busybox wget -qO- http://127.0.0.1:8080/page 2>/dev/null; do sleep 0.05; done
         read wait",
        place.display()
    );
    let children: Vec<_> = (0..MANY)
        .map(|number| {
            let image = squashfs(&session, &format!("image{number}"), &format!("echo page of {number} >page"));
            let mount = spec(&image, &format!(":{}", place.display()));
            let mut command = session.loopbox();
            command.args(["run", "--mount", &mount, "--", "sh", "-c", &script]);
            Guard(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
        })
        .collect();
    let mut children: Vec<_> =
        children.into_iter().map(|mut child| (BufReader::new(child.0.stdout.take().unwrap()), child)).collect();
    for (number, (out, _)) in children.iter_mut().enumerate() {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, format!("page of {number}\n"));
    }
    // All of them are there at this moment.
    let list: serde_json::Value = serde_json::from_str(&session.done(["list", "--json"])).unwrap();
    assert_eq!(list["processes"].as_array().unwrap().len(), MANY);
    for (_, child) in &mut children {
        drop(child.0.stdin.take());
    }
    for (_, mut child) in children {
        assert_eq!(child.0.wait().unwrap().code(), Some(1), "read found the end of its input");
    }
}

#[test]
fn top_and_list_show_what_is_held() {
    requires!("mksquashfs", "dd", "ping");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let session = Session::new(User::Ordinary, "run-top");
    let place = point(&session, "place");
    let files = squashfs(&session, "files", "head -c 3000000 /dev/urandom >file");
    let disk = ext4(&session, "disk.img");
    let mount = spec(&files, &format!(":{}", place.display()));
    let script = format!(
        "ping -q -i 0.002 127.0.0.1 >/dev/null & echo ready; while :; do dd if=/dev/loop0 of=/dev/null bs=1M iflag=direct status=none
         dd if=/dev/zero of=/dev/loop0 bs=1M count=1 conv=notrunc,fsync status=none; ls {}/nothing 2>/dev/null || :; done",
        place.display()
    );
    let wav = session.join("out.wav").display().to_string();
    let disk = disk.display().to_string();
    let words =
        ["run", "--mount", &mount, "--device", &disk, "--loss", "20%", "--sound", &wav, "--", "sh", "-c", &script];
    let mut child = Guard(session.loopbox().args(words).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let listed = session.done(["list"]);
    assert!(
        listed.contains("private, link") && listed.contains(&wav) && listed.contains("/dev/loop0 (image)"),
        "{listed}"
    );
    let stream = session.done(["top", "--json", "--count", "2", "--interval", "1"]);
    let looks: Vec<serde_json::Value> = stream.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(looks.len(), 2);
    let items = looks[1]["items"].as_array().unwrap();
    let of =
        |kind: &str| items.iter().find(|item| item["kind"] == kind).unwrap_or_else(|| panic!("no {kind}: {items:?}"));
    let number = |item: &serde_json::Value, name: &str| item[name].as_f64().unwrap();
    let disk = of("disk");
    assert_eq!(disk["name"], "/dev/loop0");
    assert!(number(disk, "read-bytes") > 1e5 && number(disk, "written-bytes") > 1e4, "{disk}");
    assert!(number(disk, "latency-p50-ns") <= number(disk, "latency-p99-ns"), "{disk}");
    assert_eq!(of("mount")["name"], place.to_str().unwrap());
    assert!(number(of("link"), "operations") > 0.0 && number(of("link"), "lost") > 0.0, "{items:?}");
    assert!(number(of("sound"), "peak-db") < -100.0, "silence: {items:?}");
    let once = session.done(["top", "--interval", "0.1"]);
    assert!(once.starts_with("KIND") && once.contains("/dev/loop0"), "{once}");
    rig::run("kill", [child.0.id().to_string()]);
    child.0.wait().unwrap();
    let after = session.done(["list"]);
    assert!(!after.contains(&wav) && !after.contains("(image)") && !after.contains(place.to_str().unwrap()), "{after}");
}
