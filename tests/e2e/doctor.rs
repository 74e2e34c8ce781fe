//! `loopbox doctor` against what the machine really does.

use rig::{User, requires, requires_root};

use crate::session::{Session, program};

fn check(report: &str, name: &str) -> serde_json::Value {
    let report: serde_json::Value = serde_json::from_str(report).unwrap();
    report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap().clone()
}

#[test]
fn user_namespaces_are_as_unshare_finds_them() {
    requires!("unshare");
    let session = Session::new(User::Ordinary, "doctor");
    let unshare = rig::output(session.command("unshare").args(["-U", "-m", "true"])).status.success();
    let report = session.done(["doctor", "--json"]);
    assert_eq!(check(&report, "user namespaces")["works"], unshare);
    let network = rig::output(session.command("unshare").args(["-U", "-n", "true"])).status.success();
    assert_eq!(check(&report, "network namespaces")["works"], network);
    let queue = session.output(["run", "--link", "true"]).status.success();
    assert_eq!(check(&report, "packet queue")["works"], queue);
}

#[test]
fn what_does_not_work_comes_with_a_remedy() {
    for user in [User::Myself, User::Ordinary] {
        let session = Session::new(user, "doctor");
        let report: serde_json::Value = serde_json::from_str(&session.done(["doctor", "--json"])).unwrap();
        for check in report["checks"].as_array().unwrap() {
            assert_eq!(check["works"], check["remedy"].is_null(), "{check}");
            assert!(!check["found"].as_str().unwrap().is_empty(), "{check}");
        }
        let text = session.done(["doctor"]);
        assert!(text.contains("What loopbox can do here"), "{text}");
    }
}

#[test]
fn a_closed_fuse_device_is_found_and_the_remedy_opens_it() {
    requires!("unshare", "setpriv", "mknod");
    requires_root!();
    let session = Session::new(User::Ordinary, "doctor");
    // In a mount namespace of its own, so that the machine's device stays as it is.
    let script = format!(
        "set -e; mount -t tmpfs none {folder}; mknod -m 600 {folder}/fuse c 10 229; mount --bind {folder}/fuse /dev/fuse
         as() {{ setpriv --reuid {user} --regid {user} --clear-groups \"$@\"; }}
         as {program} doctor --json > {out} || true
         chmod 666 /dev/fuse
         as {program} doctor --json > {out}.open || true",
        folder = session.join("dev").display(),
        user = rig::ORDINARY_USER,
        program = program().display(),
        out = session.join("report").display(),
    );
    std::fs::create_dir(session.join("dev")).unwrap();
    rig::run("unshare", ["--mount", "--propagation", "private", "sh", "-c", &script]);
    let closed = check(&std::fs::read_to_string(session.join("report")).unwrap(), "FUSE");
    assert_eq!(closed["works"], false, "{closed}");
    assert_eq!(closed["remedy"], "as root: chmod 666 /dev/fuse", "{closed}");
    let open = check(&std::fs::read_to_string(session.join("report.open")).unwrap(), "FUSE");
    assert_eq!(open["works"], true, "{open}");
}
