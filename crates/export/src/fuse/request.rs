//! A request of the kernel, from its bytes.

use zerocopy::FromBytes;

use super::wire::{
    CreateIn, FallocateIn, GetXAttrIn, InHeader, InitIn, LSeekIn, MkDirIn, MkNodIn, OpenIn, ReadIn, ReleaseIn,
    Rename2In, SetAttrIn, WriteIn, opcode,
};

/// What the kernel wants, of whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// Number by which the answer is known.
    pub unique: u64,
    /// The file it is about.
    pub node: u64,
    /// What is wanted.
    pub operation: Operation<'a>,
}

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // one variant an opcode, by its name
pub enum Operation<'a> {
    Init {
        given: InitIn,
        flags2: u32,
    },
    Lookup {
        name: &'a [u8],
    },
    Forget,
    GetAttr,
    SetAttr(SetAttrIn),
    ReadLink,
    /// Of a link of either kind, which nobody here makes.
    Link,
    MkNod(MkNodIn, &'a [u8]),
    MkDir(MkDirIn, &'a [u8]),
    Unlink {
        name: &'a [u8],
    },
    RmDir {
        name: &'a [u8],
    },
    Rename {
        directory: u64,
        flags: u32,
        from: &'a [u8],
        to: &'a [u8],
    },
    Create(CreateIn, &'a [u8]),
    Open(OpenIn),
    Read(ReadIn),
    Write(WriteIn, &'a [u8]),
    StatFs,
    Release(ReleaseIn),
    FSync,
    GetXAttr {
        size: u32,
        name: &'a [u8],
    },
    ListXAttr {
        size: u32,
    },
    OpenDir,
    ReadDir(ReadIn),
    ReadDirPlus(ReadIn),
    ReleaseDir,
    Interrupt,
    Destroy,
    Fallocate(FallocateIn),
    LSeek(LSeekIn),
    /// One that is not served here.
    Other(u32),
}

/// Bytes that are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Not even a header, or a length in it that is not that of the message: nobody can be answered.
    Header,
    /// The arguments do not fit the opcode: the sender of this number is told.
    Arguments(u64),
}

impl<'a> Request<'a> {
    /// Reads one message.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let (header, arguments) = InHeader::read_from_prefix(message).map_err(|_| Malformed::Header)?;
        if usize::try_from(header.len) != Ok(message.len()) {
            return Err(Malformed::Header);
        }
        let operation = Operation::parse(header.opcode, arguments).ok_or(Malformed::Arguments(header.unique))?;
        Ok(Self { unique: header.unique, node: header.nodeid, operation })
    }
}

impl<'a> Operation<'a> {
    fn parse(code: u32, arguments: &'a [u8]) -> Option<Self> {
        Some(match code {
            opcode::INIT => {
                let (given, rest) = front::<InitIn>(arguments)?;
                // Kernels before 5.17 end here.
                Self::Init { given, flags2: front::<u32>(rest).map_or(0, |(flags2, _)| flags2) }
            }
            opcode::LOOKUP => Self::Lookup { name: name(arguments)? },
            opcode::FORGET | opcode::BATCH_FORGET => Self::Forget,
            opcode::GETATTR => Self::GetAttr,
            opcode::SETATTR => Self::SetAttr(front(arguments)?.0),
            opcode::READLINK => Self::ReadLink,
            opcode::SYMLINK | opcode::LINK => Self::Link,
            opcode::MKNOD => {
                let (given, rest) = front::<MkNodIn>(arguments)?;
                Self::MkNod(given, name(rest)?)
            }
            opcode::MKDIR => {
                let (given, rest) = front::<MkDirIn>(arguments)?;
                Self::MkDir(given, name(rest)?)
            }
            opcode::UNLINK => Self::Unlink { name: name(arguments)? },
            opcode::RMDIR => Self::RmDir { name: name(arguments)? },
            opcode::RENAME => {
                let (directory, rest) = front::<u64>(arguments)?;
                Self::rename(directory, 0, rest)?
            }
            opcode::RENAME2 => {
                let (given, rest) = front::<Rename2In>(arguments)?;
                Self::rename(given.newdir, given.flags, rest)?
            }
            opcode::CREATE => {
                let (given, rest) = front::<CreateIn>(arguments)?;
                Self::Create(given, name(rest)?)
            }
            opcode::OPEN => Self::Open(front(arguments)?.0),
            opcode::READ => Self::Read(front(arguments)?.0),
            opcode::WRITE => {
                let (given, data) = front::<WriteIn>(arguments)?;
                let len = usize::try_from(given.size).ok()?;
                Self::Write(given, data.get(..len).filter(|_| data.len() == len)?)
            }
            opcode::STATFS => Self::StatFs,
            opcode::RELEASE => Self::Release(front(arguments)?.0),
            opcode::FSYNC | opcode::FSYNCDIR | opcode::SYNCFS => Self::FSync,
            opcode::GETXATTR => {
                let (given, rest) = front::<GetXAttrIn>(arguments)?;
                Self::GetXAttr { size: given.size, name: name(rest)? }
            }
            opcode::LISTXATTR => Self::ListXAttr { size: front::<GetXAttrIn>(arguments)?.0.size },
            opcode::OPENDIR => Self::OpenDir,
            opcode::READDIR => Self::ReadDir(front(arguments)?.0),
            opcode::READDIRPLUS => Self::ReadDirPlus(front(arguments)?.0),
            opcode::RELEASEDIR => Self::ReleaseDir,
            opcode::INTERRUPT => Self::Interrupt,
            opcode::DESTROY => Self::Destroy,
            opcode::FALLOCATE => Self::Fallocate(front(arguments)?.0),
            opcode::LSEEK => Self::LSeek(front(arguments)?.0),
            other => Self::Other(other),
        })
    }

    fn rename(directory: u64, flags: u32, names: &'a [u8]) -> Option<Self> {
        let from = name(names)?;
        let to = name(names.get(from.len().checked_add(1)?..)?)?;
        Some(Self::Rename { directory, flags, from, to })
    }
}

fn front<T: FromBytes>(bytes: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(bytes).ok()
}

/// A name up to its NUL, which must be there.
fn name(bytes: &[u8]) -> Option<&[u8]> {
    bytes.split(|byte| *byte == 0).next().filter(|name| !name.is_empty() && name.len() < bytes.len())
}

#[cfg(test)]
pub(super) mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    /// A message of the kernel.
    pub fn message(opcode: u32, unique: u64, nodeid: u64, parts: &[&[u8]]) -> Vec<u8> {
        let arguments = parts.concat();
        let len = u32::try_from(size_of::<InHeader>() + arguments.len()).unwrap();
        let header = InHeader { len, opcode, unique, nodeid, ..InHeader::default() };
        [header.as_bytes(), &arguments].concat()
    }

    #[test]
    fn requests_are_read() {
        let lookup = message(opcode::LOOKUP, 7, 1, &[b"boot\0"]);
        assert_eq!(
            Request::parse(&lookup),
            Ok(Request { unique: 7, node: 1, operation: Operation::Lookup { name: b"boot" } })
        );
        let given = WriteIn { offset: 512, size: 3, ..WriteIn::default() };
        let write = message(opcode::WRITE, 8, 2, &[given.as_bytes(), b"abc"]);
        assert_eq!(
            Request::parse(&write),
            Ok(Request { unique: 8, node: 2, operation: Operation::Write(given, b"abc") })
        );
        let given = Rename2In { newdir: 9, flags: 1, padding: 0 };
        let rename = message(opcode::RENAME2, 8, 2, &[given.as_bytes(), b"old\0new\0"]);
        let expected = Operation::Rename { directory: 9, flags: 1, from: b"old", to: b"new" };
        assert_eq!(Request::parse(&rename).unwrap().operation, expected);
        let rename = message(opcode::RENAME, 8, 2, &[9_u64.as_bytes(), b"old\0new"]);
        assert_eq!(Request::parse(&rename), Err(Malformed::Arguments(8)));
        let old = InitIn { major: 7, minor: 31, max_readahead: 4096, flags: 1 };
        let init = message(opcode::INIT, 1, 0, &[old.as_bytes()]);
        assert_eq!(Request::parse(&init).unwrap().operation, Operation::Init { given: old, flags2: 0 });
        let init = message(opcode::INIT, 1, 0, &[old.as_bytes(), &9u32.to_ne_bytes(), &[0; 44]]);
        assert_eq!(Request::parse(&init).unwrap().operation, Operation::Init { given: old, flags2: 9 });
        assert_eq!(Request::parse(&message(4096, 1, 0, &[])).unwrap().operation, Operation::Other(4096));
    }

    #[test]
    fn what_is_no_request_is_told_apart() {
        assert_eq!(Request::parse(&[]), Err(Malformed::Header));
        let mut long = message(opcode::GETATTR, 3, 1, &[&[0; 16]]);
        long.push(0);
        assert_eq!(Request::parse(&long), Err(Malformed::Header));
        for (opcode, arguments) in [
            (opcode::LOOKUP, &b"no end"[..]),
            (opcode::LOOKUP, b"\0"),
            (opcode::LOOKUP, b""),
            (opcode::INIT, &[0; 15]),
            (opcode::READ, &[0; 39]),
            (opcode::GETXATTR, &[0; 8]),
            (opcode::WRITE, WriteIn { size: u32::MAX, ..WriteIn::default() }.as_bytes()),
            (opcode::FALLOCATE, &[]),
        ] {
            assert_eq!(Request::parse(&message(opcode, 5, 1, &[arguments])), Err(Malformed::Arguments(5)), "{opcode}");
        }
    }

    #[test]
    fn no_message_makes_it_panic() {
        // Every opcode with every short length.
        for code in 0..60 {
            for len in 0..100 {
                let _ = Request::parse(&message(code, 1, 1, &[&vec![0xFF; len]]));
            }
        }
    }
}
