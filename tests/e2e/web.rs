//! `loopbox web`: what curl and a real browser say of it, as an ordinary user.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Child, Stdio};

use rig::{User, requires};

use crate::session::Session;

/// A server that runs until it is dropped.
struct Web {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    url: String,
    greeting: String,
}

impl Web {
    /// Serves the folder `site` of a session.
    fn start(session: &Session, options: &[&str]) -> Self {
        let mut command = session.loopbox();
        command.arg("web").arg(session.join("site")).args(["--bind", "127.0.0.1:0"]).args(options);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut greeting = String::new();
        while !greeting.contains("--bind could also be") {
            assert!(out.read_line(&mut greeting).unwrap() > 0, "it ended: {greeting}");
        }
        let url = greeting.split_whitespace().find(|word| word.starts_with("http")).unwrap().to_owned();
        Self { child, out, url, greeting }
    }

    /// What curl prints: header fields, an empty line, the body.
    fn curl(&self, session: &Session, path: &str, options: &[&str]) -> String {
        let mut command = session.command("curl");
        command.args(["-sSig", "--path-as-is", "--max-time", "60"]).args(options).arg(format!("{}{path}", self.url));
        String::from_utf8_lossy(&rig::output(&mut command).stdout).into_owned()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

fn session(name: &str) -> Session {
    let session = Session::new(User::Ordinary, name);
    fs::create_dir_all(session.join("site/sub folder")).unwrap();
    fs::write(session.join("site/text.txt"), "0123456789").unwrap();
    fs::write(session.join("site/large.html"), "<p>the same again and again</p>\n".repeat(20_000)).unwrap();
    fs::write(session.join("site/sub folder/ü & <b>.md"), "# inside").unwrap();
    fs::write(session.join("secret"), "secret").unwrap();
    symlink("../secret", session.join("site/out")).unwrap();
    symlink("text.txt", session.join("site/near")).unwrap();
    session
}

fn field<'a>(response: &'a str, name: &str) -> &'a str {
    let line = response.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name}: {response}")).split_once(": ").unwrap().1
}

