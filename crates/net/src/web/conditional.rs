//! Requests on a condition (RFC 9110 section 13), in the order of section 13.2.2.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::HeaderMap;
use hyper::header::{HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE};

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validators {
    /// With its quotes.
    pub etag: String,
    /// To the second.
    pub modified: SystemTime,
}

/// What a request comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Send it: all of it, or, where the condition of a range is met, the value of `Range`.
    Send(Option<String>),
    /// 304
    NotModified,
    /// 412
    Failed,
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    text(headers, name).and_then(|value| httpdate::parse_http_date(value).ok())
}

/// Whether a list of entity tags holds this one; `*` holds all.
fn holds(headers: &HeaderMap, name: &HeaderName, etag: &str, weak: bool) -> bool {
    let strip = |tag: &str| tag.strip_prefix("W/").map_or_else(|| tag.to_owned(), str::to_owned);
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|tag| {
        let tag = tag.trim();
        tag == "*" || tag == etag || (weak && strip(tag) == strip(etag))
    })
}

impl Validators {
    /// Those of a file; its time of modification is cut to seconds, as dates in HTTP are.
    pub fn new(inode: u64, size: u64, modified: SystemTime) -> Self {
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        let etag = format!("\"{inode:x}-{size:x}-{:x}\"", since.as_nanos());
        Self { etag, modified: UNIX_EPOCH + Duration::from_secs(since.as_secs()) }
    }

    /// The entity tag of the same file, compressed.
    pub fn encoded(&self, encoding: &str) -> Self {
        Self { etag: format!("{}-{encoding}\"", self.etag.trim_end_matches('"')), modified: self.modified }
    }

    /// Decides a GET or HEAD request.
    pub fn judge(&self, headers: &HeaderMap) -> Verdict {
        if headers.contains_key(IF_MATCH) {
            if !holds(headers, &IF_MATCH, &self.etag, false) {
                return Verdict::Failed;
            }
        } else if date(headers, &IF_UNMODIFIED_SINCE).is_some_and(|date| self.modified > date) {
            return Verdict::Failed;
        }
        if headers.contains_key(IF_NONE_MATCH) {
            if holds(headers, &IF_NONE_MATCH, &self.etag, true) {
                return Verdict::NotModified;
            }
        } else if date(headers, &IF_MODIFIED_SINCE).is_some_and(|date| self.modified <= date) {
            return Verdict::NotModified;
        }
        let range = text(headers, &RANGE).map(str::to_owned);
        let same = match text(headers, &IF_RANGE) {
            None => true,
            Some(tag) if tag.ends_with('"') => tag == self.etag,
            Some(_) => date(headers, &IF_RANGE) == Some(self.modified),
        };
        Verdict::Send(range.filter(|_| same))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_as_the_rfc_has_them() {
        // Sunday, 6 November 1994, 08:49:37, and a half.
        let modified = UNIX_EPOCH + Duration::from_millis(784_111_777_500);
        let file = Validators::new(16, 255, modified);
        let (tag, at) = (file.etag.as_str(), "Sun, 06 Nov 1994 08:49:37 GMT");
        let (before, after) = ("Sun, 06 Nov 1994 08:49:36 GMT", "Sun, 06 Nov 1994 08:49:38 GMT");
        assert!(tag.starts_with("\"10-ff-"), "{tag}");
        let weak = format!("W/{tag}");
        let list = format!("\"other\", {weak}");
        let (send, part) = (Verdict::Send(None), Verdict::Send(Some("bytes=0-1".to_owned())));
        for (fields, expected) in [
            (vec![], &send),
            (vec![("if-none-match", tag)], &Verdict::NotModified),
            (vec![("if-none-match", list.as_str())], &Verdict::NotModified),
            (vec![("if-none-match", "*")], &Verdict::NotModified),
            (vec![("if-none-match", "\"other\"")], &send),
            (vec![("if-none-match", "\"other\""), ("if-modified-since", at)], &send),
            (vec![("if-modified-since", at)], &Verdict::NotModified),
            (vec![("if-modified-since", after)], &Verdict::NotModified),
            (vec![("if-modified-since", before)], &send),
            (vec![("if-modified-since", "yesterday")], &send),
            (vec![("if-match", tag)], &send),
            (vec![("if-match", weak.as_str())], &Verdict::Failed),
            (vec![("if-match", "\"other\"")], &Verdict::Failed),
            (vec![("if-unmodified-since", before)], &Verdict::Failed),
            (vec![("if-unmodified-since", at)], &send),
            (vec![("range", "bytes=0-1")], &part),
            (vec![("range", "bytes=0-1"), ("if-range", tag)], &part),
            (vec![("range", "bytes=0-1"), ("if-range", at)], &part),
            (vec![("range", "bytes=0-1"), ("if-range", after)], &send),
            (vec![("range", "bytes=0-1"), ("if-range", weak.as_str())], &send),
        ] {
            let headers = fields
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
                .collect::<HeaderMap>();
            assert_eq!(&file.judge(&headers), expected, "{fields:?}");
        }
        assert!(file.encoded("gzip").etag.ends_with("-gzip\""));
    }
}
