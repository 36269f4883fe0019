//! The command line of `library-req`: arguments and environment in, plain data out. No I/O except
//! reading a password's file.
//!
//! What can be typed stands in two tables, [`COMMANDS`] and [`OPTIONS`]: parsing, the help and the
//! hints about typing mistakes all read them.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use super::draft::{Draft, id_fault};
use super::query::Filter;
use super::show::Form;
use crate::cli::{Arg, Args, Usage, WrongCommandLine, shell_word, unknown_word};
use crate::clock::{Since, since};
use crate::connect::{ConnectArgs, Target};
use crate::event::{Action, AnswerWish, EventKey, MAX_KEEP_MS};
use crate::ids::{BookId, IdFault, SubmissionId, UserId};
use crate::keys::Keys;
use crate::text::quoted;

/// A subcommand as it is typed.
#[derive(Debug)]
pub struct Command {
    /// Its word.
    pub name: &'static str,
    /// What follows the word.
    pub arguments: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// The options that go with it, those of every command aside.
    pub options: &'static [&'static str],
    /// What it ends with.
    pub statuses: &'static str,
}

const STATUSES: &str = "\
Exit status: 0 done, 1 refused, 2 wrong command line or file (nothing is sent),
3 queued, no outcome yet, 4 no Redis (what was sent is said), 74 cannot write
";
const STATUSES_OF_OUTCOME: &str = "\
Exit status: 0 done, 1 refused, or nothing is known about the event, 2 wrong
command line, 4 no Redis, 74 cannot write
";
const STATUSES_OF_QUESTIONS: &str = "\
Exit status: 0 answered, 2 wrong command line, 4 no Redis, 74 cannot write
";

const SEND_OPTIONS: &[&str] = &["timeout", "no-wait", "id", "remember", "json", "quiet"];

/// The subcommands.
pub const COMMANDS: [Command; 8] = [
    Command {
        name: "request",
        arguments: "USER BOOK...",
        about: "ask for books to be lent to a user",
        options: SEND_OPTIONS,
        statuses: STATUSES,
    },
    Command {
        name: "return",
        arguments: "USER BOOK...",
        about: "give a user's books back",
        options: SEND_OPTIONS,
        statuses: STATUSES,
    },
    Command {
        name: "batch",
        arguments: "[FILE|-]",
        about: "send a file of lines `request|return USER BOOK...`",
        options: &[
            "timeout", "no-wait", "only", "partial", "results", "rejected", "batch-id", "remember",
            "json", "quiet",
        ],
        statuses: STATUSES,
    },
    Command {
        name: "outcome",
        arguments: "EVENT_ID",
        about: "tell what became of request:ID or return:ID",
        options: &["show-user", "json", "quiet"],
        statuses: STATUSES_OF_OUTCOME,
    },
    Command {
        name: "loans",
        arguments: "USER",
        about: "tell which books a user has",
        options: &["json"],
        statuses: STATUSES_OF_QUESTIONS,
    },
    Command {
        name: "where",
        arguments: "BOOK",
        about: "tell where a book is",
        options: &["show-user", "json"],
        statuses: STATUSES_OF_QUESTIONS,
    },
    Command {
        name: "history",
        arguments: "",
        about: "tell the latest outcomes, the oldest first",
        options: &["user", "book", "since", "last", "show-user", "json"],
        statuses: STATUSES_OF_QUESTIONS,
    },
    Command {
        name: "watch",
        arguments: "",
        about: "tell outcomes as they happen, until Ctrl-C",
        options: &["user", "book", "show-user", "json"],
        statuses: STATUSES_OF_QUESTIONS,
    },
];

/// An option as it is typed.
#[derive(Debug)]
pub struct OptionSpec {
    /// Its long name.
    pub name: &'static str,
    /// Its short name.
    pub short: Option<char>,
    /// What its value is called, if it has one.
    pub value: Option<&'static str>,
    /// What it does.
    pub about: &'static str,
}

const fn flag(name: &'static str, about: &'static str) -> OptionSpec {
    OptionSpec { name, short: None, value: None, about }
}

const fn valued(name: &'static str, value: &'static str, about: &'static str) -> OptionSpec {
    OptionSpec { name, short: None, value: Some(value), about }
}

