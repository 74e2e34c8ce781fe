use super::*;

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

fn wrong(text: &str) -> Wrong {
    let error = Spec::parse(text).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    error.find::<Wrong>().unwrap().clone()
}

#[test]
fn steps_come_in_the_order_typed() {
    let spec = Spec::parse(
        "d.img,ro,partition=2,offset=0x200,sizelimit=4KB,overlay,overlay=/tmp/c,format=raw,direct,block=4096",
    );
    assert_eq!(
        spec.unwrap().steps,
        [
            Step::ReadOnly,
            Step::Partition(Selector::Number(2)),
            Step::Offset(512),
            Step::SizeLimit(4000),
            Step::Overlay(None),
            Step::Overlay(Some("/tmp/c".into())),
            Step::Format(Format::Raw),
            Step::Direct,
            Step::Block(4096),
        ]
    );
}

#[test]
fn odd_paths_are_paths() {
    for (text, path) in [
        (&b"a b"[..], &b"a b"[..]),
        (b"a:b", b"a:b"),
        (b"a\\,b", b"a,b"),
        (b"a\\:b", b"a:b"),
        (b"a\\\\,ro", b"a\\"),
        (b"a\\b", b"a\\b"),
        (b"a\\", b"a\\"),
        (b"\xff\xfe=x", b"\xff\xfe=x"),
    ] {
        assert_eq!(Spec::parse(os(text)).unwrap().path, Path::new(os(path)), "{}", text.escape_ascii());
    }
    assert_eq!(wrong(""), Wrong::NoPath);
    assert_eq!(wrong(",ro"), Wrong::NoPath);
    assert_eq!(wrong("a\0b"), Wrong::NulInPath);
}

#[test]
fn partitions_are_named_as_in_fstab() {
    for (value, selector) in [
        ("5", Selector::Number(5)),
        ("LABEL=a\\,b", Selector::Label("a,b".into())),
        ("label=a=b", Selector::Label("a=b".into())),
        ("UUID=1234-ABCD", Selector::Uuid("1234-ABCD".into())),
        ("PARTLABEL=EFI system", Selector::PartLabel("EFI system".into())),
        ("PARTUUID=x", Selector::PartUuid("x".into())),
    ] {
        let spec = Spec::parse(format!("d,partition={value}")).unwrap();
        assert_eq!(spec.steps, [Step::Partition(selector)]);
    }
    for value in ["0", "-1", "x", "LABEL=", "NAME=x", "4294967296"] {
        assert!(matches!(wrong(&format!("d,partition={value}")), Wrong::BadValue { word: "partition", .. }), "{value}");
    }
}

#[test]
fn errors_name_the_word_and_what_is_possible() {
    assert_eq!(wrong("d,partiton=1"), Wrong::UnknownOption { word: "partiton".into(), near: Some("partition") });
    assert_eq!(wrong("d,r0"), Wrong::UnknownOption { word: "r0".into(), near: Some("ro") });
    assert_eq!(wrong("d,frobnicate"), Wrong::UnknownOption { word: "frobnicate".into(), near: None });
    assert!(wrong("d,").to_string().contains("possible: ro, rw, partition,"));
    assert_eq!(wrong("d,ro=1"), Wrong::UnwantedValue { word: "ro", value: "1".into() });
    assert!(matches!(wrong("d,offset"), Wrong::MissingValue { word: "offset", .. }));
    assert!(matches!(wrong("d,offset=12Q"), Wrong::BadValue { word: "offset", .. }));
    assert!(matches!(wrong("d,overlay="), Wrong::MissingValue { word: "overlay", .. }));
    assert!(matches!(wrong("d,block=1024"), Wrong::BadValue { word: "block", .. }));
    assert_eq!(wrong("d,ro,rw"), Wrong::Contradiction("ro", "rw"));
    assert_eq!(wrong(&format!("d{}", ",ro".repeat(STEPS_MAX + 1))), Wrong::TooMany);
}

#[test]
fn sizes_are_those_of_losetup() {
    for (text, bytes) in [
        ("0", Some(0)),
        ("512", Some(512)),
        ("0x1F", Some(31)),
        ("1k", Some(1024)),
        ("1KiB", Some(1024)),
        ("1KB", Some(1000)),
        ("3M", Some(3 << 20)),
        ("2G", Some(2 << 30)),
        ("1T", Some(1 << 40)),
        ("1TB", Some(1_000_000_000_000)),
        ("0.5M", Some(512 << 10)),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        ("16E", None),
        ("15.999999E", Some(18446742920788047009)),
        ("", None),
        ("K", None),
        ("1.5", None),
        (".5K", None),
        ("1.K", None),
        ("1..5K", None),
        ("+1", None),
        ("-1", None),
        ("0x", None),
        ("0x+1", None),
        ("1KBB", None),
        ("1B", None),
        ("1 K", None),
    ] {
        assert_eq!(size_bytes(text), bytes, "{text}");
    }
}

#[test]
fn an_image_and_a_path_inside_are_told_apart() {
    let files = ["d.img", "a:b.img", "c,d.img", "x", "x:y"];
    for (text, image, path) in [
        ("d.img", "d.img", None),
        ("d.img:", "d.img", Some("")),
        ("d.img:/etc/fstab", "d.img", Some("/etc/fstab")),
        ("d.img:/a,b:c", "d.img", Some("/a,b:c")),
        ("d.img,ro:/a:b,c", "d.img,ro", Some("/a:b,c")),
        ("d.img,ro", "d.img,ro", None),
        ("d.img,partition=LABEL=a\\:b:/c", "d.img,partition=LABEL=a\\:b", Some("/c")),
        ("a:b.img:/etc", "a:b.img", Some("/etc")),
        ("a:b.img", "a:b.img", None),
        ("a:b.img,ro", "a:b.img,ro", None),
        ("a:b.img,ro:/x", "a:b.img,ro", Some("/x")),
        ("c\\,d.img:/x", "c\\,d.img", Some("/x")),
        ("x:y", "x:y", None),
        ("x:y:z", "x:y", Some("z")),
        ("x:z", "x", Some("z")),
        ("none:/etc", "none", Some("/etc")),
        ("none\\:/etc", "none\\:/etc", None),
        ("none", "none", None),
        ("none,ro:/etc", "none,ro", Some("/etc")),
    ] {
        let split = split_path(OsStr::new(text), |path| files.iter().any(|file| Path::new(file) == path));
        assert_eq!(split, (OsStr::new(image), path.map(OsStr::new)), "{text}");
    }
}

#[test]
fn what_is_printed_reads_back() {
    // An own generator: texts of the bytes that matter, and every spec that comes out must print and read back.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let pieces: &[&[u8]] = &[
        b",",
        b":",
        b"\\",
        b"=",
        b"a",
        b"\xff",
        b",ro",
        b",partition=",
        b"LABEL=",
        b"UUID=",
        b"1",
        b",offset=",
        b"K",
        b",overlay",
        b"=",
        b",block=512",
        b",format=raw",
        b",direct",
        b".",
        b",sizelimit=9",
    ];
    let mut read = 0;
    for _ in 0..20_000 {
        let mut text = b"p".to_vec();
        for _ in 0..6 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            text.extend_from_slice(pieces[(state % pieces.len() as u64) as usize]);
        }
        crate::spec::fuzz(&text);
        read += usize::from(Spec::parse(os(&text)).is_ok());
    }
    assert!(read > 1000, "only {read} of 20000 texts were specs");
}
