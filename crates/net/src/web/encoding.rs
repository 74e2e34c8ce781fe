//! Whether a file is sent compressed: what the client takes (`Accept-Encoding`, RFC 9110 section 12.5.3), and what gains
//! by it.

/// Below this, compression gains nothing, bytes.
const BYTES_MIN: u64 = 1024;

/// The kind of content that a file name tells, with the character set of text.
pub fn content_type(name: &str) -> String {
    let guess = mime_guess::from_path(name).first_or_octet_stream();
    let text = guess.type_() == "text" || matches!(guess.subtype().as_str(), "javascript" | "json" | "xml");
    if text && guess.get_param("charset").is_none() { format!("{guess}; charset=utf-8") } else { guess.to_string() }
}

/// Whether content of this kind and size gains by compression.
pub fn gains(content_type: &str, size: u64) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default();
    size >= BYTES_MIN
        && (kind.starts_with("text/")
            || kind.ends_with("+xml")
            || kind.ends_with("+json")
            || matches!(
                kind,
                "application/javascript" | "application/json" | "application/xml" | "application/wasm" | "font/ttf"
            ))
}

/// Whether the client takes gzip.
pub fn takes_gzip(accept_encoding: &str) -> bool {
    let quality = |coding: &str| {
        accept_encoding.split(',').find_map(|part| {
            let (name, parameters) = part.split_once(';').unwrap_or((part, ""));
            let named = name.trim().eq_ignore_ascii_case(coding);
            let value =
                parameters.trim().strip_prefix("q=").map_or(Some(1.0), |value| value.trim().parse::<f32>().ok());
            named.then(|| value.unwrap_or(0.0))
        })
    };
    quality("gzip").or_else(|| quality("x-gzip")).or_else(|| quality("*")).is_some_and(|quality| quality > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_takes_and_what_gains() {
        for (value, takes) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("*", true),
            ("gzip;q=0, *", false),
            ("identity", false),
            ("br, zstd", false),
            ("", false),
            ("gzip;q=x", false),
        ] {
            assert_eq!(takes_gzip(value), takes, "{value}");
        }
        assert_eq!(content_type("a.html"), "text/html; charset=utf-8");
        assert_eq!(content_type("a.json"), "application/json; charset=utf-8");
        assert_eq!(content_type("a.png"), "image/png");
        assert_eq!(content_type("README"), "application/octet-stream");
        assert!(gains("text/html; charset=utf-8", 5000) && gains("image/svg+xml", 5000));
        assert!(!gains("image/png", 5000) && !gains("text/html", 100));
    }
}
