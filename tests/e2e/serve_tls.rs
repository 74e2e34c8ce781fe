//! `loopbox serve` with TLS, and clients of GnuTLS: libnbd's tools and QEMU's.

use std::path::{Path, PathBuf};
use std::process::Output;

use rig::{User, requires, run_command};

use crate::serve::{Server, image, same};
use crate::session::Session;

const MIB: u64 = 1 << 20;

/// What certificates of OpenSSL's are made with.
const CONFIGURATION: &str = "
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
[server]
basicConstraints = CA:FALSE
subjectAltName = DNS:localhost,IP:127.0.0.1,IP:::1
extendedKeyUsage = serverAuth
[client]
basicConstraints = CA:FALSE
keyUsage = critical,digitalSignature,keyEncipherment
extendedKeyUsage = clientAuth
[sign]
default_ca = authority
[authority]
database = index.txt
default_md = sha256
default_crl_days = 30
crlnumber = crlnumber
crl_extensions = list
[list]
authorityKeyIdentifier = keyid
[empty]
";

/// Who signs certificates, in a folder of the session.
struct Authority<'a> {
    session: &'a Session,
    folder: PathBuf,
}

impl<'a> Authority<'a> {
    fn new(session: &'a Session, name: &str) -> Self {
        let authority = Self { session, folder: session.join(name) };
        run_command(session.command("mkdir").arg(&authority.folder));
        std::fs::write(authority.folder.join("openssl.conf"), CONFIGURATION).unwrap();
        let (uid, gid) = User::Ordinary.ids();
        for (name, text) in [("index.txt", ""), ("crlnumber", "01\n")] {
            std::fs::write(authority.folder.join(name), text).unwrap();
            if rig::is_root() {
                std::os::unix::fs::chown(authority.folder.join(name), Some(uid), Some(gid)).unwrap();
            }
        }
        authority.make("ca", "ec", &[]);
        authority
    }

    fn openssl(&self, words: &[&str]) {
        run_command(self.session.command("openssl").current_dir(&self.folder).args(words));
    }

    /// `NAME-cert.pem` and `NAME-key.pem`, signed where `signed` says by whom.
    fn make(&self, name: &str, algorithm: &str, signed: &[&str]) {
        let (key, certificate) = (format!("{name}-key.pem"), format!("{name}-cert.pem"));
        let curve: &[&str] = if algorithm == "ec" { &["-pkeyopt", "ec_paramgen_curve:P-256"] } else { &[] };
        let words = ["req", "-x509", "-config", "openssl.conf", "-nodes", "-days", "30", "-newkey", algorithm];
        let names = ["-subj", &format!("/CN={name} of loopbox"), "-extensions", name, "-keyout", &key];
        self.openssl(&[&words[..], curve, &names[..], &["-out", &certificate], signed].concat());
    }

    fn sign(&self, name: &str, algorithm: &str) {
        self.make(name, algorithm, &["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem"]);
    }

    /// Takes a certificate back.
    fn revoke(&self, name: &str) {
        let sign = ["ca", "-config", "openssl.conf", "-name", "authority", "-cert", "ca-cert.pem", "-keyfile"];
        self.openssl(&[&sign[..], &["ca-key.pem", "-revoke", &format!("{name}-cert.pem")]].concat());
        self.openssl(&[&sign[..], &["ca-key.pem", "-gencrl", "-out", "ca-crl.pem"]].concat());
    }

    fn path(&self) -> &str {
        self.folder.to_str().unwrap()
    }

    /// The URI of `server` for a client with this folder.
    fn uri(&self, server: &Server) -> String {
        let mark = if server.uri.contains('?') { '&' } else { '?' };
        format!("{}{mark}tls-certificates={}", server.uri, self.path())
    }
}

fn nbdinfo(session: &Session, uri: &str) -> Output {
    rig::output(session.command("nbdinfo").args(["--size", uri]))
}

