//! GUIDs as the EFI stores them: the first three groups little-endian.

/// The text of a GUID of 16 bytes, lower case; `None` where there are fewer.
pub fn text(bytes: &[u8]) -> Option<String> {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes.first_chunk::<16>()?;
    let mut text = String::with_capacity(36);
    for (at, byte) in [d, c, b, a, f, e, h, g].into_iter().chain(rest).enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Some(text)
}

/// The 16 bytes that a GUID's text stands for; `None` where it is none.
pub fn bytes(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|letter| *letter != '-').collect();
    (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(of_number)
}

/// The 16 bytes of the GUID whose text, without dashes, is this number in hexadecimal digits.
pub fn of_number(number: u128) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = number.to_be_bytes();
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

/// What a partition type is called (UEFI, the Discoverable Partitions Specification, and what systems use).
pub fn type_name(guid: &str) -> Option<&'static str> {
    Some(match guid {
        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => "EFI system",
        "024dee41-33e7-11d3-9d69-0008c781f39f" => "MBR partition scheme",
        "21686148-6449-6e6f-744e-656564454649" => "BIOS boot",
        "0fc63daf-8483-4772-8e79-3d69d8477de4" => "Linux file system",
        "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f" => "Linux swap",
        "e6d6d379-f507-44c2-a23c-238f2a3df928" => "Linux LVM",
        "a19d880f-05fc-4d3b-a006-743f0f84911e" => "Linux RAID",
        "ca7d7ccb-63ed-4c53-861c-1742536059cc" => "Linux LUKS",
        "7ffec5c9-2d00-49b7-8941-3ea10a5586b7" => "Linux dm-crypt",
        "8da63339-0007-60c0-c436-083ac8230908" => "Linux reserved",
        "bc13c2ff-59e6-4262-a352-b275fd6f7172" => "Linux extended boot",
        "933ac7e1-2eb4-4f13-b844-0e14e2aef915" => "Linux home",
        "3b8f8425-20e0-4f3b-907f-1a25a76f98e8" => "Linux server data",
        "4d21b016-b534-45c2-a9fb-5c16e091fd2d" => "Linux variable data",
        "7ec6f557-3bc5-4aca-b293-16ef5df639d1" => "Linux temporary data",
        "44479540-f297-41b2-9af7-d131d5f0458a" => "Linux root (x86)",
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" => "Linux root (x86-64)",
        "69dad710-2ce4-4e3c-b16c-21a1d49abed3" => "Linux root (ARM)",
        "b921b045-1df0-41c3-af44-4c6f280d3fae" => "Linux root (ARM-64)",
        "72ec70a6-cf74-40e6-bd49-4bda08e8f224" => "Linux root (RISC-V-64)",
        "8484680c-9521-48c6-9c11-b0720656f69e" => "Linux usr (x86-64)",
        "b0e01050-ee5f-4390-949a-9101b17104e9" => "Linux usr (ARM-64)",
        "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5" => "Linux root verity (x86-64)",
        "df3300ce-d69f-4c92-978c-9bfb0f38d820" => "Linux root verity (ARM-64)",
        "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7" => "Microsoft basic data",
        "e3c9e316-0b5c-4db8-817d-f92df00215ae" => "Microsoft reserved",
        "de94bba4-06d1-4d40-a16a-bfd50179d6ac" => "Windows recovery",
        "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3" => "Windows LDM metadata",
        "af9b60a0-1431-4f62-bc68-3311714a69ad" => "Windows LDM data",
        "e75caf8f-f680-4cee-afa3-b001e56efc2d" => "Windows storage spaces",
        "48465300-0000-11aa-aa11-00306543ecac" => "Apple HFS or HFS+",
        "7c3457ef-0000-11aa-aa11-00306543ecac" => "Apple APFS",
        "426f6f74-0000-11aa-aa11-00306543ecac" => "Apple boot",
        "53746f72-6167-11aa-aa11-00306543ecac" => "Apple Core Storage",
        "83bd6b9d-7f41-11dc-be0b-001560b84f0f" => "FreeBSD boot",
        "516e7cb4-6ecf-11d6-8ff8-00022d09712b" => "FreeBSD data",
        "516e7cb5-6ecf-11d6-8ff8-00022d09712b" => "FreeBSD swap",
        "516e7cb6-6ecf-11d6-8ff8-00022d09712b" => "FreeBSD UFS",
        "516e7cba-6ecf-11d6-8ff8-00022d09712b" => "FreeBSD ZFS",
        "6a898cc3-1dd2-11b2-99a6-080020736631" => "ZFS",
        "6a945a3b-1dd2-11b2-99a6-080020736631" => "Solaris reserved",
        "fe3a2a5d-4f32-41a7-b725-accc3285a309" => "ChromeOS kernel",
        "3cb8e202-3b7e-47dd-8a3c-7ff2a13cfcec" => "ChromeOS root",
        "2e0a753d-9e48-43b0-8337-b15192cb1b5e" => "ChromeOS reserved",
        "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6" => "CoreOS usr",
        "9e1a2d38-c612-4316-aa26-8b49521e5a8b" => "PowerPC PReP boot",
        "cef5a9ad-73bc-4601-89f3-cdeeeee321a1" => "QNX6",
        "aa31e02a-400f-11db-9590-000c2911d1b8" => "VMware VMFS",
        _ => return None,
    })
}
