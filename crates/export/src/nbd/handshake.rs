//! Options: until both sides agree on an export and on a dialect.

use std::io::{Read, Write};

use block::{Error, Kind, Result, ResultExt as _};

use super::wire::{self, answer, be_u16, be_u32, be_u64, info, option, transmission};
use super::{EXTENTS_MAX, Export, NAME_BYTES_MAX, OPTION_BYTES_MAX, OPTIONS_MAX, PAYLOAD_BYTES_MAX};

/// How answers look from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dialect {
    /// Reads are answered in chunks.
    pub structured: bool,
    /// Headers have 64 bits for lengths; implies `structured`.
    pub extended: bool,
    /// The number of `base:allocation`, when the client has chosen it for this export.
    pub allocation: bool,
}

/// What the handshake came to.
#[derive(Debug)]
pub enum Agreed {
    /// Requests for this export follow.
    Export(usize, Dialect),
    /// The handshake of TLS follows, and then both haggle anew.
    Tls,
    /// The client went away in good order.
    Nothing,
}

/// What is said about TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// There is none.
    Plain,
    /// A client may have it.
    Tls,
    /// A client must.
    TlsRequired,
    /// It has.
    TlsInUse,
}

/// The number that `base:allocation` has in our answers.
pub const ALLOCATION_ID: u32 = 1;

/// The flags of an export.
pub fn transmission_flags(export: &Export, dialect: Dialect) -> u16 {
    let mut flags = transmission::HAS_FLAGS
        | transmission::SEND_FLUSH
        | transmission::SEND_FUA
        | transmission::SEND_CACHE
        | transmission::CAN_MULTI_CONN;
    if export.device.limits().read_only {
        flags |= transmission::READ_ONLY;
    } else {
        flags |= transmission::SEND_TRIM | transmission::SEND_WRITE_ZEROES | transmission::SEND_FAST_ZERO;
    }
    if dialect.structured {
        flags |= transmission::SEND_DF;
    }
    flags
}

/// Says hello to a client on `stream`: whether it wants zeroes after an export that is asked for the old way; `None`
/// when it is gone.
///
/// # Errors
/// [`Kind::Invalid`] for a client that breaks the protocol; the failure of the stream.
pub fn greet(stream: &mut (impl Read + Write)) -> Result<Option<bool>> {
    let mut hello = Vec::with_capacity(18);
    hello.extend_from_slice(&wire::NBDMAGIC.to_be_bytes());
    hello.extend_from_slice(&wire::IHAVEOPT.to_be_bytes());
    hello.extend_from_slice(&(wire::FIXED_NEWSTYLE | wire::NO_ZEROES).to_be_bytes());
    let mut flags = [0; 4];
    let heard = stream.write_all(&hello).and_then(|()| stream.flush()).and_then(|()| stream.read_exact(&mut flags));
    match heard {
        // Somebody who only looked whether a server is there.
        Err(error) if is_gone(&error) => return Ok(None),
        heard => heard.context(|| "handshake with an NBD client")?,
    }
    let flags = u32::from_be_bytes(flags);
    if flags & u32::from(wire::FIXED_NEWSTYLE) == 0 || flags > 3 {
        return Err(Error::new(Kind::Invalid, format!("client flags {flags:#x}: fixed newstyle is needed")));
    }
    Ok(Some(flags & u32::from(wire::NO_ZEROES) == 0))
}

