//! A client and a server that say no more than what is measured: `talk KIND ADDRESS:PORT MILLISECONDS` prints what it
//! achieved a second; `here` as the address is a server of its own, in the same network.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Bytes of a request, and of its answer.
const REQUEST_BYTES: usize = 64;
/// Bytes that are written at a time.
const BULK_BYTES: usize = 256 << 10;
/// The first byte of a connection says what it is for.
const BULK: u8 = b'b';
const ECHO: u8 = b'e';
const CONNECT: u8 = b'c';

/// Milliseconds, as a word, in seconds.
pub fn seconds(milliseconds: &str) -> f64 {
    milliseconds.parse::<f64>().unwrap() / 1e3
}

/// The client of the command line; prints a number.
pub fn main(words: &[String]) {
    let [kind, target, milliseconds] = words else { panic!("talk KIND ADDRESS:PORT|here MILLISECONDS") };
    let target = match target.as_str() {
        "here" => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            std::thread::spawn(move || answer_all(&listener));
            address
        }
        other => other.to_owned(),
    };
    let time = Duration::from_secs_f64(seconds(milliseconds));
    let value = match kind.as_str() {
        "bulk" => bulk(&target, time),
        "echo" => echo(&target, time),
        "connect" => connect(&target, time),
        _ => panic!("bulk, echo or connect"),
    };
    println!("{value}");
}

/// Serves at 127.0.0.1, for ever.
pub fn serve(port: u16) {
    answer_all(&TcpListener::bind(("127.0.0.1", port)).unwrap());
}

fn answer_all(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        let mut kind = [0];
        // A client that goes away has what it wanted.
        match stream.read_exact(&mut kind) {
            // A thread for each connection would be what is measured.
            Ok(()) if kind[0] == CONNECT => drop(stream.write_all(&kind)),
            Ok(()) => drop(std::thread::spawn(move || answer(stream, kind[0]))),
            Err(_) => {}
        }
    }
}

fn answer(mut stream: TcpStream, kind: u8) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    match kind {
        BULK => {
            let mut buffer = vec![0; BULK_BYTES];
            let mut bytes = 0u64;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return stream.write_all(&bytes.to_be_bytes()),
                    got => bytes += got as u64,
                }
            }
        }
        _ => {
            let mut buffer = [0; REQUEST_BYTES];
            loop {
                stream.read_exact(&mut buffer)?;
                stream.write_all(&buffer)?;
            }
        }
    }
}

fn open(target: &str, kind: u8) -> TcpStream {
    let mut stream = TcpStream::connect(target).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&[kind]).unwrap();
    stream
}

/// Bytes a second, from the first to the server's word that it has all.
fn bulk(target: &str, time: Duration) -> f64 {
    let mut stream = open(target, BULK);
    let buffer = vec![7; BULK_BYTES];
    let start = Instant::now();
    let mut sent = 0u64;
    while start.elapsed() < time {
        stream.write_all(&buffer).unwrap();
        sent += BULK_BYTES as u64;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut said = [0; 8];
    stream.read_exact(&mut said).unwrap();
    assert_eq!(u64::from_be_bytes(said), sent, "bytes are missing");
    sent as f64 / start.elapsed().as_secs_f64()
}

/// Round trips a second.
fn echo(target: &str, time: Duration) -> f64 {
    let mut stream = open(target, ECHO);
    let mut buffer = [7; REQUEST_BYTES];
    let start = Instant::now();
    let mut trips = 0u64;
    while start.elapsed() < time {
        stream.write_all(&buffer).unwrap();
        stream.read_exact(&mut buffer).unwrap();
        trips += 1;
    }
    trips as f64 / start.elapsed().as_secs_f64()
}

/// Connections a second: each is made, answered and closed.
fn connect(target: &str, time: Duration) -> f64 {
    let start = Instant::now();
    let mut made = 0u64;
    while start.elapsed() < time {
        let mut stream = open(target, CONNECT);
        stream.read_exact(&mut [0]).unwrap();
        made += 1;
    }
    made as f64 / start.elapsed().as_secs_f64()
}
