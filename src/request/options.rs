//! The command line of `library-req`: arguments and environment in, plain data out. No I/O except
//! reading a password's file.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use super::show::Form;
use super::submit::{Draft, push_quoted};
use crate::cli::{Arg, Args, Usage};
use crate::connect::{ConnectArgs, Target};
use crate::event::{Action, MAX_BOOKS, keep_first};
use crate::ids::{BookId, IdFault, SubmissionId, UserId};
use crate::keys::Keys;

/// Shown below every complaint about the command line.
pub const USAGE: &str = "\
usage: library-req [OPTIONS] {request|return} USER BOOK... | library-req [OPTIONS] batch [FILE|-]";

const HELP: &str = "\
Ask the library for books, and give them back.

  request USER BOOK...    lend these books to the user
  return USER BOOK...     take them back
  batch [FILE|-]          queue the events of a file (default: stdin), one a line:
                          request USER BOOK... or return USER BOOK...

      --timeout SECONDS   how long to wait for the outcome [default: 10]
      --no-wait           queue it, print OK and leave
      --id ID             name this event: sent again under the same ID within a day it is not
                          queued again, and the first outcome is printed
      --json              print the outcome as one JSON object
  -q, --quiet             print nothing; the exit status says it
  -h, --help              print this help
  -V, --version           print the version

";

const STATUSES: &str = "
Exit status: 0 done; 1 denied, returned by one who has none of it, or rejected; 2 a wrong command
line or file, nothing was sent; 3 queued, but no outcome in time; 4 Redis cannot be reached or
refused; 74 the answer could not be written.
";

/// How long to wait for an outcome unless told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait that can be asked for: a year.
const MAX_TIMEOUT_SECONDS: f64 = 31_536_000.0;

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
    /// How to answer.
    pub form: Form,
    /// What.
    pub job: Job,
}

/// The subcommands.
#[derive(Debug)]
pub enum Job {
    /// `request` and `return`.
    Send(Send),
    /// `batch`: the events of a file; `None` is stdin.
    Batch(Option<PathBuf>),
}

/// One event to be sent.
#[derive(Debug)]
pub struct Send {
    /// The event.
    pub draft: Draft,
    /// Its sender's name for it.
    pub id: Option<SubmissionId>,
    /// How long to wait for its outcome, and for Redis to come back where that is safe.
    pub timeout: Duration,
    /// Whether the outcome is wanted at all.
    pub wait: bool,
}

/// The command line as it was typed.
#[derive(Default)]
struct Raw {
    connect: ConnectArgs,
    positionals: Vec<OsString>,
    timeout: Option<Duration>,
    no_wait: bool,
    id: Option<SubmissionId>,
    json: bool,
    quiet: bool,
}