/// That the client got nothing.
fn refused(session: &Session, uri: &str) {
    let output = nbdinfo(session, uri);
    assert!(!output.status.success(), "{uri}: {}", rig::text(&output));
}

fn port(uri: &str) -> &str {
    uri.rsplit(':').next().unwrap()
}

#[test]
fn clients_of_gnutls_read_and_write_over_tls() {
    requires!("nbdinfo", "nbdcopy", "nbdsh", "openssl", "qemu-img");
    let session = Session::new(User::Ordinary, "nbd-tls");
    let disk = image(&session, "disk.img", 16 * MIB);
    let other = Authority::new(&session, "other");
    for (algorithm, address) in [("rsa:2048", "localhost:0"), ("ec", "[::1]:0")] {
        let authority = Authority::new(&session, algorithm.trim_end_matches(":2048"));
        authority.sign("server", algorithm);
        let server = Server::start(&session, &["disk.img", "--nbd", address, "--tls-certificates", authority.path()]);
        assert!(server.uri.starts_with("nbds://"), "{}", server.uri);
        let uri = authority.uri(&server);
        let output = nbdinfo(&session, &uri);
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), (16 * MIB).to_string(), "{}", rig::text(&output));
        // Who does not ask for it, and who does not know who signed.
        refused(&session, &server.uri.replace("nbds:", "nbd:"));
        refused(&session, &other.uri(&server));
        // All of it, out and in, on several connections.
        let copy = session.join("copy.img");
        run_command(session.command("nbdcopy").args(["-C", "3", &uri]).arg(&copy));
        same(&disk, &copy);
        let script = r#"
import os, nbd
h.set_uri_allow_local_file(True)
h.connect_uri(os.environ["uri"])
assert h.get_tls_negotiated() and h.get_structured_replies_negotiated()
data = os.urandom(3 << 20)
h.pwrite(data, 12345)
assert h.pread(3 << 20, 12345) == data
buffers = [nbd.Buffer(1 << 20) for _ in range(48)]
cookies = [h.aio_pread(buffer, 12345) for buffer in buffers]
cookies += [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data[:1 << 20])), 12345) for n in range(16)]
while cookies:
    h.poll(-1)
    cookies = [cookie for cookie in cookies if not h.aio_command_completed(cookie)]
assert all(bytes(buffer.to_bytearray()) == data[:1 << 20] for buffer in buffers)
h.flush()
h.shutdown()
"#;
        run_command(session.command("nbdsh").env("uri", &uri).args(["-c", script]));
        run_command(session.command("nbdcopy").arg("--flush").arg(&copy).arg(&uri));
        same(&disk, &copy);
        // QEMU's way.
        let object = format!("tls-creds-x509,id=tls,endpoint=client,dir={}", authority.path());
        let host = if address.starts_with('[') { "::1" } else { "localhost" };
        let node = format!("driver=nbd,host={host},port={},tls-creds=tls", port(&server.uri));
        let words = ["convert", "--object", &object, "--image-opts", &node, "-O", "raw"];
        let out = session.join("out.img");
        run_command(session.command("qemu-img").args(words).arg(&out));
        same(&disk, &out);
        // The one who did not know who signed.
        let said = server.end();
        assert!(said.lines().all(|line| line.contains("TLS")) && said.contains("TLS with an NBD client"), "{said}");
    }
}