/// The options that are not about the connection.
pub const OPTIONS: [OptionSpec; 18] = [
    valued("timeout", "SECONDS", "how long to wait for an outcome [default: 10]"),
    flag("no-wait", "queue it, print OK and leave"),
    valued("id", "ID", "name it: sent again, it is queued once"),
    valued("remember", "TIME", "for how long it is known: 90m, 12h, 30d [default: 1d]"),
    valued("only", "ACTION", "request or return: lines of the other kind are bad"),
    flag("partial", "send the good lines of a file that has bad ones"),
    valued("results", "FILE", "write them there; as JSON if it ends with .json[l]"),
    valued("rejected", "FILE", "write bad lines there [default: FILE.rejected]"),
    valued("batch-id", "ID", "name the batch [default: made from its content]"),
    valued("user", "USER", "only what concerns this user"),
    valued("book", "BOOK", "only what concerns this book"),
    valued("since", "TIME", "only from then on: 90m, 7d, 2026-01-31[T12:00:00Z]"),
    valued("last", "N", "only the last N [default: 20; no limit with --since]"),
    flag("show-user", "tell who has or had a book, and whose an event is"),
    flag("json", "print JSON, one object a line"),
    OptionSpec {
        name: "quiet",
        short: Some('q'),
        value: None,
        about: "print nothing but errors; the exit status says it",
    },
    OptionSpec { name: "help", short: Some('h'), value: None, about: "print this help" },
    OptionSpec { name: "version", short: Some('V'), value: None, about: "print the version" },
];

/// The options that go with every command.
const COMMON: [&str; 2] = ["help", "version"];

/// How long to wait for an outcome unless told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long what was sent under a name is known unless told otherwise: a day.
const REMEMBERED: Duration = Duration::from_millis(AnswerWish::Keep.ttl_ms());
/// The longest wait that can be asked for: a year.
const MAX_TIMEOUT_SECONDS: f64 = 31_536_000.0;
/// How many outcomes `history` tells unless told otherwise.
const DEFAULT_LAST: usize = 20;

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// Print this text.
    Print(String),
    /// Something with a Redis.
    Run(Box<Run>),
}

/// What is to be done with a Redis.
#[derive(Debug)]
pub struct Run {
    /// Which one.
    pub target: Target,
    /// Under which names.
    pub keys: Keys,
    /// Which part of that Redis it is, see [`ConnectArgs::part`].
    pub part: String,
    /// The options that say all this, to be typed again.
    pub typed: String,
    /// How to answer.
    pub form: Form,
    /// What.
    pub job: Job,
}

impl Run {
    /// Another command, `library-req loans` for example, with these words after it, as it is typed
    /// to ask the same library.
    pub fn command(&self, command: &str, words: &[&str]) -> String {
        let words = words.iter().map(|word| format!(" {}", shell_word(word)));
        format!("{command}{}{}", self.typed, words.collect::<String>())
    }
}

/// The subcommands, with what was said to them.
#[derive(Debug)]
pub enum Job {
    /// `request` and `return`.
    Send(Send),
    /// `batch`.
    Batch(Batch),
    /// `outcome`.
    Outcome {
        /// The events that may be meant; a bare id can be that of a request and of a return.
        events: Vec<EventKey>,
        /// Whether to tell whose it is.
        show_user: bool,
    },
    /// `loans`.
    Loans(UserId),
    /// `where`.
    Where {
        /// The book.
        book: BookId,
        /// Whether to tell who has it.
        show_user: bool,
    },
    /// `history`.
    History {
        /// Which outcomes.
        filter: Filter,
        /// From when on.
        since: Option<Since>,
        /// How many at most.
        last: Option<usize>,
    },
    /// `watch`.
    Watch(Filter),
}

/// One event to be sent.
#[derive(Debug)]
pub struct Send {
    /// The event.
    pub draft: Draft,
    /// Its sender's name for it.
    pub id: Option<SubmissionId>,
    /// How long it is known by that name.
    pub remember: Duration,
    /// How long to wait for its outcome, and for Redis to come back where that is safe.
    pub timeout: Duration,
    /// Whether the outcome is wanted at all.
    pub wait: bool,
}

