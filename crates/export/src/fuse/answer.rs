//! The answer to one request: what the nodes say, as the bytes that the kernel expects.

use zerocopy::IntoBytes;

use crate::counters::Operation as Counted;

use super::nodes::{Answer, Listing, Nodes, entry_out};
use super::request::{Operation, Request};
use super::wire::{AttrOut, Errno, GetXAttrOut, LSeekOut, MkDirIn, MkNodIn, OpenIn, WriteOut};

/// `S_IFDIR`.
const DIRECTORY: u32 = 0o040_000;

impl Operation<'_> {
    /// As what it is counted.
    pub fn counted(&self) -> Counted {
        match self {
            Self::Read(given) => Counted::Read(given.size.into()),
            Self::Write(_, data) => Counted::Write(u64::try_from(data.len()).unwrap_or(0)),
            _ => Counted::Other,
        }
    }
}

/// Answers one request: puts what comes behind the header into the front of `output`, and says how many bytes that is.
/// `None` for what has no answer.
pub fn answer(nodes: &dyn Nodes, request: Request<'_>, output: &mut [u8]) -> Option<Answer<usize>> {
    let Request { unique: _, node, operation } = request;
    let valid = nodes.valid_s();
    let attr_out = |attr| AttrOut { attr_valid: valid.attr_s, attr, ..AttrOut::default() };
    // What fits into `output` of what was asked for.
    let room = |size: u32, output: &[u8]| usize::try_from(size).unwrap_or(usize::MAX).min(output.len());
    macro_rules! reply {
        ($answer:expr, $value:pat => $bytes:expr) => {
            match $answer {
                Ok($value) => put(output, $bytes),
                Err(errno) => Err(errno),
            }
        };
    }
    Some(match operation {
        // Neither is answered. An interrupted request is answered soon anyhow, as if it had not been.
        Operation::Forget | Operation::Interrupt => return None,
        Operation::Init { .. } => Err(Errno::IO),
        Operation::Read(given) => {
            let len = room(given.size, output);
            nodes.read(node, &mut output[..len], given.offset)
        }
        Operation::Write(given, data) => {
            reply!(nodes.write(node, data, given.offset), size => WriteOut { size, padding: 0 }.as_bytes())
        }
        Operation::Lookup { name } => reply!(nodes.lookup(node, name), found => entry_out(found, valid).as_bytes()),
        Operation::GetAttr => reply!(nodes.attr(node), attr => attr_out(attr).as_bytes()),
        Operation::SetAttr(change) => reply!(nodes.set_attr(node, &change), attr => attr_out(attr).as_bytes()),
        Operation::ReadLink => reply!(nodes.read_link(node), target => &target),
        Operation::Link => Err(Errno::PERM),
        Operation::MkNod(MkNodIn { mode, .. }, name) => {
            reply!(nodes.create(node, name, mode), made => entry_out(made, valid).as_bytes())
        }
        Operation::MkDir(MkDirIn { mode, .. }, name) => {
            let mode = DIRECTORY | mode & 0o7777;
            reply!(nodes.create(node, name, mode), made => entry_out(made, valid).as_bytes())
        }
        Operation::Create(given, name) => {
            let how = OpenIn { flags: given.flags, open_flags: given.open_flags };
            let made = nodes.create(node, name, given.mode);
            let made = made.and_then(|made| Ok((entry_out(made, valid), nodes.open(made.number, how)?)));
            reply!(made, (entry, out) => [entry.as_bytes(), out.as_bytes()].concat().as_slice())
        }
        Operation::Unlink { name } => nodes.remove(node, name, false).map(|()| 0),
        Operation::RmDir { name } => nodes.remove(node, name, true).map(|()| 0),
        Operation::Rename { directory, flags, from, to } => {
            nodes.rename((node, from), (directory, to), flags).map(|()| 0)
        }
        Operation::Open(how) => reply!(nodes.open(node, how), out => out.as_bytes()),
        Operation::Release(given) => {
            nodes.release(node, given.fh);
            Ok(0)
        }
        Operation::FSync => nodes.sync().map(|()| 0),
        Operation::ReadDir(given) | Operation::ReadDirPlus(given) => {
            let plus = matches!(operation, Operation::ReadDirPlus(_));
            let len = room(given.size, output);
            let mut listing = Listing::new(&mut output[..len], plus, valid);
            nodes.read_dir(node, given.offset, &mut listing).map(|()| listing.len())
        }
        Operation::StatFs => reply!(nodes.space(), out => out.as_bytes()),
        Operation::GetXAttr { size, name } => sized(output, size, nodes.xattr(node, name)),
        Operation::ListXAttr { size } => sized(output, size, nodes.xattrs(node)),
        Operation::Fallocate(given) => nodes.allocate(node, given.offset, given.length, given.mode).map(|()| 0),
        Operation::LSeek(given) => {
            reply!(nodes.seek(node, given.offset, given.whence), offset => LSeekOut { offset }.as_bytes())
        }
        Operation::Destroy | Operation::ReleaseDir => Ok(0),
        // ENOSYS to OPENDIR: the kernel opens directories by itself from now on. So it is with FLUSH, ACCESS, …
        Operation::OpenDir | Operation::Other(_) => Err(Errno::NOSYS),
    })
}

/// Puts an answer into the front of `output`.
pub fn put(output: &mut [u8], bytes: &[u8]) -> Answer<usize> {
    output.get_mut(..bytes.len()).ok_or(Errno::RANGE)?.copy_from_slice(bytes);
    Ok(bytes.len())
}

/// An attribute, or its size where nothing but that is asked for (`size` 0).
fn sized(output: &mut [u8], size: u32, value: Answer<Vec<u8>>) -> Answer<usize> {
    let value = value?;
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => put(output, GetXAttrOut { size: len, padding: 0 }.as_bytes()),
        Ok(len) if len <= size => put(output, &value),
        _ => Err(Errno::RANGE),
    }
}
