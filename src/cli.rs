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
    /// The complaint about an argument that nobody takes.
    pub fn unexpected(&self) -> Usage {
        Usage(match self {
            Self::Short(c) => format!("unknown option -{c}"),
            Self::Long(name) => format!("unknown option --{name}"),
            Self::Value(value) => format!("unexpected argument {value:?}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_two_dashes_everything_is_positional() {
        let mut args = Args::from_list(["-a", "x", "--", "--db"]);
        assert_eq!(args.next(), Ok(Some(Arg::Short('a'))));
        assert_eq!(args.text(), Ok("x".into()));
        assert_eq!(args.next(), Ok(Some(Arg::Value("--db".into()))));
        assert_eq!(args.next(), Ok(None));
    }
}