/// A file of events to be sent.
#[derive(Debug)]
pub struct Batch {
    /// The file; `None` is stdin.
    pub file: Option<PathBuf>,
    /// How long to wait since the last outcome that came.
    pub timeout: Duration,
    /// Whether the outcomes are wanted at all.
    pub wait: bool,
    /// Whether each line is answered by a word, `OK` or what is wrong with it, and no results are wanted.
    pub confirm: bool,
    /// The only action that its lines may have.
    pub only: Option<Action>,
    /// Whether good lines are sent where others are bad.
    pub partial: bool,
    /// Where the results go; `None` is stdout.
    pub results: Option<PathBuf>,
    /// Where bad lines go, if not beside the file.
    pub rejected: Option<PathBuf>,
    /// The batch's name, if it is not to be made from its content.
    pub id: Option<SubmissionId>,
    /// How long it is known by its name.
    pub remember: Duration,
}

/// Reads a command line.
///
/// # Errors
/// What is wrong with it.
pub fn parse(args: Args, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Task, WrongCommandLine> {
    let mut typed = Typed::default();
    typed
        .read(args)
        .and_then(|()| typed.task(env))
        .map_err(|fault| WrongCommandLine { fault, usage: usage(typed.command()) })
}

/// The command line as it was typed.
#[derive(Default)]
struct Typed {
    connect: ConnectArgs,
    positionals: Vec<OsString>,
    options: Vec<(&'static str, OsString)>,
}

impl Typed {
    fn read(&mut self, mut args: Args) -> Result<(), Usage> {
        while let Some(arg) = args.next()? {
            if self.connect.take(&arg, &mut args)? {
                continue;
            }
            let spec = match &arg {
                Arg::Value(value) => {
                    self.positionals.push(value.clone());
                    continue;
                }
                Arg::Short(short) => OPTIONS.iter().find(|option| option.short == Some(*short)),
                Arg::Long(name) => OPTIONS.iter().find(|option| option.name == name),
            };
            let Some(spec) = spec else {
                return Err(self.unknown(&arg));
            };
            let value = if spec.value.is_some() { args.raw()? } else { OsString::new() };
            self.options.push((spec.name, value));
            if COMMON.contains(&spec.name) {
                // Whatever else is there, help is what is needed.
                break;
            }
        }
        Ok(())
    }

    /// By a word instead of an option, as git and cargo know it.
    fn is_help_asked_for(&self) -> bool {
        self.positionals.first().is_some_and(|word| word == "help")
    }

    fn command(&self) -> Option<&'static Command> {
        let word = self.positionals.get(usize::from(self.is_help_asked_for()))?;
        COMMANDS.iter().find(|command| word == command.name)
    }

    /// Of the options that go with the command, if it is known by now.
    fn unknown(&self, arg: &Arg) -> Usage {
        let command = self.command();
        let fits = |name: &&str| {
            COMMON.contains(name) || command.is_none_or(|command| command.options.contains(name))
        };
        let names = OPTIONS.iter().map(|option| option.name).filter(fits);
        arg.unknown(names.chain(ConnectArgs::NAMES))
    }

    fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(option, _)| *option == name)
    }

    /// The value of an option; of several the last counts.
    fn value(&self, name: &str) -> Option<&OsStr> {
        self.options.iter().rev().find(|(option, _)| *option == name).map(|(_, v)| v.as_os_str())
    }

    fn id<T>(
        &self,
        name: &str,
        read: impl Fn(&[u8]) -> Result<T, IdFault>,
    ) -> Result<Option<T>, Usage> {
        self.value(name)
            .map(|raw| check(&format!("--{name}"), raw, read(raw.as_bytes())))
            .transpose()
    }

    fn task(&self, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Task, Usage> {
        if self.has("help") || self.is_help_asked_for() {
            return Ok(Task::Print(help(self.command())));
        }
        if self.has("version") {
            return Ok(Task::Print(format!("library-req {}\n", env!("CARGO_PKG_VERSION"))));
        }
        let Some(word) = self.positionals.first() else {
            return Err(Usage(format!(
                "a command is missing: {}",
                COMMANDS.map(|it| it.name).join(", ")
            )));
        };
        let Some(command) = self.command() else {
            let word = word.to_string_lossy();
            let message = format!("unknown command {}", quoted(&word));
            return Err(unknown_word(message, &word, &COMMANDS.map(|it| it.name)));
        };
        for (name, _) in &self.options {
            if !command.options.contains(name) {
                return Err(Usage(format!("--{name} does not go with {}", command.name)));
            }
        }
        let form = match (self.has("json"), self.has("quiet")) {
            (true, true) => return Err(Usage("--json and --quiet exclude each other".into())),
            (true, false) => Form::Json,
            (false, true) => Form::Quiet,
            (false, false) => Form::Words,
        };
        let job = self.job(command.name)?;
        let target = self.connect.resolve(env)?;
        Ok(Task::Run(Box::new(Run {
            keys: Keys::new(self.connect.branch()),
            part: self.connect.part(&target),
            target,
            typed: self.connect.typed(),
            form,
            job,
        })))
    }

    fn job(&self, command: &str) -> Result<Job, Usage> {
        let words = &self.positionals[1..];
        Ok(match command {
            "batch" => Job::Batch(self.batch(at_most_one(words)?)?),
            "outcome" => {
                let events = event_ids(exactly_one(words, "the event's id")?)?;
                Job::Outcome { events, show_user: self.has("show-user") }
            }
            "loans" => {
                let user = exactly_one(words, "the user")?;
                Job::Loans(check("user id", user, UserId::from_bytes(user.as_bytes()))?)
            }
            "where" => {
                let book = exactly_one(words, "the book")?;
                let book = check("book id", book, BookId::from_bytes(book.as_bytes()))?;
                Job::Where { book, show_user: self.has("show-user") }
            }
            "history" => {
                none(words)?;
                let since = self.value("since").map(read_since).transpose()?;
                let last = self.value("last").map(read_count).transpose()?;
                let last = last.or(since.is_none().then_some(DEFAULT_LAST));
                Job::History { filter: self.filter()?, since, last }
            }
            "watch" => {
                none(words)?;
                Job::Watch(self.filter()?)
            }
            word => {
                let action = Action::from_word(word).expect("there is no other command");
                let mut draft = Draft { action, ..Draft::new() };
                draft.read(words.iter().map(|word| word.as_bytes())).map_err(Usage)?;
                Job::Send(Send {
                    draft,
                    id: self.id("id", SubmissionId::from_bytes)?,
                    remember: self.remember_id()?,
                    timeout: self.timeout()?,
                    wait: !self.has("no-wait"),
                })
            }
        })
    }

    fn batch(&self, file: Option<&OsStr>) -> Result<Batch, Usage> {
        let file = file.filter(|file| *file != "-").map(PathBuf::from);
        Ok(Batch {
            file,
            timeout: self.timeout()?,
            wait: !self.has("no-wait"),
            confirm: self.has("no-wait") && !self.has("results") && !self.has("json"),
            only: self.value("only").map(read_action).transpose()?,
            partial: self.has("partial"),
            results: self.file("results")?.filter(|path| path.as_os_str() != "-"),
            rejected: self.rejected()?,
            id: self.id("batch-id", SubmissionId::from_bytes)?,
            remember: self.remember()?,
        })
    }

    /// A file to be written. A name that no file can have is refused here, not when the events are sent.
    fn file(&self, name: &str) -> Result<Option<PathBuf>, Usage> {
        match self.value(name) {
            Some(raw) if raw.is_empty() || raw.as_bytes().ends_with(b"/") => {
                Err(wants(&format!("--{name}"), "the name of a file", raw))
            }
            raw => Ok(raw.map(PathBuf::from)),
        }
    }

    /// Where bad lines go. `-` is stdout everywhere, which is for results: they would be mixed.
    fn rejected(&self) -> Result<Option<PathBuf>, Usage> {
        match self.file("rejected")? {
            Some(path) if path.as_os_str() == "-" => {
                Err(wants("--rejected", "the name of a file", path.as_os_str()))
            }
            path => Ok(path),
        }
    }

    fn filter(&self) -> Result<Filter, Usage> {
        let user = self.id("user", UserId::from_bytes)?;
        // Who asks for a user knows him.
        let show_user = user.is_some() || self.has("show-user");
        Ok(Filter { user, book: self.id("book", BookId::from_bytes)?, show_user })
    }

    fn remember_id(&self) -> Result<Duration, Usage> {
        if self.has("remember") && !self.has("id") {
            // Sent twice, it would be queued twice: not what was meant.
            return Err(Usage("--remember does not go without --id".into()));
        }
        self.remember()
    }

    fn remember(&self) -> Result<Duration, Usage> {
        let Some(raw) = self.value("remember") else {
            return Ok(REMEMBERED);
        };
        match raw.to_str().and_then(since) {
            Some(Since::Ago(ms @ 1_000..=MAX_KEEP_MS)) => Ok(Duration::from_millis(ms)),
            _ => Err(wants("--remember", "a time from 1s to 30d", raw)),
        }
    }

    fn timeout(&self) -> Result<Duration, Usage> {
        let Some(raw) = self.value("timeout") else {
            return Ok(DEFAULT_TIMEOUT);
        };
        let seconds: Option<f64> = raw.to_str().and_then(|text| text.parse().ok());
        seconds
            .filter(|seconds| (0.0..=MAX_TIMEOUT_SECONDS).contains(seconds))
            .map(Duration::from_secs_f64)
            .ok_or_else(|| wants("--timeout", "a number of seconds", raw))
    }
}

