//! What can be wrong with a spec.

use std::fmt;

use super::WORDS;

/// The word that was wrong, and what would have been possible.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wrong {
    /// No file is named.
    NoPath,
    /// The file's name holds a NUL byte.
    NulInPath,
    /// More options than [`super::STEPS_MAX`].
    TooMany,
    /// There is no such option.
    UnknownOption {
        /// As typed.
        word: String,
        /// The option that was probably meant.
        near: Option<&'static str>,
    },
    /// The option needs a value.
    MissingValue {
        /// The option.
        word: &'static str,
        /// What may follow.
        possible: &'static str,
    },
    /// The option takes no value.
    UnwantedValue {
        /// The option.
        word: &'static str,
        /// As typed.
        value: String,
    },
    /// The value is none of the possible ones.
    BadValue {
        /// The option.
        word: &'static str,
        /// As typed.
        value: String,
        /// What may follow.
        possible: &'static str,
    },
    /// Two options exclude each other.
    Contradiction(&'static str, &'static str),
    /// The option says more of another one, which does not stand before it.
    NotBehind {
        /// The option.
        word: &'static str,
        /// The other one.
        before: &'static str,
    },
}

impl Wrong {
    pub(super) fn unknown(word: &[u8]) -> Self {
        let near = WORDS.iter().map(|known| (distance(word, known.name.as_bytes()), known.name)).min();
        // A third of the letters may differ: "partiton" is a slip, "frobnicate" is not.
        let near = near.filter(|(distance, name)| distance.saturating_mul(3) <= name.len().max(3));
        Self::UnknownOption { word: show(word), near: near.map(|(_, name)| name) }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPath => f.write_str("no file is named before the options"),
            Self::NulInPath => f.write_str("the file's name holds a NUL byte"),
            Self::TooMany => write!(f, "more than {} options", super::STEPS_MAX),
            Self::UnknownOption { word, near } => {
                write!(f, "unknown option \"{word}\"")?;
                if let Some(near) = near {
                    write!(f, ", did you mean \"{near}\"?")?;
                }
                f.write_str(" (possible:")?;
                for (at, known) in WORDS.iter().enumerate() {
                    write!(f, "{} {}", if at == 0 { "" } else { "," }, known.name)?;
                }
                f.write_str("; a comma in a file's name is written \\,)")
            }
            Self::MissingValue { word, possible } => write!(f, "option \"{word}\" needs a value: {possible}"),
            Self::UnwantedValue { word, value } => {
                write!(f, "option \"{word}\" takes no value (\"{value}\" was given)")
            }
            Self::BadValue { word, value, possible } => {
                write!(f, "option \"{word}\" cannot be \"{value}\" (possible: {possible})")
            }
            Self::Contradiction(one, other) if one == other => write!(f, "option \"{one}\" stands there twice"),
            Self::NotBehind { word, before } => write!(f, "option \"{word}\" stands behind \"{before}\" alone"),
            Self::Contradiction(one, other) => write!(f, "options \"{one}\" and \"{other}\" exclude each other"),
        }
    }
}

impl std::error::Error for Wrong {}

/// Bytes as typed, for a message of one line: at most 64 characters.
pub(super) fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(64).flat_map(char::escape_debug).collect()
}

/// Edits (insert, delete, replace) from one word to another; long words are cut.
fn distance(one: &[u8], other: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, letter) in one.iter().take(32).enumerate() {
        let mut diagonal = above;
        let mut left = above.saturating_add(1);
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, wanted) in row.iter_mut().skip(1).zip(other) {
            let replaced = diagonal.saturating_add(usize::from(letter != wanted));
            diagonal = *cell;
            left = replaced.min(cell.saturating_add(1)).min(left.saturating_add(1));
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}
