//! The structures and numbers of the FUSE protocol (`linux/fuse.h`, versions 7.31 to 7.42), in the byte order of the
//! machine.
//!
//! ```text
//! request   0        4        8        16       24    28    32    36     38   40
//!           │ len    │ opcode │ unique │ nodeid │ uid │ gid │ pid │ ext  │ –  │ arguments … names\0 … data
//! reply     0        4        8        16
//!           │ len    │ −errno │ unique │ answer …                       (notices: unique 0, errno = their code)
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of the protocol: the only major one there is.
pub const MAJOR: u32 = 7;
/// Oldest minor version that is spoken: that of Linux 5.4.
pub const MINOR_MIN: u32 = 31;
/// Newest minor version that is known here: that of Linux 6.16.
pub const MINOR_MAX: u32 = 42;
/// The directory that is mounted.
pub const ROOT: u64 = 1;

macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[allow(missing_docs)] // the names are those of linux/fuse.h
        pub struct $name { $(pub $field: $type),* }
    )*};
}

structures! {
    /// `fuse_in_header`
    InHeader { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16 }
    /// `fuse_out_header`
    OutHeader { len: u32, error: i32, unique: u64 }
    /// `fuse_init_in`, the part that every version since 7.6 has
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    /// `fuse_init_out`
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    /// `fuse_attr`
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// `fuse_entry_out`
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
        attr: Attr,
    }
    /// `fuse_attr_out`
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// `fuse_setattr_in`
    SetAttrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// `fuse_mknod_in`
    MkNodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// `fuse_mkdir_in`
    MkDirIn { mode: u32, umask: u32 }
    /// `fuse_rename2_in`, of which `fuse_rename_in` is the beginning
    Rename2In { newdir: u64, flags: u32, padding: u32 }
    /// `fuse_create_in`
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// `fuse_open_in`
    OpenIn { flags: u32, open_flags: u32 }
    /// `fuse_open_out`
    OpenOut { fh: u64, open_flags: u32, backing_id: i32 }
    /// `fuse_release_in`
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// `fuse_read_in`
    ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `fuse_write_in`
    WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `fuse_write_out`
    WriteOut { size: u32, padding: u32 }
    /// `fuse_statfs_out`
    StatFsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    /// `fuse_getxattr_in`
    GetXAttrIn { size: u32, padding: u32 }
    /// `fuse_getxattr_out`
    GetXAttrOut { size: u32, padding: u32 }
    /// `fuse_fallocate_in`
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// `fuse_lseek_in`
    LSeekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// `fuse_lseek_out`
    LSeekOut { offset: u64 }
    /// `fuse_dirent`, before the name
    Dirent { ino: u64, off: u64, namelen: u32, file_type: u32 }
}

/// Flags of INIT: bits 0 to 31 are `flags`, the others `flags2`.
pub mod init {
    #![allow(missing_docs)] // FUSE_… of linux/fuse.h
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const ABORT_ERROR: u64 = 1 << 21;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub const PASSTHROUGH: u64 = 1 << 37;
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// Flags of the answer to OPEN.
pub mod open {
    #![allow(missing_docs)] // FOPEN_… of linux/fuse.h
    pub const DIRECT_IO: u32 = 1 << 0;
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const NOFLUSH: u32 = 1 << 5;
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
    pub const PASSTHROUGH: u32 = 1 << 7;
}

/// Which fields of [`SetAttrIn`] are meant.
pub mod set {
    #![allow(missing_docs)] // FATTR_… of linux/fuse.h
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// Modes of FALLOCATE.
pub mod allocate {
    #![allow(missing_docs)] // FALLOC_FL_… of linux/falloc.h
    pub const KEEP_SIZE: u32 = 1;
    pub const PUNCH_HOLE: u32 = 2;
    pub const ZERO_RANGE: u32 = 16;
}

/// Flags of RENAME2.
pub mod rename {
    #![allow(missing_docs)] // RENAME_… of linux/fs.h
    pub const NOREPLACE: u32 = 1;
}

/// Places of LSEEK.
pub mod seek {
    #![allow(missing_docs)] // SEEK_… of linux/fs.h
    pub const DATA: u32 = 3;
    pub const HOLE: u32 = 4;
}

/// Numbers of requests.
pub mod opcode {
    #![allow(missing_docs)] // FUSE_… of linux/fuse.h
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const SYNCFS: u32 = 50;
}

/// An errno that the kernel is answered with. Positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    #![allow(missing_docs)] // the names are those of errno(3)
    pub const NOENT: Self = Self(2);
    pub const PERM: Self = Self(1);
    pub const IO: Self = Self(5);
    pub const NXIO: Self = Self(6);
    pub const INVAL: Self = Self(22);
    pub const NOTDIR: Self = Self(20);
    pub const NOSPC: Self = Self(28);
    pub const ROFS: Self = Self(30);
    pub const RANGE: Self = Self(34);
    pub const NOSYS: Self = Self(38);
    pub const PROTO: Self = Self(71);
    pub const OPNOTSUPP: Self = Self(95);
    pub const UCLEAN: Self = Self(117);
}

impl From<block::Error> for Errno {
    fn from(error: block::Error) -> Self {
        Self(error.kind().errno())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_kernel() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<InitOut>(), 64);
        assert_eq!(size_of::<Attr>(), 88);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<AttrOut>(), 104);
        assert_eq!(size_of::<SetAttrIn>(), 88);
        assert_eq!(size_of::<ReadIn>(), 40);
        assert_eq!(size_of::<WriteIn>(), 40);
        assert_eq!(size_of::<StatFsOut>(), 80);
        assert_eq!(size_of::<FallocateIn>(), 32);
        assert_eq!(size_of::<LSeekIn>(), 24);
        assert_eq!(size_of::<Dirent>(), 24);
        assert_eq!((size_of::<MkNodIn>(), size_of::<MkDirIn>()), (16, 8));
        assert_eq!((size_of::<Rename2In>(), size_of::<CreateIn>()), (16, 16));
    }
}