fn wants(option: &str, what: &str, raw: &OsStr) -> Usage {
    Usage(format!("{option} wants {what}, not {}", quoted(&raw.to_string_lossy())))
}

fn read_since(raw: &OsStr) -> Result<Since, Usage> {
    raw.to_str()
        .and_then(since)
        .ok_or_else(|| wants("--since", "90m, 12h, 7d, a date or a time in UTC", raw))
}

fn read_action(raw: &OsStr) -> Result<Action, Usage> {
    let action = raw.to_str().and_then(Action::from_word);
    action.ok_or_else(|| wants("--only", "request or return", raw))
}

fn read_count(raw: &OsStr) -> Result<usize, Usage> {
    raw.to_str()
        .and_then(|text| text.parse().ok())
        .filter(|count| *count > 0)
        .ok_or_else(|| wants("--last", "a number from 1 up", raw))
}

/// `request:17-0`, `return:17-0`, or `17-0`, which may be either.
fn event_ids(raw: &OsStr) -> Result<Vec<EventKey>, Usage> {
    let text = raw.to_str().unwrap_or_default();
    let (actions, id) = match text.split_once(':') {
        Some((word, id)) => (Action::from_word(word).into_iter().collect(), id),
        None => (Action::ALL.to_vec(), text),
    };
    match id.parse() {
        Ok(id) if !actions.is_empty() => {
            Ok(actions.into_iter().map(|action| EventKey { id, action }).collect())
        }
        _ => Err(wants("outcome", "an event's id such as request:1700000000000-0", raw)),
    }
}

