//! A request becomes a response: GET and HEAD of files and folders, and the errors that there are.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hyper::body::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::response::Builder;
use hyper::{Method, Response, StatusCode};

use super::body::{Body, Piece};
use super::conditional::{Validators, Verdict};
use super::encoding;
use super::listing::{self, Query};
use super::path::{self, Root};
use super::range::{self, Part, Ranges};
use crate::{Result, ResultExt as _};

const SERVER: &str = concat!("loopbox/", env!("CARGO_PKG_VERSION"));

/// What a site does beyond the usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Links may lead out of the folder.
    pub follow_links: bool,
}

/// A folder as a site.
#[derive(Debug)]
pub struct Site {
    root: Root,
}

/// What a response is made of, before its header fields.
type Answer = std::result::Result<Response<Body>, hyper::http::Error>;

impl Site {
    /// The site of a folder.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn open(folder: &Path, options: Options) -> Result<Self> {
        let root = Root::open(folder, options.follow_links).context(|| format!("the folder {}", folder.display()))?;
        Ok(Self { root })
    }

    /// The response to a request. It reads from the disk, and may wait for it.
    pub fn respond(&self, request: &Parts) -> Response<Body> {
        let mut response = match self.answer(request) {
            Ok(response) => response,
            Err(_) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                response
            }
        };
        if request.method == Method::HEAD {
            let len = response.body().len();
            if let Some(len) = len.filter(|_| response.status() != StatusCode::NOT_MODIFIED) {
                response.headers_mut().insert(header::CONTENT_LENGTH, len.into());
            }
            *response.body_mut() = Body::empty();
        }
        let fields = [(header::SERVER, SERVER), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
        for (name, value) in fields {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }

    fn answer(&self, request: &Parts) -> Answer {
        if !matches!(request.method, Method::GET | Method::HEAD) {
            let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "Files are read here, and nothing else.")?;
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Ok(response);
        }
        let Some((names, slash)) = path::decode(request.uri.path()) else {
            return error(StatusCode::BAD_REQUEST, "No file can have that name.");
        };
        let file = match self.root.find(&names) {
            Ok(file) => file,
            Err(why) => return refuse(&why),
        };
        let is_folder = file.metadata().is_ok_and(|meta| meta.is_dir());
        match (is_folder, slash) {
            (true, true) => self.folder(request, names, &file),
            (true, false) => {
                let query = request.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
                let to = format!("{}/{query}", path::encode_all(&names));
                let start = Response::builder().status(StatusCode::MOVED_PERMANENTLY);
                start.header(header::LOCATION, to).body(Body::empty())
            }
            (false, true) => error(StatusCode::NOT_FOUND, "There is a file of that name, but no folder."),
            (false, false) => send(request, &names, file),
        }
    }

    fn folder(&self, request: &Parts, mut names: Vec<OsString>, folder: &File) -> Answer {
        names.push("index.html".into());
        match self.root.find(&names) {
            Ok(index) if index.metadata().is_ok_and(|meta| meta.is_file()) => return send(request, &names, index),
            _ => drop(names.pop()),
        }
        let nonce = nonce();
        let query = Query::parse(request.uri.query().unwrap_or_default());
        match listing::page(&self.root, &names, folder, &query, &nonce) {
            Ok(page) => html(StatusCode::OK, &nonce).body(page.into()),
            Err(why) => refuse(&why),
        }
    }
}

/// A number that nobody can guess, for the policy of one page.
fn nonce() -> String {
    let mut bytes = [0; 16];
    // Without randomness a page has neither style nor script; it is a page all the same.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    if filled != Ok(bytes.len()) { "none".to_owned() } else { bytes.map(|byte| format!("{byte:02x}")).concat() }
}

fn html(status: StatusCode, nonce: &str) -> Builder {
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src data:; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'self'"
    );
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "text/html; charset=utf-8")
        .header(header::CONTENT_SECURITY_POLICY, policy)
        .header(header::CACHE_CONTROL, "no-cache")
}

fn error(status: StatusCode, why: &str) -> Answer {
    let nonce = nonce();
    let title = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let page = listing::head(&title, &nonce);
    let why = listing::escaped(why);
    html(status, &nonce).body(format!("{page}<h1>{title}</h1><p>{why}</p></body></html>\n").into())
}

