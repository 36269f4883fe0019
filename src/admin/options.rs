//! The command line of `library-admin`: arguments and environment in, plain data out. No I/O except
//! reading a password's file.

use std::ffi::OsString;

use super::regroup::Order;
use crate::cli::{Arg, Args, Usage, WrongCommandLine, unknown_word};
use crate::connect::{ConnectArgs, Target};
use crate::ids::EventId;
use crate::keys::{Keys, Stream};
use crate::text::quoted;

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
    /// Which part of it, to be said behind it: database and branch.
    pub part: String,
    /// Under which names.
    pub keys: Keys,
    /// The options of the connection that were given, to be typed in another command.
    pub typed: String,
    /// Whether programs are to read the answer.
    pub json: bool,
    /// What.
    pub job: Job,
}

/// The subcommands.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// `dead-letters retry`, of these.
    Retry(Vec<EventId>),
    /// `dead-letters drop`, of these.
    Drop(Vec<EventId>),
    /// `regroup`
    Regroup(Order),
}

/// The subcommands as they are typed, with their usage and what they do.
struct Subcommand {
    name: &'static str,
    usage: &'static str,
    help: &'static str,
}

const USAGE: &str = "\
usage: library-admin COMMAND [OPTIONS] ...   (COMMAND --help tells more)";

const HELP: &str = "
  status                  instances, what waits, dead letters, automated storage
  check [--repair]        hold the whole state against the rules of the library
  dead-letters list|retry ID...|drop ID...
                          events that could not be worked on
  regroup [--from ID]     go on after a consumer group was lost
";

const SUBCOMMANDS: [Subcommand; 4] = [
    Subcommand {
        name: "status",
        usage: "usage: library-admin status [OPTIONS]",
        help: "\
Show the instances with their leases, what waits and since when, dead letters
and storage. An instance without a lease is one of the reference application, or
was left by one that was killed; one that is gone has left events behind, which
the others take over.

",
    },
    Subcommand {
        name: "check",
        usage: "usage: library-admin check [OPTIONS]",
        help: "\
Hold the whole state against the rules of the library, while it is at work. Each
violation is a line. It ends with 0 only if nothing is wrong (any more), and
with 3 if what looked wrong changed too fast to be sure: run it again.

      --repair            mend what can be mended without guessing, and print
                          each change: counts that differ from the loans,
                          reservations without a request, books that are nowhere
                          (they are handed to shelving), TTLs of keys that
                          have to stay
",
    },
    Subcommand {
        name: "dead-letters",
        usage: "usage: library-admin dead-letters [OPTIONS] {list|retry ID...|drop ID...}",
        help: "\
Show the events that could not be worked on, put some back or drop them.

  list                    all of them, oldest first, each with its ID
  retry ID...             add each, unchanged, as a new event to its stream
  drop ID...              print each, and remove it for good

      --last N            list only the newest N
",
    },
    Subcommand {
        name: "regroup",
        usage: "usage: library-admin regroup [OPTIONS] [--from ID]",
        help: "\
Create a consumer group that was lost while decided events were in its stream.
Without --from, tell which event is the first to be worked on, and do nothing.

      --from ID           the first event that is not decided. Older ones count
                          as decided; later ones too where they have an outcome;
                          all others are worked on. Of hand-offs all are that
                          are not done, as the states of books tell
      --before-outcomes   work also on events without an outcome that are older
                          than the outcomes reach back to
      --stream STREAM     only the group of requests, returns or handoffs
                          [default: all that are lost]
",
    },
];

const JSON: &str = "      --json              print JSON, one object a line
";

const FOR_HELP: &str = "  -h, --help              print this help
";

const FOR_VERSION: &str = "  -V, --version           print the version
";

/// The long options, those of the connection aside.
const OPTION_NAMES: [&str; 8] =
    ["help", "version", "json", "repair", "last", "from", "stream", "before-outcomes"];

