//! Structures of a fixed size, filled field by field.

/// So many zero bytes, to be filled.
#[derive(Debug, Clone)]
pub(super) struct Fields(pub Vec<u8>);

impl Fields {
    pub fn new(bytes: usize) -> Self {
        Self(vec![0; bytes])
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0.iter_mut().skip(at).zip(bytes).for_each(|(to, byte)| *to = *byte);
    }

    pub fn put16(&mut self, at: usize, number: u16) {
        self.put(at, &number.to_le_bytes());
    }

    pub fn put32(&mut self, at: usize, number: u32) {
        self.put(at, &number.to_le_bytes());
    }
}