/// Why a file is not sent.
fn refuse(why: &io::Error) -> Answer {
    use rustix::io::Errno;
    match Errno::from_io_error(why) {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => {
            error(StatusCode::NOT_FOUND, "There is no such file.")
        }
        Some(Errno::XDEV | Errno::LOOP) => {
            error(StatusCode::FORBIDDEN, "A link leads out of the folder that is served.")
        }
        Some(Errno::ACCESS | Errno::PERM) => error(StatusCode::FORBIDDEN, "The server may not read it."),
        _ => error(StatusCode::INTERNAL_SERVER_ERROR, "The server could not read it."),
    }
}

/// A file, or what of it the request asks for.
fn send(request: &Parts, names: &[OsString], file: File) -> Answer {
    let meta = match file.metadata() {
        Ok(meta) => meta,
        Err(why) => return refuse(&why),
    };
    let size = meta.len();
    let name = names.last().map(|name| name.to_string_lossy()).unwrap_or_default();
    let content_type = encoding::content_type(&name);
    let gains = encoding::gains(&content_type, size);
    let accepts = request.headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    let ranged = request.headers.contains_key(header::RANGE);
    let gzip = gains && !ranged && accepts.is_some_and(encoding::takes_gzip);
    let modified = meta.modified().unwrap_or(std::time::UNIX_EPOCH);
    let plain = Validators::new(meta.ino(), size, modified);
    let validators = if gzip { plain.encoded("gzip") } else { plain };
    let start = |status| {
        let start = Response::builder()
            .status(status)
            .header(header::ETAG, &validators.etag)
            .header(header::LAST_MODIFIED, httpdate::fmt_http_date(validators.modified))
            .header(header::CACHE_CONTROL, "no-cache");
        if gains { start.header(header::VARY, "accept-encoding") } else { start }
    };
    let range = match validators.judge(&request.headers) {
        Verdict::NotModified => return start(StatusCode::NOT_MODIFIED).body(Body::empty()),
        Verdict::Failed => return error(StatusCode::PRECONDITION_FAILED, "The file is another by now."),
        Verdict::Send(range) => range,
    };
    let whole = || start(StatusCode::OK).header(header::ACCEPT_RANGES, "bytes");
    match range.map_or(Ranges::Whole, |range| range::parse(&range, size)) {
        Ranges::Whole if gzip => whole()
            .header(header::CONTENT_TYPE, content_type)
            .header(header::CONTENT_ENCODING, "gzip")
            .body(Body::gzip(file, size)),
        Ranges::Whole => {
            let all = Piece::Part(Part { start: 0, len: size });
            whole().header(header::CONTENT_TYPE, content_type).body(Body::pieces(file, vec![all]))
        }
        Ranges::Unsatisfiable => {
            let mut response = error(StatusCode::RANGE_NOT_SATISFIABLE, "The file ends before that.")?;
            let value = HeaderValue::try_from(format!("bytes */{size}"))?;
            response.headers_mut().insert(header::CONTENT_RANGE, value);
            Ok(response)
        }
        Ranges::Parts(parts) => partial(start(StatusCode::PARTIAL_CONTENT), file, size, &parts, content_type),
    }
}

fn partial(start: Builder, file: File, size: u64, parts: &[Part], content_type: String) -> Answer {
    if let [part] = parts {
        return start
            .header(header::CONTENT_TYPE, content_type)
            .header(header::CONTENT_RANGE, part.content_range(size))
            .body(Body::pieces(file, vec![Piece::Part(*part)]));
    }
    let boundary = nonce();
    let mut pieces = Vec::new();
    for part in parts {
        let range = part.content_range(size);
        let head = format!("\r\n--{boundary}\r\ncontent-type: {content_type}\r\ncontent-range: {range}\r\n\r\n");
        pieces.extend([Piece::Bytes(Bytes::from(head)), Piece::Part(*part)]);
    }
    pieces.push(Piece::Bytes(Bytes::from(format!("\r\n--{boundary}--\r\n"))));
    let kind: (HeaderName, String) = (header::CONTENT_TYPE, format!("multipart/byteranges; boundary={boundary}"));
    start.header(kind.0, kind.1).body(Body::pieces(file, pieces))
}
