//! The command line of `library-admin`: arguments and environment in, plain data out. No I/O except
//! reading a password's file.

use std::ffi::OsString;

use crate::cli::{Arg, Args, Usage, nearest};
use crate::connect::{ConnectArgs, Target};
use crate::ids::EventId;
use crate::keys::{Keys, LENDING_GROUP, SHELVING_GROUP};
use crate::outcome::push_escaped;

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
    /// Whether programs are to read the answer.
    pub json: bool,
    /// What.
    pub job: Job,
}

/// The subcommands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// `status`
    Status,
    /// `check`
    Check {
        /// Mend what can be mended without guessing.
        repair: bool,
    },
    /// `dead-letters list`
    List {
        /// Only so many, the newest.
        last: Option<usize>,
    },
    /// `dead-letters retry`
    Retry(EventId),
    /// `dead-letters drop`
    Drop(EventId),
    /// `regroup`
    Regroup {
        /// The first event that is not decided.
        from: EventId,
        /// Only this stream's group.
        stream: Option<Stream>,
    },
}

/// The three streams that have a consumer group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Requests.
    Requests,
    /// Returns.
    Returns,
    /// Books handed over to shelving.
    HandOffs,
}

impl Stream {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Requests, Self::Returns, Self::HandOffs];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Returns => "returns",
            Self::HandOffs => "handoffs",
        }
    }

    /// Its key.
    pub fn key(self, keys: &Keys) -> &str {
        match self {
            Self::Requests => &keys.requests,
            Self::Returns => &keys.returns,
            Self::HandOffs => &keys.handoffs,
        }
    }

    /// Its consumer group.
    pub fn group(self) -> &'static str {
        match self {
            Self::Requests | Self::Returns => LENDING_GROUP,
            Self::HandOffs => SHELVING_GROUP,
        }
    }
}

/// The subcommands as they are typed, with their usage and what they do.
struct Subcommand {
    name: &'static str,
    usage: &'static str,
    help: &'static str,
}

const USAGE: &str = "\
usage: library-admin [OPTION ...] {status|check|dead-letters|regroup} ...   (--help tells more)";

const HELP: &str = "\
Look after the library.

  status                  instances, what waits, dead letters, automated storage
  check [--repair]        hold the whole state against the rules of the library
  dead-letters list|retry ID|drop ID
                          events that could not be worked on
  regroup --from ID       go on after a consumer group was lost

library-admin COMMAND --help tells more of each.
";

const SUBCOMMANDS: [Subcommand; 4] = [
    Subcommand {
        name: "status",
        usage: "usage: library-admin [OPTION ...] status [--json]",
        help: "\
Show the instances with their leases, what waits and since when, dead letters and storage.
An instance without a lease is one of the reference application, or was left by one that was
killed; one that is gone has left events behind, which the others take over.
",
    },
    Subcommand {
        name: "check",
        usage: "usage: library-admin [OPTION ...] check [--repair] [--json]",
        help: "\
Hold the whole state against the rules of the library, while it is at work, in steps of a few
milliseconds. Each violation is a line. Exit status 0: nothing is wrong; 1: something is (still)
wrong; 3: something looked wrong and changed too fast to be sure, run it again.

      --repair            mend what can be mended without guessing, and print each change:
                          counts that differ from the loans, reservations without a request,
                          books that are nowhere (they are handed to shelving)
",
    },
    Subcommand {
        name: "dead-letters",
        usage: "usage: library-admin [OPTION ...] dead-letters {list [--last N]|retry ID|drop ID}",
        help: "\
Show the events that could not be worked on, put one back into its stream or drop it.

  list                    all of them, oldest first, each with its ID
  retry ID                add its fields, unchanged, as a new event to the stream it came from
  drop ID                 print it, and remove it for good

      --last N            list only the newest N
",
    },
    Subcommand {
        name: "regroup",
        usage: "usage: library-admin [OPTION ...] regroup --from ID [--stream STREAM]",
        help: "\
Create a consumer group that was lost while events that are decided were still in its stream.

      --from ID           the first event that is not decided: older ones count as decided. From
                          ID on, those that have an outcome count as decided too, all others are
                          worked on
      --stream STREAM     only the group of requests, returns or handoffs [default: all that are
                          lost]
",
    },
];

const OPTIONS: &str = "
      --json              one JSON object a line, for programs
  -h, --help              print this help; after a command, that command's
  -V, --version           print the version
";

/// The long options, those of the connection aside.
const OPTION_NAMES: [&str; 7] = ["help", "version", "json", "repair", "last", "from", "stream"];

const STATUSES: &str = "
Exit status: 0 done; 1 check: something is wrong, else: it cannot be done as things are; 2 the
command line is wrong; 3 check: not sure; 4 Redis cannot be reached or refused; 74 the answer
could not be written.
";