/// Reads a command line.
///
/// # Errors
/// What is wrong with it.
pub fn parse(mut args: Args, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Task, Usage> {
    let mut raw = Raw::default();
    while let Some(arg) = args.next()? {
        if raw.connect.take(&arg, &mut args)? {
            continue;
        }
        match arg {
            Arg::Short('h') => return Ok(Task::Print(help())),
            Arg::Short('V') => return Ok(Task::Print(version())),
            Arg::Short('q') => raw.quiet = true,
            Arg::Long(ref name) => match name.as_str() {
                "help" => return Ok(Task::Print(help())),
                "version" => return Ok(Task::Print(version())),
                "timeout" => raw.timeout = Some(seconds(&args.text()?)?),
                "no-wait" => raw.no_wait = true,
                "id" => {
                    let id = args.raw()?;
                    raw.id = Some(check("--id", &id, SubmissionId::from_bytes(id.as_bytes()))?);
                }
                "json" => raw.json = true,
                "quiet" => raw.quiet = true,
                _ => return Err(arg.unexpected()),
            },
            Arg::Value(value) => raw.positionals.push(value),
            Arg::Short(_) => return Err(arg.unexpected()),
        }
    }
    raw.resolve(env)
}

fn help() -> String {
    format!("{USAGE}\n\n{HELP}{}{STATUSES}", ConnectArgs::HELP)
}

fn version() -> String {
    format!("library-req {}\n", env!("CARGO_PKG_VERSION"))
}

fn seconds(text: &str) -> Result<Duration, Usage> {
    let seconds: Option<f64> = text.parse().ok();
    seconds
        .filter(|seconds| (0.0..=MAX_TIMEOUT_SECONDS).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| {
            let mut message = String::from("--timeout wants a number of seconds, not ");
            push_quoted(&mut message, text);
            Usage(message)
        })
}

/// Names the id that is none.
fn check<T>(what: &str, raw: &OsStr, id: Result<T, IdFault>) -> Result<T, Usage> {
    id.map_err(|fault| Usage(id_fault(what, raw.as_bytes(), fault)))
}

/// What is wrong with an id, in words.
pub fn id_fault(what: &str, raw: &[u8], fault: IdFault) -> String {
    let mut message = format!("{what} ");
    push_quoted(&mut message, &String::from_utf8_lossy(raw));
    message + " " + &fault.to_string()
}

impl Raw {
    fn resolve(mut self, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Task, Usage> {
        let form = match (self.json, self.quiet) {
            (true, true) => return Err(Usage("--json and --quiet exclude each other".into())),
            (true, false) => Form::Json,
            (false, true) => Form::Quiet,
            (false, false) => Form::Words,
        };
        let mut positionals = std::mem::take(&mut self.positionals).into_iter();
        let Some(command) = positionals.next() else {
            return Err(Usage("a command is missing: request, return or batch".into()));
        };
        let job = match command.to_str() {
            Some("batch") => self.batch(positionals)?,
            Some(word) if Action::from_word(word).is_some() => {
                let action = Action::from_word(word).expect("the guard has just read it");
                self.send(action, positionals)?
            }
            _ => {
                let mut message = String::from("unknown command ");
                push_quoted(&mut message, &command.to_string_lossy());
                return Err(Usage(message));
            }
        };
        let keys = Keys::new(self.connect.branch());
        let target = self.connect.resolve(env)?;
        Ok(Task::Run(Box::new(Run { target, keys, form, job })))
    }

    fn send(
        &mut self,
        action: Action,
        positionals: impl Iterator<Item = OsString>,
    ) -> Result<Job, Usage> {
        let words: Vec<OsString> = positionals.collect();
        let draft = draft(action, words.iter().map(|word| word.as_bytes())).map_err(Usage)?;
        Ok(Job::Send(Send {
            draft,
            id: self.id.take(),
            timeout: self.timeout.unwrap_or(DEFAULT_TIMEOUT),
            wait: !self.no_wait,
        }))
    }

    fn batch(&self, mut positionals: impl Iterator<Item = OsString>) -> Result<Job, Usage> {
        let file = positionals.next().filter(|file| file != "-").map(PathBuf::from);
        if let Some(more) = positionals.next() {
            return Err(Arg::Value(more).unexpected());
        }
        Ok(Job::Batch(file))
    }
}

/// An event from the words that follow `request` or `return`: the user, then the books.
///
/// # Errors
/// What is wrong with them, in one line.
pub fn draft<'a>(
    action: Action,
    mut words: impl Iterator<Item = &'a [u8]>,
) -> Result<Draft, String> {
    let user = words.next().ok_or("the user and the books are missing")?;
    let user = UserId::from_bytes(user).map_err(|fault| id_fault("user id", user, fault))?;
    let mut books = Vec::new();
    for word in words {
        if books.len() == MAX_BOOKS {
            return Err(format!("more than {MAX_BOOKS} books"));
        }
        books.push(BookId::from_bytes(word).map_err(|fault| id_fault("book id", word, fault))?);
    }
    if books.is_empty() {
        return Err("the books are missing".into());
    }
    keep_first(&mut books);
    Ok(Draft { action, user, books })
}
