//! LUKS1 and LUKS2: encrypted volumes as `cryptsetup` makes them.
//!
//! ```text
//! passphrase ──kdf──► key of a slot ──cipher──► stripes ──anti_forensic──► key of the volume ──cipher──► data
//!                                       └── key material in the header          └── digest in the header says yes
//! ```
//! The specifications: LUKS On-Disk Format 1.2.3, LUKS2 On-Disk Format 1.1, both in cryptsetup's repository.
//!
//! [`Header::read`] reads the header (both copies of LUKS2), [`Header::unlock`] finds the key, [`Crypt`] is the data as a
//! device. [`create`] makes a new volume; [`Header::add_key`] and [`Header::remove_key`] change the slots. Keys lie in
//! [`sys::memory::Secret`], are wiped when dropped, and locked into memory where that is allowed.

mod anti_forensic;
mod cipher;
mod corrupt;
mod create;
mod crypt;
mod hash;
mod header;
mod kdf;
mod slots;
mod v1;
mod v2;

pub use cipher::{CipherSpec, SectorCipher};
pub use corrupt::Corrupt;
pub use create::{Create, DATA_BYTE, create};
pub use crypt::Crypt;
pub use hash::Hash;
pub use header::{Digest, Header, KEY_BYTES_MAX, Problem, SLOTS_MAX, STRIPES_MAX, Segment, Slot, Unlocked};
pub use kdf::{Cost, Kdf};
pub use slots::Random;

/// For fuzzing: takes `data` for a volume, and for the metadata of one whose checksum is right; reads the header and, where
/// a key comes out at little cost, the data.
pub fn fuzz(data: &[u8]) {
    let cost = Cost { memory_kib: 64, passes_kib: 128, iterations: 10 };
    let mut volume = v2::copy_around(data);
    volume.resize(1 << 20, 0);
    for bytes in [data, &volume] {
        let device = block::bytes::Bytes(bytes);
        let Ok(header) = Header::read(&device) else { continue };
        let _ = header.unlock(&device, b"passphrase", None, &cost);
        if let Some(key) = header.key_bytes().map(|len| vec![1; len])
            && let Ok(crypt) = Crypt::new(&device, &header.segment, &key)
        {
            let _ = block::bytes::read_up_to(&crypt, 0, 8192);
        }
    }
}