/// A wrong command line.
#[derive(Debug)]
pub struct Wrong {
    /// What is wrong with it.
    pub fault: Usage,
    /// How it should be.
    pub usage: &'static str,
}

/// The command line as it was typed.
#[derive(Default)]
struct Raw {
    connect: ConnectArgs,
    words: Vec<String>,
    json: bool,
    help: bool,
    repair: bool,
    last: Option<usize>,
    from: Option<EventId>,
    stream: Option<Stream>,
}

/// Reads a command line.
///
/// # Errors
/// What is wrong with it.
pub fn parse(args: Args, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Task, Wrong> {
    let mut raw = Raw::default();
    let task = match raw.read(args) {
        Ok(None) => raw.resolve(env),
        Ok(Some(task)) => Ok(task),
        Err(fault) => Err(fault),
    };
    task.map_err(|fault| Wrong { fault, usage: raw.subcommand().map_or(USAGE, |it| it.usage) })
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("'");
    push_escaped(&mut quoted, text);
    quoted + "'"
}

/// The complaint about an option that nobody takes.
fn unknown(arg: &Arg) -> Usage {
    let Usage(message) = arg.unexpected();
    let Arg::Long(name) = arg else { return Usage(message) };
    Usage(message + &did_you_mean("--", name, OPTION_NAMES.into_iter().chain(ConnectArgs::NAMES)))
}

fn did_you_mean<'a>(
    before: &str,
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> String {
    nearest(word, candidates).map_or(String::new(), |it| format!(": did you mean {before}{it}?"))
}

fn event_id(what: &str, text: &str) -> Result<EventId, Usage> {
    text.parse().map_err(|fault| Usage(format!("{what} {} is {fault}", quoted(text))))
}

impl Raw {
    /// Takes all arguments. A task, if one is clear before the end.
    fn read(&mut self, mut args: Args) -> Result<Option<Task>, Usage> {
        while let Some(arg) = args.next()? {
            if self.connect.take(&arg, &mut args)? {
                continue;
            }
            match &arg {
                Arg::Short('h') => self.help = true,
                Arg::Short('V') => return Ok(Some(Task::Print(version()))),
                Arg::Long(name) => match name.as_str() {
                    "help" => self.help = true,
                    "version" => return Ok(Some(Task::Print(version()))),
                    "json" => self.json = true,
                    "repair" => self.repair = true,
                    "last" => self.last = Some(number(&args.text()?)?),
                    "from" => self.from = Some(event_id("--from", &args.text()?)?),
                    "stream" => self.stream = Some(stream(&args.text()?)?),
                    _ => return Err(unknown(&arg)),
                },
                Arg::Value(value) => self.words.push(value.to_string_lossy().into_owned()),
                Arg::Short(_) => return Err(arg.unexpected()),
            }
        }
        Ok(None)
    }

    fn subcommand(&self) -> Option<&'static Subcommand> {
        let name = self.words.first()?;
        SUBCOMMANDS.iter().find(|it| it.name == name)
    }

    fn resolve(&self, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Task, Usage> {
        if self.help {
            return Ok(Task::Print(self.help_text()));
        }
        let job = self.job()?;
        self.refuse_foreign_options(job)?;
        let keys = Keys::new(self.connect.branch());
        let target = self.connect.resolve(env)?;
        Ok(Task::Run(Box::new(Run { target, keys, json: self.json, job })))
    }

    fn job(&self) -> Result<Job, Usage> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let (job, taken) = match words[..] {
            [] => {
                return Err(Usage(
                    "a command is missing: status, check, dead-letters or regroup".into(),
                ));
            }
            ["status", ..] => (Job::Status, 1),
            ["check", ..] => (Job::Check { repair: self.repair }, 1),
            ["dead-letters", "list", ..] => (Job::List { last: self.last }, 2),
            ["dead-letters", "retry", id, ..] => (Job::Retry(event_id("the ID", id)?), 3),
            ["dead-letters", "drop", id, ..] => (Job::Drop(event_id("the ID", id)?), 3),
            ["dead-letters", verb @ ("retry" | "drop")] => {
                return Err(Usage(format!("{verb} which? `dead-letters list` shows their IDs")));
            }
            ["dead-letters"] => {
                return Err(Usage("dead-letters: list, retry or drop is missing".into()));
            }
            ["dead-letters", verb, ..] => {
                return Err(Usage(format!("dead-letters cannot {}", quoted(verb))));
            }
            ["regroup", ..] => {
                let from = self.from.ok_or_else(|| {
                    Usage("regroup needs --from ID, the first event that is not decided".into())
                })?;
                (Job::Regroup { from, stream: self.stream }, 1)
            }
            [other, ..] => {
                let meant = did_you_mean("", other, SUBCOMMANDS.iter().map(|it| it.name));
                return Err(Usage(format!("unknown command {}{meant}", quoted(other))));
            }
        };
        match words.get(taken) {
            Some(more) => Err(Usage(format!("unexpected argument {}", quoted(more)))),
            None => Ok(job),
        }
    }

    fn refuse_foreign_options(&self, job: Job) -> Result<(), Usage> {
        for (given, option, takes, command) in [
            (self.repair, "--repair", matches!(job, Job::Check { .. }), "check"),
            (self.last.is_some(), "--last", matches!(job, Job::List { .. }), "dead-letters list"),
            (self.from.is_some(), "--from", matches!(job, Job::Regroup { .. }), "regroup"),
            (self.stream.is_some(), "--stream", matches!(job, Job::Regroup { .. }), "regroup"),
        ] {
            if given && !takes {
                return Err(Usage(format!("{option} goes with {command} only")));
            }
        }
        Ok(())
    }

    fn help_text(&self) -> String {
        match self.subcommand() {
            Some(Subcommand { usage, help, .. }) => {
                format!("{usage}\n\n{help}{OPTIONS}{}", ConnectArgs::HELP)
            }
            None => format!("{USAGE}\n\n{HELP}{OPTIONS}{}{STATUSES}", ConnectArgs::HELP),
        }
    }
}