const STATUSES: &str = "\
Exit status: 0 done, 1 something is wrong or cannot be done, 2 wrong command
line, 3 not sure (check), 4 no Redis, 74 cannot write
";

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
    before_outcomes: bool,
}

/// Reads a command line.
///
/// # Errors
/// What is wrong with it.
pub fn parse(args: Args, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Task, WrongCommandLine> {
    let mut raw = Raw::default();
    let task = match raw.read(args) {
        // Help comes before any fault behind it.
        _ if raw.help || raw.is_help_asked_for() => Ok(Task::Print(raw.help_text())),
        Ok(None) => raw.resolve(env),
        Ok(Some(task)) => Ok(task),
        Err(fault) => Err(fault),
    };
    let usage = raw.subcommand().map_or(USAGE, |it| it.usage);
    task.map_err(|fault| WrongCommandLine { fault, usage: usage.to_owned() })
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
                    "before-outcomes" => self.before_outcomes = true,
                    "stream" => self.stream = Some(stream(&args.text()?)?),
                    _ => {
                        let names = OPTION_NAMES.into_iter().chain(ConnectArgs::NAMES);
                        return Err(arg.unknown(names));
                    }
                },
                Arg::Value(value) => self.words.push(value.to_string_lossy().into_owned()),
                Arg::Short(_) => return Err(arg.unexpected()),
            }
        }
        Ok(None)
    }

    /// By a word instead of an option, as git and cargo know it.
    fn is_help_asked_for(&self) -> bool {
        self.words.first().is_some_and(|word| word == "help")
    }

    fn subcommand(&self) -> Option<&'static Subcommand> {
        let name = self.words.get(usize::from(self.is_help_asked_for()))?;
        SUBCOMMANDS.iter().find(|it| it.name == name)
    }

    fn resolve(&self, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Task, Usage> {
        let job = self.job()?;
        self.refuse_foreign_options(&job)?;
        let keys = Keys::new(self.connect.branch());
        let target = self.connect.resolve(env)?;
        let (part, typed) = (self.connect.part(&target), self.connect.typed());
        Ok(Task::Run(Box::new(Run { target, part, keys, typed, json: self.json, job })))
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
            ["dead-letters", verb @ ("retry" | "drop")] => {
                return Err(Usage(format!("{verb} which? `dead-letters list` shows their IDs")));
            }
            ["dead-letters", verb @ ("retry" | "drop"), ref ids @ ..] => {
                let ids: Result<_, _> = ids.iter().map(|id| event_id("the ID", id)).collect();
                let job = if verb == "retry" { Job::Retry } else { Job::Drop };
                (job(ids?), words.len())
            }
            ["dead-letters"] => {
                return Err(Usage("dead-letters: list, retry or drop is missing".into()));
            }
            ["dead-letters", verb, ..] => {
                let message = format!("dead-letters cannot {}", quoted(verb));
                return Err(unknown_word(message, verb, &["list", "retry", "drop"]));
            }
            ["regroup", ..] => {
                let (from, stream) = (self.from, self.stream);
                let before_outcomes = self.before_outcomes;
                if before_outcomes && from.is_none() {
                    return Err(Usage("--before-outcomes goes with --from ID only".into()));
                }
                (Job::Regroup(Order { from, stream, before_outcomes }), 1)
            }
            [other, ..] => {
                let message = format!("unknown command {}", quoted(other));
                return Err(unknown_word(
                    message,
                    other,
                    &SUBCOMMANDS.each_ref().map(|it| it.name),
                ));
            }
        };
        match words.get(taken) {
            Some(more) => Err(Usage(format!("unexpected argument {}", quoted(more)))),
            None => Ok(job),
        }
    }

    fn refuse_foreign_options(&self, job: &Job) -> Result<(), Usage> {
        for (given, option, takes, command) in [
            (self.repair, "--repair", matches!(job, Job::Check { .. }), "check"),
            (self.last.is_some(), "--last", matches!(job, Job::List { .. }), "dead-letters list"),
            (self.from.is_some(), "--from", matches!(job, Job::Regroup(_)), "regroup"),
            (self.stream.is_some(), "--stream", matches!(job, Job::Regroup(_)), "regroup"),
            (self.before_outcomes, "--before-outcomes", matches!(job, Job::Regroup(_)), "regroup"),
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
                // Without --version: it is to fit a screen.
                format!("{usage}\n{help}{JSON}{}{FOR_HELP}{STATUSES}", ConnectArgs::HELP)
            }
            None => {
                let common = ConnectArgs::HELP;
                format!("{USAGE}\n{HELP}\n{JSON}{common}{FOR_HELP}{FOR_VERSION}\n{STATUSES}")
            }
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

    fn parse(args: &[&str]) -> Result<Task, WrongCommandLine> {
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
        assert_eq!(job(&["dead-letters", "retry", "17-3", "--json"]), Job::Retry(vec![id]));
        let ids = vec![EventId { ms: 5, seq: 0 }, id];
        assert_eq!(job(&["dead-letters", "drop", "5-0", "17-3"]), Job::Drop(ids));
        assert_eq!(
            job(&["regroup", "--stream", "returns", "--from=17-3"]),
            Job::Regroup(Order {
                from: Some(id),
                stream: Some(Stream::Returns),
                before_outcomes: false
            })
        );
    }

    /// Those of all but `check` stood in the manual and in the general help alone.
    #[test]
    fn every_help_says_what_the_command_ends_with() {
        let of_each = SUBCOMMANDS.each_ref().map(|it| vec![it.name, "--help"]);
        for words in [vec!["--help"]].into_iter().chain(of_each) {
            let Ok(Task::Print(help)) = parse(&words) else { panic!("{words:?} asks for help") };
            assert!(help.contains("Exit status: 0 done"), "{help}");
            assert!(help.lines().all(|line| line.len() <= 80), "{help}");
        }
    }

    #[test]
    fn a_wrong_command_line_is_told_in_one_line_with_the_usage_of_its_command() {
        for (args, fault, usage) in [
            (&[][..], "a command is missing", "COMMAND"),
            (&["frob"], "\"frob\"; there are status, check, dead-letters, regroup", "COMMAND"),
            (&["chekc"], "\"chekc\": did you mean check?", "COMMAND"),
            (&["check", "--repiar"], "--repiar: did you mean --repair?", "check"),
            (&["check", "--adress", "x"], "--adress: did you mean --address?", "check"),
            (&["status", "now"], "\"now\"", "status"),
            (&["status", "--repair"], "check only", "status"),
            (&["check", "--last", "3"], "list only", "check"),
            (&["check", "--nonsense"], "--nonsense", "check"),
            (&["dead-letters"], "list, retry or drop", "dead-letters"),
            (&["dead-letters", "retyr", "1-0"], "\"retyr\": did you mean retry?", "dead-letters"),
            (&["dead-letters", "retry"], "retry which?", "dead-letters"),
            (&["dead-letters", "drop", "all"], "\"all\"", "dead-letters"),
            (&["dead-letters", "retry", "1-0", "2"], "\"2\"", "dead-letters"),
            (&["dead-letters", "list", "--last", "0"], "\"0\"", "dead-letters"),
            (&["regroup", "--before-outcomes"], "--from", "regroup"),
            (&["check", "--before-outcomes"], "regroup only", "check"),
            (&["regroup", "--from", "now"], "\"now\"", "regroup"),
            (&["regroup", "--from", "1-0", "--stream", "all"], "\"all\"", "regroup"),
            (&["a\nb"], "\"a\\u{a}b\"", "COMMAND"),
        ] {
            let wrong = parse(args).expect_err("this command line is wrong");
            assert!(wrong.fault.0.contains(fault), "{args:?}: {}", wrong.fault);
            assert!(wrong.usage.contains(usage), "{args:?}: {}", wrong.usage);
            assert_eq!(wrong.fault.0.lines().count(), 1, "{args:?}");
        }
    }
}
