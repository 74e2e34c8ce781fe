//! The power fails at every write and every flush; an operation fails, for each of them.