#[test]
fn curl_gets_files_ranges_and_answers_to_conditions() {
    requires!("curl");
    let session = session("web");
    let web = Web::start(&session, &["--quiet"]);
    assert!(web.greeting.contains("this machine alone") && web.greeting.contains("0.0.0.0:"), "{}", web.greeting);
    let get = |path: &str, options: &[&str]| web.curl(&session, path, options);

    let whole = get("text.txt", &[]);
    assert!(whole.starts_with("HTTP/1.1 200 OK\r\n") && whole.ends_with("\r\n\r\n0123456789"), "{whole}");
    assert_eq!(field(&whole, "content-type"), "text/plain; charset=utf-8");
    assert_eq!((field(&whole, "content-length"), field(&whole, "accept-ranges")), ("10", "bytes"));
    let head = get("text.txt", &["-I"]);
    assert!(field(&head, "content-length") == "10" && head.ends_with("\r\n\r\n"), "{head}");

    let etag = field(&whole, "etag");
    let modified = field(&whole, "last-modified");
    for (option, status) in [
        (format!("If-None-Match: {etag}"), "304"),
        (format!("If-None-Match: W/{etag}"), "304"),
        (format!("If-Modified-Since: {modified}"), "304"),
        ("If-None-Match: \"x\"".to_owned(), "200"),
        ("If-Match: \"x\"".to_owned(), "412"),
        ("If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT".to_owned(), "412"),
    ] {
        let said = get("text.txt", &["-H", &option]);
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{option}: {said}");
    }

    let part = get("text.txt", &["-r", "2-4"]);
    assert!(part.starts_with("HTTP/1.1 206") && part.ends_with("\r\n\r\n234"), "{part}");
    assert_eq!(field(&part, "content-range"), "bytes 2-4/10");
    let parts = get("text.txt", &["-r", "0-1,-2"]);
    let boundary = field(&parts, "content-type").split_once("boundary=").unwrap().1;
    let expected = format!(
        "\r\n--{boundary}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-range: bytes 0-1/10\r\n\r\n01\
         \r\n--{boundary}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-range: bytes 8-9/10\r\n\r\n89\
         \r\n--{boundary}--\r\n"
    );
    assert!(parts.ends_with(&format!("\r\n\r\n{expected}")), "{parts}");
    let beyond = get("text.txt", &["-r", "10-"]);
    assert!(beyond.starts_with("HTTP/1.1 416") && field(&beyond, "content-range") == "bytes */10", "{beyond}");
    let old = get("text.txt", &["-r", "2-4", "-H", "If-Range: \"old\""]);
    assert!(old.starts_with("HTTP/1.1 200"), "{old}");

    let size = fs::metadata(session.join("site/large.html")).unwrap().len();
    let plain = get("large.html", &[]);
    let packed = get("large.html", &["--compressed"]);
    assert_eq!(field(&packed, "content-encoding"), "gzip");
    assert_ne!(field(&packed, "etag"), field(&plain, "etag"));
    let body = |response: &str| response.split_once("\r\n\r\n").unwrap().1.to_owned();
    assert_eq!(body(&packed), body(&plain));
    assert_eq!(body(&plain).len() as u64, size);
    // What was broken off is continued.
    fs::write(session.join("half"), &body(&plain)[..100_000]).unwrap();
    let half = session.join("half").display().to_string();
    let url = format!("{}large.html", web.url);
    rig::run("curl", ["-sSf", "-C", "-", "-o", &half, &url]);
    assert_eq!(fs::read_to_string(session.join("half")).unwrap(), body(&plain));

    assert!(get("none", &[]).starts_with("HTTP/1.1 404"));
    assert!(get("sub%20folder", &[]).contains("location: /sub%20folder/"));
    assert!(get("//sub%20folder", &[]).contains("location: /sub%20folder/"), "no other host");
    assert!(get("text.txt/", &[]).starts_with("HTTP/1.1 404"));
    let posted = get("text.txt", &["-X", "POST", "-d", "x"]);
    assert!(posted.starts_with("HTTP/1.1 405") && field(&posted, "allow") == "GET, HEAD", "{posted}");
    let second = get("text.txt", &["--http2-prior-knowledge"]);
    assert!(second.starts_with("HTTP/2 200") && second.ends_with("0123456789"), "{second}");
}

#[test]
fn nothing_outside_the_folder_is_served() {
    requires!("curl");
    let session = session("web-out");
    let web = Web::start(&session, &["-q"]);
    for path in ["../secret", "%2e%2e/secret", "sub%20folder/../../secret", "..%2fsecret", "out", "/etc/passwd"] {
        let said = web.curl(&session, path, &[]);
        assert!(!said.contains("secret\n") && !said.ends_with("secret") && !said.contains("root:"), "{path}: {said}");
        assert!(said.starts_with("HTTP/1.1 40"), "{path}: {said}");
    }
    assert!(web.curl(&session, "near", &[]).ends_with("0123456789"), "a link that stays inside");
    assert!(web.curl(&session, "", &[]).contains("<span title=\"a link that leads nowhere, or out of here\">"));
    let told = Web::start(&session, &["-q", "--follow-links"]);
    assert!(told.curl(&session, "out", &[]).ends_with("secret"));
}

#[test]
fn tls_is_spoken_with_a_certificate_made_on_the_spot() {
    requires!("curl", "openssl");
    let session = session("web-tls");
    let certificate = session.join("certificate.pem").display().to_string();
    let web = Web::start(&session, &["-q", "--tls", "--certificate", &certificate]);
    let trusted = web.curl(&session, "text.txt", &["--cacert", &certificate]);
    assert!(trusted.starts_with("HTTP/2 200") && trusted.ends_with("0123456789"), "{trusted}");
    let first = web.curl(&session, "text.txt", &["--cacert", &certificate, "--http1.1", "--tls-max", "1.2"]);
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    let fingerprint = rig::run("openssl", ["x509", "-in", &certificate, "-noout", "-sha256", "-fingerprint"]);
    let digest = fingerprint.trim().split_once('=').unwrap().1;
    assert!(web.greeting.contains(digest), "{}: {fingerprint}", web.greeting);
    assert!(rig::run("openssl", ["verify", "-CAfile", &certificate, &certificate]).ends_with(": OK\n"));
    assert_eq!(web.curl(&session, "text.txt", &[]), "", "a client that was told nothing does not trust it");
}

