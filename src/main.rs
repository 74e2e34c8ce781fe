//! loopbox: a program's own disk, loopback network and sound card.
fn main() {}