#[test]
fn clients_show_their_certificates() {
    requires!("nbdinfo", "openssl");
    let session = Session::new(User::Ordinary, "nbd-tls-clients");
    image(&session, "disk.img", MIB);
    let ours = Authority::new(&session, "ours");
    ours.sign("server", "ec");
    // Who trusts the server, and is signed by another.
    let theirs = Authority::new(&session, "theirs");
    theirs.sign("client", "ec");
    std::fs::copy(ours.folder.join("ca-cert.pem"), theirs.folder.join("ca-cert.pem")).unwrap();
    let words = ["disk.img", "--nbd", "./nbd.sock", "--tls-certificates", ours.path(), "--tls-verify-peer"];
    let server = Server::start(&session, &words);
    assert!(server.uri.starts_with("nbds+unix://"), "{}", server.uri);
    let uri = |authority: &Authority<'_>| format!("{}&tls-verify-peer=false", authority.uri(&server));
    refused(&session, &uri(&ours));
    refused(&session, &uri(&theirs));
    ours.sign("client", "ec");
    let output = nbdinfo(&session, &uri(&ours));
    assert!(output.status.success(), "{}", rig::text(&output));
    let said = server.end();
    assert!(said.contains("TLS with an NBD client"), "{said}");

    // Taken back.
    ours.revoke("client");
    let server = Server::start(&session, &words);
    refused(&session, &format!("{}&tls-verify-peer=false", ours.uri(&server)));
    assert!(server.end().to_lowercase().contains("revoked"));
}

#[test]
fn a_certificate_is_made_on_the_spot() {
    requires!("nbdinfo", "openssl");
    let session = Session::new(User::Ordinary, "nbd-tls-spot");
    let other = Authority::new(&session, "other");
    image(&session, "disk.img", MIB);
    run_command(session.command("mkdir").arg(session.join("trust")));
    let words = ["disk.img", "--nbd", "localhost:0", "--tls", "--certificate", "trust/ca-cert.pem"];
    let server = Server::start(&session, &words);
    let trusted = format!("{}?tls-certificates={}", server.uri, session.join("trust").display());
    let output = nbdinfo(&session, &trusted);
    assert!(output.status.success(), "{}", rig::text(&output));
    refused(&session, &other.uri(&server));
    server.end();
    // Both are taken; what was agreed before TLS is forgotten.
    let server = Server::start(&session, &[&words[..3], &["--tls=on", "--certificate", words[5]]].concat());
    let trusted = format!("{}?tls-certificates={}", server.uri, session.join("trust").display());
    assert!(nbdinfo(&session, &trusted).status.success());
    assert!(nbdinfo(&session, &server.uri.replace("nbds:", "nbd:")).status.success());
    server.end();
}

#[test]
fn words_about_tls_that_make_no_sense_are_refused() {
    requires!("openssl");
    let session = Session::new(User::Ordinary, "nbd-tls-words");
    image(&session, "disk.img", MIB);
    let authority = Authority::new(&session, "certificates");
    let fails = |words: &[&str], wanted: &str| {
        let mut command = session.loopbox();
        command.current_dir(session.join(".")).args(["serve", "disk.img,ro"]).args(words);
        let output = rig::output(&mut command);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", rig::text(&output));
        assert!(rig::text(&output).contains(wanted), "{words:?}: {}", rig::text(&output));
    };
    fails(&["--nbd", "0", "--tls-certificates", authority.path()], "server-cert.pem");
    authority.sign("server", "ec");
    authority.make("other", "ec", &["-extensions", "empty"]);
    let swap = |from: &str, to: &str| std::fs::rename(authority.folder.join(from), authority.folder.join(to)).unwrap();
    swap("other-key.pem", "server-key.pem");
    fails(&["--nbd", "0", "--tls-certificates", authority.path()], "server-key.pem");
    fails(&["--nbd", "0", "--tls-verify-peer"], "--tls-certificates");
    fails(&["--stdio", "--tls"], "--stdio");
    // Beyond loopback: with TLS that is required, and not with one that may be left away.
    authority.sign("server", "ec");
    fails(&["--nbd", "0.0.0.0:0", "--tls=on", "--tls-certificates", authority.path()], "--beyond-loopback");
    fails(&["--nbd", "0.0.0.0:0"], "--tls");
    let server =
        Server::start(&session, &["disk.img,ro", "--nbd", "0.0.0.0:0", "--tls-certificates", authority.path()]);
    assert!(Path::new("/proc").join(server.id().to_string()).exists());
    assert_eq!(server.end(), "");
}