fn none(words: &[OsString]) -> Result<(), Usage> {
    match words.first() {
        None => Ok(()),
        Some(word) => Err(Arg::Value(word.clone()).unexpected()),
    }
}

fn at_most_one(words: &[OsString]) -> Result<Option<&OsStr>, Usage> {
    none(words.get(1..).unwrap_or_default())?;
    Ok(words.first().map(OsString::as_os_str))
}

fn exactly_one<'a>(words: &'a [OsString], what: &str) -> Result<&'a OsStr, Usage> {
    at_most_one(words)?.ok_or_else(|| Usage(format!("{what} is missing")))
}

/// Names the id that is none.
fn check<T>(what: &str, raw: &OsStr, id: Result<T, IdFault>) -> Result<T, Usage> {
    id.map_err(|fault| Usage(id_fault(what, raw.as_bytes(), fault)))
}

/// How a command is typed, in one line.
fn usage(command: Option<&Command>) -> String {
    match command {
        None => "usage: library-req COMMAND [OPTIONS] ...   (COMMAND --help tells more)".into(),
        Some(Command { name, arguments: "", .. }) => format!("usage: library-req {name} [OPTIONS]"),
        Some(command) => {
            format!("usage: library-req {} [OPTIONS] {}", command.name, command.arguments)
        }
    }
}