/// Haggles with a client on `stream`. No byte behind the last option is read: what is sent before the handshake of TLS
/// is not taken for something that was said inside of it.
///
/// # Errors
/// [`Kind::Invalid`] for a client that breaks the protocol; [`Kind::Limit`] for one that passes a limit; the failure of
/// the stream.
pub fn haggle(stream: &mut (impl Read + Write), exports: &[Export], offer: Offer, zeroes: bool) -> Result<Agreed> {
    let mut haggle = Haggle { exports, dialect: Dialect::default(), chosen: None };
    for _ in 0..OPTIONS_MAX {
        let mut head = [0; 16];
        receive(stream, &mut head)?;
        let magic = be_u64(&head, 0).unwrap_or_default();
        if magic != wire::IHAVEOPT {
            return Err(Error::new(Kind::Invalid, format!("option magic {magic:#x}")));
        }
        let number = be_u32(&head, 8).unwrap_or_default();
        let len = be_u32(&head, 12).unwrap_or_default();
        if len > OPTION_BYTES_MAX && number == option::EXPORT_NAME {
            // To which no error can be answered.
            return Err(Error::new(Kind::Limit, format!("the name of an export in {len} bytes")));
        }
        if len > OPTION_BYTES_MAX {
            skip(stream, len)?;
            respond(stream, number, answer::ERR_TOO_BIG, b"the option is too long")?;
            continue;
        }
        let mut data = vec![0; len as usize];
        receive(stream, &mut data)?;
        match number {
            option::EXPORT_NAME if offer == Offer::TlsRequired => {
                return Err(Error::new(Kind::NotPermitted, "an NBD client without TLS, which is required"));
            }
            option::EXPORT_NAME => {
                let Some(index) = haggle.find(&data) else {
                    // The old way has no word for it but hanging up.
                    return Err(Error::new(Kind::NotFound, "an export that the client named"));
                };
                haggle.settle(index);
                let Some(export) = exports.get(index) else { return Ok(Agreed::Nothing) };
                let mut answer = Vec::with_capacity(134);
                answer.extend_from_slice(&export.device.size().to_be_bytes());
                answer.extend_from_slice(&transmission_flags(export, haggle.dialect).to_be_bytes());
                if zeroes {
                    answer.resize(134, 0);
                }
                send(stream, &answer)?;
                return Ok(Agreed::Export(index, haggle.dialect));
            }
            option::ABORT => {
                // The client need not wait for it.
                let _ = respond(stream, number, answer::ACK, &[]);
                return Ok(Agreed::Nothing);
            }
            option::STARTTLS => match offer {
                Offer::Plain => respond(stream, number, answer::ERR_POLICY, b"this server has no TLS")?,
                Offer::TlsInUse => respond(stream, number, answer::ERR_INVALID, b"TLS is in use already")?,
                _ if !data.is_empty() => {
                    respond(stream, number, answer::ERR_INVALID, b"the option takes no data")?;
                }
                Offer::Tls | Offer::TlsRequired => {
                    respond(stream, number, answer::ACK, &[])?;
                    return Ok(Agreed::Tls);
                }
            },
            _ if offer == Offer::TlsRequired => {
                respond(stream, number, answer::ERR_TLS_REQD, b"this server wants TLS first")?;
            }
            option::LIST => haggle.list(stream, &data)?,
            option::INFO | option::GO => {
                let found = haggle.describe(stream, number, &data)?;
                if let Some(index) = found.filter(|_| number == option::GO) {
                    return Ok(Agreed::Export(index, haggle.dialect));
                }
            }
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS if !data.is_empty() => {
                respond(stream, number, answer::ERR_INVALID, b"the option takes no data")?;
            }
            option::STRUCTURED_REPLY if haggle.dialect.extended => {
                respond(stream, number, answer::ERR_EXT_HEADER_REQD, b"extended headers are in use already")?;
            }
            option::STRUCTURED_REPLY if haggle.dialect.structured => {
                respond(stream, number, answer::ERR_INVALID, b"structured replies are in use already")?;
            }
            option::EXTENDED_HEADERS if haggle.dialect.extended => {
                respond(stream, number, answer::ERR_INVALID, b"extended headers are in use already")?;
            }
            option::STRUCTURED_REPLY => {
                haggle.dialect.structured = true;
                respond(stream, number, answer::ACK, &[])?;
            }
            option::EXTENDED_HEADERS => {
                haggle.dialect.structured = true;
                haggle.dialect.extended = true;
                respond(stream, number, answer::ACK, &[])?;
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => haggle.contexts(stream, number, &data)?,
            _ => respond(stream, number, answer::ERR_UNSUP, b"the option is not known")?,
        }
    }
    Err(Error::new(Kind::Limit, format!("more than {OPTIONS_MAX} options")))
}

struct Haggle<'a> {
    exports: &'a [Export],
    dialect: Dialect,
    /// The export for which `base:allocation` was chosen.
    chosen: Option<usize>,
}

