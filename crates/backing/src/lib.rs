//! Where a disk's bytes come from.

#![forbid(unsafe_code)]
