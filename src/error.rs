//! What can go wrong between us and Redis, and what follows from it: try again, or stop and say
//! why. A denial is no error but an outcome.
//!
//! redis-rs names only some of the errors that a server sends; the others are told by their code
//! (the first word of the message).

use std::error::Error as StdError;
use std::sync::Arc;
use std::{fmt, io};

use redis::RedisError;

/// An error says what was being done and what came of it.
#[derive(Debug)]
pub enum Error {
    /// Redis could not be reached, answered with an error, or the link broke.
    Redis {
        /// What was being done, as in "could not ...".
        doing: &'static str,
        /// What redis-rs or the server said.
        source: RedisError,
    },
    /// Redis answered something that is no answer to what was asked.
    Reply {
        /// What was being done.
        doing: &'static str,
        /// What came.
        got: String,
    },
    /// The system gives no thread, or no file.
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A thread of the session has ended though nobody has asked it to.
    Ended(&'static str),
    /// The instance's lease is not ours any more: another process has taken the name, or it ran
    /// out. Nothing was changed.
    Fenced,
    /// A state or a Redis that must not be worked on; it needs a person.
    Unfit(String),
}

/// What to do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// It may heal by itself: connect anew and go on.
    Retry,
    /// The password is wrong or a permission is missing.
    Credentials,
    /// It will not heal without a person.
    Person,
}

impl Error {
    /// An error of redis-rs while doing something; for `map_err`.
    pub fn redis(doing: &'static str) -> impl FnOnce(RedisError) -> Self {
        move |source| Self::Redis { doing, source: of_first_command(source) }
    }