impl Haggle<'_> {
    fn find(&self, name: &[u8]) -> Option<usize> {
        let named = self.exports.iter().position(|export| export.name.as_bytes() == name);
        // The empty name is the default: the one export there is, or the first.
        named.or_else(|| (name.is_empty() && !self.exports.is_empty()).then_some(0))
    }

    /// A context that was chosen for another export does not count.
    fn settle(&mut self, index: usize) {
        self.dialect.allocation = self.chosen == Some(index);
    }

    fn list(&self, stream: &mut impl Write, data: &[u8]) -> Result<()> {
        if !data.is_empty() {
            return respond(stream, option::LIST, answer::ERR_INVALID, b"the option takes no data");
        }
        for export in self.exports {
            let mut entry = Vec::with_capacity(4 + export.name.len());
            entry.extend_from_slice(&(export.name.len() as u32).to_be_bytes());
            entry.extend_from_slice(export.name.as_bytes());
            entry.extend_from_slice(export.description.as_bytes());
            respond(stream, option::LIST, answer::SERVER, &entry)?;
        }
        respond(stream, option::LIST, answer::ACK, &[])
    }

    /// Answers INFO and GO; the export, when there is one of that name.
    fn describe(&mut self, stream: &mut impl Write, number: u32, data: &[u8]) -> Result<Option<usize>> {
        let Some((name, wanted)) = parse_describe(data) else {
            respond(stream, number, answer::ERR_INVALID, b"the option is malformed")?;
            return Ok(None);
        };
        let Some((index, export)) = self.find(name).and_then(|index| Some((index, self.exports.get(index)?))) else {
            respond(stream, number, answer::ERR_UNKNOWN, b"there is no export of that name")?;
            return Ok(None);
        };
        self.settle(index);
        let mut body = Vec::with_capacity(12);
        body.extend_from_slice(&info::EXPORT.to_be_bytes());
        body.extend_from_slice(&export.device.size().to_be_bytes());
        body.extend_from_slice(&transmission_flags(export, self.dialect).to_be_bytes());
        respond(stream, number, answer::INFO, &body)?;
        if wanted.contains(&info::NAME) {
            let body = [&info::NAME.to_be_bytes()[..], export.name.as_bytes()].concat();
            respond(stream, number, answer::INFO, &body)?;
        }
        if wanted.contains(&info::DESCRIPTION) && !export.description.is_empty() {
            let body = [&info::DESCRIPTION.to_be_bytes()[..], export.description.as_bytes()].concat();
            respond(stream, number, answer::INFO, &body)?;
        }
        // Told unasked: every byte can be reached, and a client that knows what is cheap is a faster one.
        let limits = export.device.limits();
        let mut body = Vec::with_capacity(14);
        body.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        body.extend_from_slice(&1_u32.to_be_bytes());
        body.extend_from_slice(&limits.preferred.clamp(512, PAYLOAD_BYTES_MAX).to_be_bytes());
        body.extend_from_slice(&PAYLOAD_BYTES_MAX.to_be_bytes());
        respond(stream, number, answer::INFO, &body)?;
        respond(stream, number, answer::ACK, &[])?;
        Ok(Some(index))
    }

    /// Answers LIST_META_CONTEXT and SET_META_CONTEXT: `base:allocation` is all there is.
    fn contexts(&mut self, stream: &mut impl Write, number: u32, data: &[u8]) -> Result<()> {
        let setting = number == option::SET_META_CONTEXT;
        if setting {
            self.chosen = None;
            self.dialect.allocation = false;
        }
        if !self.dialect.structured {
            return respond(stream, number, answer::ERR_INVALID, b"structured replies come first");
        }
        let Some((name, queries)) = parse_contexts(data) else {
            return respond(stream, number, answer::ERR_INVALID, b"the option is malformed");
        };
        let Some(index) = self.find(name) else {
            return respond(stream, number, answer::ERR_UNKNOWN, b"there is no export of that name");
        };
        // A query that ends in a colon asks for all of a name space, and no query at all for everything.
        let listed = |query: &&[u8]| *query == b"base:" || *query == wire::BASE_ALLOCATION.as_bytes();
        let matches = if setting {
            queries.iter().any(|query| *query == wire::BASE_ALLOCATION.as_bytes())
        } else {
            queries.is_empty() || queries.iter().any(listed)
        };
        if matches {
            let id = if setting { ALLOCATION_ID } else { 0 };
            let body = [&id.to_be_bytes()[..], wire::BASE_ALLOCATION.as_bytes()].concat();
            respond(stream, number, answer::META_CONTEXT, &body)?;
            if setting {
                self.chosen = Some(index);
            }
        }
        respond(stream, number, answer::ACK, &[])
    }
}

/// The name and the kinds of information of INFO and GO.
fn parse_describe(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let (name, rest) = parse_name(data)?;
    let count = usize::from(be_u16(rest, 0)?);
    let kinds = rest.get(2..).filter(|kinds| kinds.len() == count * 2)?;
    Some((name, kinds.chunks_exact(2).filter_map(|kind| be_u16(kind, 0)).collect()))
}

/// The name and the queries of the options about contexts.
fn parse_contexts(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let (name, rest) = parse_name(data)?;
    let count = be_u32(rest, 0)? as usize;
    if count > EXTENTS_MAX {
        return None;
    }
    let mut rest = rest.get(4..)?;
    let mut queries = Vec::new();
    for _ in 0..count {
        let (query, after) = parse_name(rest)?;
        queries.push(query);
        rest = after;
    }
    rest.is_empty().then_some((name, queries))
}

/// A length of four bytes and so many bytes; and what follows.
fn parse_name(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = be_u32(data, 0)? as usize;
    if len > NAME_BYTES_MAX {
        return None;
    }
    data.get(4..)?.split_at_checked(len)
}

fn respond(stream: &mut impl Write, number: u32, kind: u32, body: &[u8]) -> Result<()> {
    let mut out = Vec::with_capacity(20 + body.len());
    out.extend_from_slice(&wire::OPTION_REPLY.to_be_bytes());
    out.extend_from_slice(&number.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(body.len() as u32).to_be_bytes());
    out.extend_from_slice(body);
    send(stream, &out)
}

fn send(stream: &mut impl Write, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).and_then(|()| stream.flush()).context(|| "handshake with an NBD client")
}

fn receive(stream: &mut impl Read, bytes: &mut [u8]) -> Result<()> {
    stream.read_exact(bytes).context(|| "handshake with an NBD client")
}

fn is_gone(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn skip(stream: &mut impl Read, len: u32) -> Result<()> {
    let mut left = u64::from(len);
    if left > u64::from(PAYLOAD_BYTES_MAX) {
        return Err(Error::new(Kind::Limit, format!("an option of {left} bytes")));
    }
    let mut waste = [0; 4096];
    while left > 0 {
        let len = left.min(waste.len() as u64) as usize;
        receive(stream, waste.get_mut(..len).unwrap_or_default())?;
        left -= len as u64;
    }
    Ok(())
}