fn version() -> String {
    format!("library-admin {}\n", env!("CARGO_PKG_VERSION"))
}

fn number(text: &str) -> Result<usize, Usage> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| Usage(format!("--last wants a number, 1 or more, not {}", quoted(text))))
}

fn stream(text: &str) -> Result<Stream, Usage> {
    let stream = Stream::ALL.into_iter().find(|stream| stream.word() == text);
    stream.ok_or_else(|| {
        Usage(format!("--stream wants requests, returns or handoffs, not {}", quoted(text)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Task, Wrong> {
        super::parse(Args::from_list(args.iter().copied()), &|_| None)
    }

    #[test]
    fn options_and_words_come_in_any_order() {
        let job = |args: &[&str]| match parse(args) {
            Ok(Task::Run(run)) => run.job,
            other => panic!("{args:?} is a command line: {other:?}"),
        };
        assert_eq!(job(&["status"]), Job::Status);
        assert_eq!(job(&["--repair", "check"]), Job::Check { repair: true });
        assert_eq!(job(&["dead-letters", "--last", "3", "list"]), Job::List { last: Some(3) });
        let id = EventId { ms: 17, seq: 3 };
        assert_eq!(job(&["dead-letters", "retry", "17-3", "--json"]), Job::Retry(id));
        assert_eq!(job(&["dead-letters", "drop", "17-3"]), Job::Drop(id));
        assert_eq!(
            job(&["regroup", "--stream", "returns", "--from=17-3"]),
            Job::Regroup { from: id, stream: Some(Stream::Returns) }
        );
    }

    #[test]
    fn a_wrong_command_line_is_told_in_one_line_with_the_usage_of_its_command() {
        for (args, fault, usage) in [
            (&[][..], "a command is missing", "{status|check"),
            (&["chekc"], "'chekc': did you mean check?", "{status|check"),
            (&["check", "--repiar"], "--repiar: did you mean --repair?", "check"),
            (&["check", "--adress", "x"], "--adress: did you mean --address?", "check"),
            (&["status", "now"], "'now'", "status"),
            (&["status", "--repair"], "check only", "status"),
            (&["check", "--last", "3"], "list only", "check"),
            (&["check", "--nonsense"], "--nonsense", "check"),
            (&["dead-letters"], "list, retry or drop", "dead-letters"),
            (&["dead-letters", "retry"], "retry which?", "dead-letters"),
            (&["dead-letters", "drop", "all"], "'all'", "dead-letters"),
            (&["dead-letters", "list", "--last", "0"], "'0'", "dead-letters"),
            (&["regroup"], "--from", "regroup"),
            (&["regroup", "--from", "now"], "'now'", "regroup"),
            (&["regroup", "--from", "1-0", "--stream", "all"], "'all'", "regroup"),
            (&["a\nb"], "'a\\u{a}b'", "{status|check"),
        ] {
            let wrong = parse(args).expect_err("this command line is wrong");
            assert!(wrong.fault.0.contains(fault), "{args:?}: {}", wrong.fault);
            assert!(wrong.usage.contains(usage), "{args:?}: {}", wrong.usage);
            assert_eq!(wrong.fault.0.lines().count(), 1, "{args:?}");
        }
    }

    #[test]
    fn the_help_of_each_command_fits_a_screen_and_names_its_options() {
        for (command, said) in [
            ("status", "--json"),
            ("check", "--repair"),
            ("dead-letters", "--last"),
            ("regroup", "--stream"),
        ] {
            let Ok(Task::Print(help)) = parse(&[command, "--help"]) else { panic!("{command}") };
            assert!(help.contains(said) && help.contains("--address"), "{help}");
            assert!(help.lines().count() <= 30, "{help}");
            assert!(help.lines().all(|line| line.len() <= 100), "{help}");
        }
    }
}
