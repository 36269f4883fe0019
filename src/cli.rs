//! Command lines: raw arguments in, plain data out. The only file that knows lexopt.

use std::ffi::OsString;
use std::fmt;

/// A fault of the command line or of a file that it names: exit status 2. One line that says what
/// is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

impl From<lexopt::Error> for Usage {
    fn from(error: lexopt::Error) -> Self {
        Self(error.to_string())
    }
}

/// A wrong command line.
#[derive(Debug)]
pub struct WrongCommandLine {
    /// What is wrong with it.
    pub fault: Usage,
    /// How the command that was meant is used, in one line.
    pub usage: String,
}

/// One argument, owned, so that its value can be asked for while it is looked at.
#[derive(Debug, PartialEq, Eq)]
pub enum Arg {
    /// `-a`
    Short(char),
    /// `--address`
    Long(String),
    /// A positional argument.
    Value(OsString),
}

/// The arguments of a command line, one after the other.
pub struct Args(lexopt::Parser);

impl Args {
    /// The arguments of this process.
    pub fn from_env() -> Self {
        Self(lexopt::Parser::from_env())
    }

    /// Arguments without the program's name, for tests.
    pub fn from_list<T>(args: impl IntoIterator<Item = T>) -> Self
    where
        T: Into<OsString>,
    {
        Self(lexopt::Parser::from_args(args.into_iter().map(Into::into).collect::<Vec<_>>()))
    }

    /// The next argument. After `--` all are positional.
    ///
    /// # Errors
    /// An option was given a value that it does not take.
    #[allow(clippy::should_implement_trait)] // It can fail and lends nothing out: no iterator.
    pub fn next(&mut self) -> Result<Option<Arg>, Usage> {
        Ok(self.0.next()?.map(|arg| match arg {
            lexopt::Arg::Short(c) => Arg::Short(c),
            lexopt::Arg::Long(name) => Arg::Long(name.to_owned()),
            lexopt::Arg::Value(value) => Arg::Value(value),
        }))
    }

    /// The value of the option that was just returned, as it is.
    ///
    /// # Errors
    /// There is none.
    pub fn raw(&mut self) -> Result<OsString, Usage> {
        Ok(self.0.value()?)
    }

    /// The value of the option that was just returned, as text.
    ///
    /// # Errors
    /// There is none, or it is not UTF-8.
    pub fn text(&mut self) -> Result<String, Usage> {
        self.raw()?.into_string().map_err(|raw| Usage(format!("{raw:?} is not UTF-8")))
    }
}

impl Arg {
    /// The complaint about an option that is none of `known`, with the one that was meant, if that
    /// can be told.
    pub fn unknown<'a>(&self, known: impl IntoIterator<Item = &'a str>) -> Usage {
        let Usage(message) = self.unexpected();
        let Self::Long(name) = self else { return Usage(message) };
        Usage(match nearest(name, known) {
            Some(meant) => format!("{message}: did you mean --{meant}?"),
            None => message,
        })
    }

    /// The complaint about an argument that nobody takes.
    pub fn unexpected(&self) -> Usage {
        Usage(match self {
            Self::Short(c) => format!("unknown option -{c}"),
            Self::Long(name) => format!("unknown option --{name}"),
            Self::Value(value) => format!("unexpected argument {value:?}"),
        })
    }
}

/// The complaint about a word that is none of `known`, with the one that was meant, or all of them.
pub fn unknown_word(message: String, word: &str, known: &[&str]) -> Usage {
    Usage(match nearest(word, known.iter().copied()) {
        Some(meant) => format!("{message}: did you mean {meant}?"),
        None => format!("{message}; there are {}", known.join(", ")),
    })
}

/// A word as it is typed in a shell.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:@+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The candidate that somebody who typed `word` most likely meant: the nearest by letters added,
/// dropped, replaced, if a few of them are enough.
fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody means an option by hundreds of letters.
    const LONGEST: usize = 40;
    if word.len() > LONGEST {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (distance(word.as_bytes(), candidate.as_bytes()), candidate))
        .min()
        .filter(|(steps, candidate)| *steps <= candidate.len().div_ceil(3))
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_mistake_names_what_was_meant_and_nonsense_names_nothing() {
        let commands = ["request", "return", "batch", "where"];
        assert_eq!(nearest("retrun", commands), Some("return"));
        assert_eq!(nearest("requests", commands), Some("request"));
        assert_eq!(nearest("frobnicate", commands), None);
        assert_eq!(nearest(&"x".repeat(100_000), commands), None);
        assert_eq!(distance(b"kitten", b"sitting"), 3);
    }

    #[test]
    fn a_shell_reads_a_word_as_it_was_meant() {
        for (word, typed) in [
            ("redis://host:7602/2", "redis://host:7602/2"),
            ("señor-x", "señor-x"),
            ("", "''"),
            ("Jorge Luis", "'Jorge Luis'"),
            ("it's $me", r"'it'\''s $me'"),
            ("~/a", "'~/a'"),
        ] {
            assert_eq!(shell_word(word), typed);
        }
    }

    #[test]
    fn after_two_dashes_everything_is_positional() {
        let mut args = Args::from_list(["-a", "x", "--", "--db"]);
        assert_eq!(args.next(), Ok(Some(Arg::Short('a'))));
        assert_eq!(args.text(), Ok("x".into()));
        assert_eq!(args.next(), Ok(Some(Arg::Value("--db".into()))));
        assert_eq!(args.next(), Ok(None));
    }
}
