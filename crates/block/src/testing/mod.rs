//! Suites that every device must pass.