/// The help of one command, or of the whole.
fn help(command: Option<&Command>) -> String {
    let mut text = usage(command) + "\n";
    let listed: &[&str] = match command {
        Some(command) => {
            let _ =
                writeln!(text, "{}{}.\n", command.about[..1].to_uppercase(), &command.about[1..]);
            command.options
        }
        None => {
            text.push('\n');
            for command in &COMMANDS {
                let typed = format!("{} {}", command.name, command.arguments);
                let _ = writeln!(text, "  {typed:<22}{}", command.about);
            }
            text.push('\n');
            &[]
        }
    };
    let tell = |text: &mut String, names: &[&str]| {
        for option in OPTIONS.iter().filter(|option| names.contains(&option.name)) {
            let short = option.short.map_or("    ".into(), |short| format!("-{short}, "));
            let long = format!("--{} {}", option.name, option.value.unwrap_or_default());
            let _ = writeln!(text, "  {short}{long:<20}{}", option.about);
        }
    };
    tell(&mut text, listed);
    text.push_str(ConnectArgs::HELP);
    // Without --version: a command's help is to fit a screen.
    tell(&mut text, if command.is_some() { &["help"] } else { &COMMON });
    text + command.map_or(STATUSES, |command| command.statuses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Task, WrongCommandLine> {
        parse(Args::from_list(args), &|_| None)
    }

    /// What a right command line asks for.
    fn job(args: &[&str]) -> String {
        match parsed(args) {
            Ok(Task::Run(run)) => format!("{:?}", run.job),
            other => panic!("{args:?} is a command line: {other:?}"),
        }
    }

    #[test]
    fn every_option_of_a_command_is_known_and_every_known_one_is_used() {
        for command in &COMMANDS {
            for name in command.options {
                assert!(OPTIONS.iter().any(|option| option.name == *name), "{name}");
            }
        }
        for option in &OPTIONS {
            let used = COMMANDS.iter().any(|command| command.options.contains(&option.name));
            assert!(used || COMMON.contains(&option.name), "{}", option.name);
        }
    }

    #[test]
    fn a_bare_event_id_may_be_a_request_or_a_return() {
        let ids = |text: &str| event_ids(OsStr::new(text)).map(|ids| ids.len()).ok();
        assert_eq!(ids("17-0"), Some(2));
        assert_eq!(ids("return:17-0"), Some(1));
        for bad in ["", "17", "lend:17-0", "request:", "request:x"] {
            assert_eq!(ids(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_defaults_of_the_help_are_those_of_the_parser() {
        for (args, option) in [
            (&["request", "u", "b"][..], "timeout"),
            (&["batch", "FILE"], "timeout"),
            (&["history"], "last"),
        ] {
            let about = OPTIONS.iter().find(|it| it.name == option).unwrap().about;
            let (_, default) = about.split_once("[default: ").unwrap();
            let default = &default[..default.find([';', ']']).unwrap()];
            let typed = format!("--{option}={default}");
            assert_eq!(job(&[args, &[&typed]].concat()), job(args));
        }
    }

    #[test]
    fn help_is_given_whatever_stands_behind_it() {
        for args in [&["--help", "--frob"][..], &["request", "-h", "--timeout"]] {
            assert!(matches!(parsed(args), Ok(Task::Print(_))), "{args:?}");
        }
        for (args, same) in [(&["help"][..], &["-h"][..]), (&["help", "batch"], &["batch", "-h"])] {
            let both = [args, same].map(|args| match parsed(args) {
                Ok(Task::Print(text)) => text,
                other => panic!("{args:?}: {other:?}"),
            });
            assert_eq!(both[0], both[1]);
        }
    }

    #[test]
    fn of_an_option_that_is_given_twice_the_last_counts() {
        let wait = |seconds| ["request", "u", "b", "--timeout", seconds];
        let twice = [&wait("3")[..], &["--timeout", "5"]].concat();
        assert_eq!(job(&twice), job(&wait("5")));
    }

    #[test]
    fn no_option_is_taken_for_one_that_does_not_go_with_the_command() {
        for (args, fault) in [
            (&["request", "--timout"][..], "unknown option --timout: did you mean --timeout?"),
            (&["loans", "--timout"], "unknown option --timout"),
            (&["--timout"], "unknown option --timout: did you mean --timeout?"),
        ] {
            assert_eq!(parsed(args).unwrap_err().fault.0, fault);
        }
    }
}
