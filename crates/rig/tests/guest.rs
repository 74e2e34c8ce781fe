//! The guest itself: modules, programs, files, disks and what comes back.

use loopbox_rig as rig;
use rig::guest::Guest;

#[test]
fn a_guest_has_what_it_is_given_and_gives_back_what_it_made() {
    rig::requires_guest!();
    rig::requires!("tc");
    let scratch = rig::Scratch::new("guest-test");
    let (image, note) = (scratch.join("image"), scratch.join("note"));
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    std::fs::write(&note, "brought along\n").unwrap();
    let script = "cat /etc/note; tc qdisc add dev lo root netem delay 10ms || exit 1
        ping -c 2 127.0.0.1 | sed -n 's/.*received, //p'
        printf 'written by the guest' | dd of=/dev/vda conv=fsync 2>/dev/null
        ip -o -4 addr show dev eth0; exit 7";
    let guest = Guest::new().module("sch-netem").program("tc").file(&note, "/etc/note").disk(&image).network();
    let done = guest.run(script);
    assert_eq!(done.status, 7, "{done}");
    assert!(done.output.starts_with("brought along\n0% packet loss\n"), "{done}");
    assert!(done.output.contains("10.0.2.15"), "{done}");
    assert!(std::fs::read(&image).unwrap().starts_with(b"written by the guest"));
}