#[test]
fn requests_are_shown_and_an_interrupt_ends_it() {
    requires!("curl");
    let session = session("web-log");
    let mut web = Web::start(&session, &[]);
    web.curl(&session, "text.txt?x=%1b[2J", &[]);
    let mut line = String::new();
    web.out.read_line(&mut line).unwrap();
    assert_eq!(line, "127.0.0.1 GET /text.txt?x=%1b[2J 200 10 B\n");
    rig::run("kill", ["-INT", &web.child.id().to_string()]);
    assert_eq!(web.child.wait().unwrap().code(), Some(0));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listener = std::net::TcpListener::bind(taken).unwrap();
    let site = session.join("site").display().to_string();
    assert!(session.fails(["web", &site, "--bind", &taken.to_string()]).contains("in use"));
    drop(listener);
    assert!(session.fails(["web", "/none"]).contains("/none"));
}

/// The page as a browser has it after its scripts ran.
fn browse(session: &Session, options: &[&str], url: &str) -> String {
    let mut command = session.command("timeout");
    command.args(["120", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    command.arg(format!("--user-data-dir={}", session.join("chromium").display())).args(options);
    command.env("HOME", session.join("")).args(["--virtual-time-budget=5000", "--dump-dom", url]);
    let output = rig::output(&mut command);
    assert!(output.status.success(), "{}", rig::text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_browser_shows_the_listing_with_and_without_a_script() {
    requires!("chromium");
    let session = session("web-browser");
    // Only a browser can look at a page like this: one frame with a script, and one without.
    fs::write(
        session.join("site/look.html"),
        "<!doctype html><title>look</title><iframe src='/sub%20folder/../?sort=name'></iframe>
        <iframe sandbox='allow-same-origin' src='/?q=E&sort=size&order=desc'></iframe><pre></pre><script>
        onload = () => {
            const [page, plain] = [frames[0].document, frames[1].document];
            const key = name => page.dispatchEvent(new frames[0].KeyboardEvent('keydown', { key: name }));
            const names = page => [...page.querySelectorAll('tbody tr')].filter(row => !row.hidden)
                .map(row => row.cells[0].textContent).join(' ');
            const say = text => document.querySelector('pre').textContent += text + '\\n';
            say('names ' + names(page));
            say('styled ' + (frames[0].getComputedStyle(page.querySelector('header')).display == 'flex'));
            key('ArrowDown'); key('ArrowDown'); say('focus ' + page.activeElement.textContent);
            key('/'); say('search ' + page.activeElement.name);
            page.activeElement.value = 'TEX'; page.activeElement.dispatchEvent(new Event('input'));
            say('found ' + names(page));
            say('plain ' + names(plain) + ', ' + plain.querySelector('[role=status]').textContent);
        }
        </script>",
    )
    .unwrap();
    let web = Web::start(&session, &["-q"]);
    let seen = browse(&session, &[], &format!("{}look.html", web.url));
    for line in [
        "names sub folder/ large.html look.html near out text.txt\n",
        "styled true\n",
        "focus large.html\n",
        "search q\n",
        "found text.txt\n",
        "plain sub folder/ large.html near text.txt, 4 of 6 entries, ",
    ] {
        assert!(seen.contains(line), "{line}: {seen}");
    }
    let folder = browse(&session, &[], &format!("{}sub%20folder/", web.url));
    assert!(folder.contains("<bdi>ü &amp; &lt;b&gt;.md</bdi>"), "{folder}");
}

#[test]
fn a_browser_takes_tls_and_http_2() {
    requires!("chromium");
    let session = session("web-browser-tls");
    fs::write(
        session.join("site/look.html"),
        "<pre></pre><script>onload = () => document.querySelector('pre').textContent =
         'by ' + performance.getEntriesByType('navigation')[0].nextHopProtocol</script>",
    )
    .unwrap();
    let web = Web::start(&session, &["-q", "--tls"]);
    let seen = browse(&session, &["--ignore-certificate-errors"], &format!("{}look.html", web.url));
    assert!(seen.contains("by h2"), "{seen}");
}