    /// The code that the server's message began with, such as `OOM`; for a script, the code of the command that
    /// was refused in it.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Redis { source, .. } => said(source).map(|(code, _)| code),
            _ => None,
        }
    }

    /// Whether the server knows no such command.
    pub fn is_unknown_command(&self) -> bool {
        matches!(self, Self::Redis { source, .. } if is_unknown_command(source))
    }

    /// Whether this Redis user may not do that.
    pub fn lacks_permission(&self) -> bool {
        let Self::Redis { source, .. } = self else { return false };
        code_within(source) == Some("NOPERM")
    }

    /// Whether a signal, or a pause of this process, ended the wait for a reply: nothing is wrong with
    /// the link then.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Redis { source, .. } if is_interrupted(source))
    }

    /// Whether the link stands and no answer came for as long as it was waited for.
    pub fn is_unanswered(&self) -> bool {
        self.io_kind() == Some(io::ErrorKind::WouldBlock)
    }

    /// What happened to the link, if that is what went wrong.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        let Self::Redis { source, .. } = self else { return None };
        io_kind(source)
    }

    /// Whether the link failed. That a signal ended the wait for a reply does not say so.
    pub fn is_of_link(&self) -> bool {
        self.io_kind().is_some() && !self.is_interrupted()
    }

    /// What follows from this error.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Fenced | Self::Reply { .. } | Self::System { .. } | Self::Ended(_) => {
                Remedy::Retry
            }
            Self::Unfit(_) => Remedy::Person,
            Self::Redis { source, .. } => {
                if source.kind() == redis::ErrorKind::AuthenticationFailed {
                    return Remedy::Credentials;
                }
                if source.kind() == redis::ErrorKind::InvalidClientConfig {
                    return Remedy::Person;
                }
                if is_unauthenticated(source) {
                    return Remedy::Credentials;
                }
                if is_unknown_command(source) {
                    return Remedy::Person;
                }
                match code_within(source) {
                    Some("WRONGPASS" | "NOPERM") => Remedy::Credentials,
                    // A wrong type on a key that all share: no event is at fault, and working on
                    // would lend from half a library.
                    Some("WRONGTYPE") => Remedy::Person,
                    // LOADING, READONLY, MASTERDOWN, OOM, BUSY, MISCONF, NOREPLICAS, NOGROUP,
                    // UNBLOCKED, NOSCRIPT and whatever comes: the server's trouble, not ours.
                    _ => Remedy::Retry,
                }
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis { doing, source } => write!(f, "could not {doing}: {}", describe(source)),
            Self::Reply { doing, got } => {
                write!(f, "could not {doing}: unexpected reply {got}")
            }
            Self::System { doing, source } => write!(f, "could not {doing}: {source}"),
            Self::Ended(thread) => write!(f, "{thread} has ended by itself"),
            Self::Fenced => write!(f, "this process does not hold its lease any more"),
            Self::Unfit(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}

/// Of a pipeline redis-rs tells that commands failed, without code and words that could be told: what
/// the server said to the first of them.
fn of_first_command(error: RedisError) -> RedisError {
    let errors = error.clone().into_server_errors();
    let first = errors.as_deref().and_then(<[_]>::first);
    first.map_or(error, |(_, said)| said.clone().into())
}

/// The code and the rest of the server's message. Where Redis 6.2 wraps what a command in a script was refused
/// (`@user_script: LINE: -`), those of the message inside.
fn said(error: &RedisError) -> Option<(&str, &str)> {
    let (code, detail) = (error.code()?, error.detail().unwrap_or_default());
    match detail.split_once(": -") {
        Some((_, said)) if code == "@user_script:" => {
            Some(said.split_once(' ').unwrap_or((said, "")))
        }
        _ => Some((code, detail)),
    }
}

/// The code of what went wrong, in a script as well: there Redis puts ERR in front of what a user may
/// not do, and before version 7 of all that went wrong. 6.2 puts `@user_script: LINE:` in front of what
/// a script was told by pcall and passes on.
fn code_within(error: &RedisError) -> Option<&str> {
    let (code, detail) = said(error)?;
    let denials = [
        "The user executing the script can't ",
        "ACL failure in script",
        // redis-rs has put ERR in front of what was said to SELECT.
        "no permissions to run ",
    ];
    match code {
        "ERR" | "@user_script:" if denials.iter().any(|words| detail.contains(words)) => {
            Some("NOPERM")
        }
        "ERR" if detail.contains(": WRONGTYPE ") => Some("WRONGTYPE"),
        code => Some(code),
    }
}

/// Whether the server has no such command, or has had it taken away by `rename-command`.
fn is_unknown_command(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    ["unknown command", "Unknown command called", "Unknown Redis command called"]
        .iter()
        .any(|words| detail.contains(words))
}

/// A server that wants a password says so, to a command of more than ten words by the way, and to
/// SELECT, where redis-rs leaves the code out.
fn is_unauthenticated(error: &RedisError) -> bool {
    let words = ["unauthenticated", "Authentication required"];
    error.code() == Some("NOAUTH")
        || error.detail().is_some_and(|detail| words.iter().any(|it| detail.contains(it)))
}

/// The same of an error of redis-rs: see [`Error::is_interrupted`].
pub fn is_interrupted(error: &RedisError) -> bool {
    io_kind(error) == Some(io::ErrorKind::Interrupted)
}

fn io_kind(error: &RedisError) -> Option<io::ErrorKind> {
    // redis-rs shares the cause among the copies of an error.
    let shared = StdError::source(error)?.downcast_ref::<Arc<dyn StdError + Send + Sync>>()?;
    shared.downcast_ref::<io::Error>().map(io::Error::kind)
}

/// A server's or a system's own words, without redis-rs' frame around them.
fn describe(error: &RedisError) -> String {
    match said(error) {
        _ if is_unauthenticated(error) => "a password is wanted".to_owned(),
        Some((code, "")) => code.to_owned(),
        Some((code, detail)) => {
            // Which script it was, and where in it, matters only if it is at fault.
            let script = if code == "ERR" { None } else { detail.find(" script: ") };
            let said = &detail[..script.unwrap_or(detail.len())];
            format!("{code} {}", said.trim_end_matches('.'))
        }
        _ if error.kind() == redis::ErrorKind::AuthenticationFailed => {
            let reason = error.detail().map(|reason| format!(": {reason}"));
            "the user or the password was refused".to_owned() + &reason.unwrap_or_default()
        }
        // The system's words for it are those for a resource that is unavailable.
        _ if io_kind(error) == Some(io::ErrorKind::WouldBlock) => "no answer in time".to_owned(),
        // By a peer of TLS in a long sentence.
        _ if io_kind(error) == Some(io::ErrorKind::UnexpectedEof) => {
            "the connection was closed".to_owned()
        }
        _ if is_no_redis(error) => "what answers there does not speak Redis' protocol".to_owned(),
        _ if error.kind() == redis::ErrorKind::Parse => {
            format!("no answer that Redis gives: {}", said_instead(error))
        }
        _ => error.to_string(),
    }
}

/// Whether what came is no reply at all; one of another type than was expected is told in the same
/// kind of error.
fn is_no_redis(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Parse
        && error.detail().is_some_and(|detail| detail.starts_with("Parse error"))
}

/// What came where something else was expected: redis-rs tells it at the end, behind words about Rust's types.
fn said_instead(error: &RedisError) -> String {
    let words = error.to_string();
    let value = words.rsplit_once("(value was ").and_then(|(_, value)| value.strip_suffix(')'));
    value.unwrap_or(&words).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server says to each command of a pipeline.
    struct Saying(&'static [&'static str]);

    impl redis::ConnectionLike for Saying {
        fn req_packed_command(&mut self, _: &[u8]) -> redis::RedisResult<redis::Value> {
            redis::parse_redis_value(self.0[0].as_bytes())
        }

        fn req_packed_commands(
            &mut self,
            _: &[u8],
            _: usize,
            _: usize,
        ) -> redis::RedisResult<Vec<redis::Value>> {
            self.0.iter().map(|said| redis::parse_redis_value(said.as_bytes())).collect()
        }

        fn get_db(&self) -> i64 {
            0
        }

        fn check_connection(&mut self) -> bool {
            true
        }

        fn is_open(&self) -> bool {
            true
        }
    }

    /// redis-rs tells of a pipeline that commands failed: a wrong type was tried again for ever.
    #[test]
    fn an_error_in_a_pipeline_is_told_like_that_of_a_single_command() {
        for (said, code, remedy) in [
            ("-WRONGTYPE Operation against a key\r\n", "WRONGTYPE", Remedy::Person),
            ("-NOPERM this user has no permissions\r\n", "NOPERM", Remedy::Credentials),
            ("-OOM command not allowed\r\n", "OOM", Remedy::Retry),
        ] {
            for replies in [&[said][..], &["+OK\r\n", said]] {
                let mut saying = Saying(Box::leak(replies.into()));
                let reply = redis::pipe().cmd("A").cmd("B").query::<()>(&mut saying);
                let error = Error::redis("ask")(reply.unwrap_err());
                assert_eq!((error.code(), error.remedy()), (Some(code), remedy), "{error}");
                assert!(error.to_string().contains(said[1..].trim_end()), "{error}");
            }
        }
    }

    /// The words of Redis 6.2, 7.0 and later.
    #[test]
    fn what_goes_wrong_in_a_script_has_the_same_consequence() {
        for (said, remedy) in [
            (
                "-ERR Error running script (call to f_0): @user_script:1: WRONGTYPE Operation\r\n",
                Remedy::Person,
            ),
            // A batch was sent again and again for ten seconds.
            (
                "-@user_script: 106: The user executing the script can't run this command or \
                 subcommand\r\n",
                Remedy::Credentials,
            ),
            (
                "-ERR The user executing the script can't run this command or subcommand script: \
                 0, on @user_script:1.\r\n",
                Remedy::Credentials,
            ),
            (
                "-ERR ACL failure in script: User x has no permissions script: 0, on \
                 @user_script:1.\r\n",
                Remedy::Credentials,
            ),
            ("-ERR user_script:1: attempt to index a nil value\r\n", Remedy::Retry),
        ] {
            let reply = redis::cmd("EVAL").query::<()>(&mut Saying(Box::leak([said].into())));
            assert_eq!(Error::redis("ask")(reply.unwrap_err()).remedy(), remedy, "{said}");
        }
    }

    /// Redis 6.2 tells the line of the script, and Redis 7 its digest.
    #[test]
    fn what_a_script_was_refused_is_told_as_if_it_was_a_command() {
        for told in [
            "-@user_script: 149: -READONLY You can't write against a read only replica.\r\n",
            "-READONLY You can't write against a read only replica. script: 0, on @user_script:1.\r\n",
            "-READONLY You can't write against a read only replica.\r\n",
        ] {
            let reply = redis::cmd("EVAL").query::<()>(&mut Saying(Box::leak([told].into())));
            let error = Error::redis("ask")(reply.unwrap_err());
            let words = "could not ask: READONLY You can't write against a read only replica";
            assert_eq!((error.to_string().as_str(), error.code()), (words, Some("READONLY")));
        }
    }

    /// libraryd and library-admin said "could not ask Redis about itself: NOAUTH Authentication required."
    #[test]
    fn a_missing_password_is_told_in_the_same_words_by_all() {
        let reply = redis::parse_redis_value(b"-NOAUTH Authentication required.\r\n").unwrap();
        let error = Error::redis("ask")(reply.extract_error().unwrap_err());
        assert_eq!(error.to_string(), "could not ask: a password is wanted");
        assert_eq!(error.remedy(), Remedy::Credentials);
    }

    /// "Incompatible type - "Response type not vector compatible." (value was ok)"
    #[test]
    fn a_reply_to_something_else_is_told_without_rusts_types() {
        let reply = redis::cmd("INFO").query::<Vec<u8>>(&mut Saying(&["+OK\r\n"]));
        let error = Error::redis("ask")(reply.unwrap_err());
        assert_eq!(error.to_string(), "could not ask: no answer that Redis gives: ok");
    }

    /// Ctrl-C while an answer was waited for was told as the loss of Redis.
    #[test]
    fn a_signal_is_no_loss_of_the_link() {
        let error = |kind: io::ErrorKind| Error::redis("wait")(io::Error::from(kind).into());
        assert!(error(io::ErrorKind::Interrupted).is_interrupted());
        assert!(!error(io::ErrorKind::BrokenPipe).is_interrupted());
    }
}
