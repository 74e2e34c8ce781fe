//! Broken volumes: an error, or some tree; never a panic, a hang, or more memory than the limits allow.

use std::sync::Arc;

use block::bytes::Bytes;
use loopbox_fs::testing::explore::explore;
use loopbox_fs::testing::mutate::{self, explored, mutations, spoil};
use loopbox_fs::udf::Udf;
use rig::memory::bounded;
use rig::{Scratch, requires};

use crate::bridge::disc;

const BLOCK: usize = 2048;

/// Makes the tag of a block right again, whatever was changed in it: no CRC, and the sum of the rest.
fn mend(block: &mut [u8]) {
    block[8..12].fill(0);
    block[4] = 0;
    block[4] = block[..16].iter().fold(0, |sum, byte| sum.wrapping_add(*byte));
}

fn is_descriptor(block: &[u8]) -> bool {
    let sum = block[..16].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_sub(block[4]);
    sum == block[4] && block[..16] != [0; 16]
}

fn mutate(sound: &[u8]) {
    assert!(explore(&Udf::open(Arc::new(Bytes(sound.to_vec()))).unwrap()).errors < 20);
    let descriptors: Vec<usize> =
        (0..sound.len() / BLOCK).filter(|n| is_descriptor(&sound[n * BLOCK..][..BLOCK])).collect();
    assert!(descriptors.len() > 8, "{}", descriptors.len());
    mutations(
        "UDF",
        sound,
        mutate::count(300),
        |random, bytes| {
            let block = descriptors[random.index(descriptors.len())] * BLOCK;
            let near = if random.below(2) == 0 { 240 } else { 600 };
            let at = block + random.index(near);
            spoil(random, &mut bytes[at]);
            mend(&mut bytes[block..block + BLOCK]);
        },
        |_, bytes| bounded(|| explored(bytes, Udf::open)),
    );
}

#[test]
fn mutations_of_a_disc() {
    requires!("genisoimage");
    let scratch = Scratch::new("udf-hostile");
    let (_, image) = disc(&scratch, 10, &[]);
    mutate(&std::fs::read(image).unwrap());
}

#[test]
fn mutations_of_what_mkudffs_made() {
    requires!("mkudffs");
    let scratch = Scratch::new("udf-hostile");
    for (number, options) in
        ["cdr --udfrev=1.50", "cdr --udfrev=2.01", "cdrw --udfrev=2.01", "bdr --udfrev=2.50"].iter().enumerate()
    {
        let image = scratch.join(format!("image{number}"));
        std::fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
        let mut command = std::process::Command::new(rig::which("mkudffs").unwrap());
        let options = format!("--media-type={options}");
        rig::run_command(command.args(options.split_whitespace()).arg(&image));
        let sound = std::fs::read(&image).unwrap();
        for at in (0..sound.len()).step_by(65_537) {
            loopbox_fs::udf::fuzz(&sound[..at]);
        }
        mutate(&sound);
    }
}
