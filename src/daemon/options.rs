//! The command line of `libraryd`.

use std::time::Duration;

use log::LevelFilter;

use crate::cli::{Arg, Args, Usage};
use crate::connect::ConnectArgs;
use crate::ids::InstanceName;
use crate::settings::{LogOutcomes, Settings};

/// What the command line of the daemon says.
#[derive(Clone, Debug)]
pub struct Options {
    /// How this instance works.
    pub settings: Settings,
    /// Take the name even from an instance that is running.
    pub force: bool,
    /// Where Redis is.
    pub connect: ConnectArgs,
    /// End instead of waiting when Redis is not there at the start.
    pub exit_if_unavailable: bool,
    /// The least important messages that are logged.
    pub log_level: LevelFilter,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Run the daemon.
    Run(Box<Options>),
    /// Print the help.
    Help,
    /// Print the version.
    Version,
}

/// The long options, those of the connection aside, to name the nearest to one that is not known.
const NAMES: [&str; 14] = [
    "help",
    "version",
    "force",
    "lease",
    "batch",
    "outcomes-kept",
    "retain-days",
    "keep-events",
    "tries",
    "silent-after",
    "abandoned-after",
    "exit-if-unavailable",
    "log-level",
    "log-outcomes",
];

/// The line that a fault of the command line ends with.
pub const USAGE: &str = "usage: libraryd [OPTIONS] UNIQUE_NAME   (libraryd --help tells more)";

/// The help text.
pub fn help() -> String {
    format!(
        "\
libraryd: the lending system of an automated library, on Redis Streams.

usage: libraryd [OPTIONS] UNIQUE_NAME

  UNIQUE_NAME             name of this instance; any number run side by side

  -f, --force             take the name even from an instance that is running
{connect}
      --lease S           others take over S seconds after it died [default: 6]
      --batch N           decide at most N events in one script [default: 128]
      --outcomes-kept N   keep the last N outcomes or so [default: 100000]
      --retain-days N     drop outcomes that are older than N days too
      --keep-events       leave decided events in place, for other groups
      --tries N           give up an event that N instances died of [default: 3]
      --silent-after S    an instance without a lease that does nothing for S
                          seconds holds up no refusal any more [default: 60]
      --abandoned-after S after S seconds its events are taken over
                          [default: 3600]
      --exit-if-unavailable
                          end, instead of waiting, if there is no Redis at first
      --log-level LEVEL   error, warn, info, debug or trace [default: info]
      --log-outcomes W    all, refused or none [default: all]
  -h, --help              print this
  -V, --version           print the version

Exit status: 0 stopped when asked to, 1 by a second signal, 2 wrong command
line, 69 lease lost (or no Redis, with --exit-if-unavailable), 71 no thread, 74
cannot write, 75 that name is running, 77 not permitted, 78 unfit state or Redis
",
        connect = ConnectArgs::HELP.trim_end()
    )
}

/// Reads the command line.
///
/// # Errors
/// What is wrong with it.
pub fn parse(mut args: Args) -> Result<Command, Usage> {
    let mut name = None;
    let mut options = Options {
        settings: Settings::of("unnamed".parse().expect("a plain word is a name")),
        force: false,
        connect: ConnectArgs::default(),
        exit_if_unavailable: false,
        log_level: LevelFilter::Info,
    };
    while let Some(arg) = args.next()? {
        if options.connect.take(&arg, &mut args)? {
            continue;
        }
        match &arg {
            Arg::Short('h') => return Ok(Command::Help),
            Arg::Short('V') => return Ok(Command::Version),
            Arg::Short('f') => options.force = true,
            Arg::Long(long) => match long.as_str() {
                "help" => return Ok(Command::Help),
                "version" => return Ok(Command::Version),
                "force" => options.force = true,
                // Below a second, a moment's pause of the machine would cost the lease; over an
                // hour, nobody would call it a takeover.
                "lease" => options.settings.lease = seconds(&mut args, long, 1, 3600)?,
                // With more, a script of refusals takes Redis several milliseconds.
                "batch" => options.settings.batch = number(&mut args, long, 1, 512)? as usize,
                // Redis takes no more.
                "outcomes-kept" => {
                    options.settings.outcomes_kept = number(&mut args, long, 1, i64::MAX as u64)?;
                }
                "retain-days" => {
                    let days = number(&mut args, long, 1, 36_500)?;
                    options.settings.retained = Some(Duration::from_secs(days * 24 * 3_600));
                }
                "keep-events" => options.settings.keep_events = true,
                "tries" => options.settings.tries = number(&mut args, long, 1, 1000)?,
                "silent-after" => {
                    options.settings.silent_after = seconds(&mut args, long, 1, 1 << 31)?
                }
                "abandoned-after" => {
                    options.settings.abandoned_after = seconds(&mut args, long, 1, 1 << 31)?;
                }
                "exit-if-unavailable" => options.exit_if_unavailable = true,
                "log-level" => {
                    let level = args.text()?;
                    options.log_level = match level.as_str() {
                        "error" => LevelFilter::Error,
                        "warn" => LevelFilter::Warn,
                        "info" => LevelFilter::Info,
                        "debug" => LevelFilter::Debug,
                        "trace" => LevelFilter::Trace,
                        _ => {
                            return Err(Usage(format!(
                                "--log-level {level:?}: one of error, warn, info, debug, trace is wanted"
                            )));
                        }
                    };
                }
                "log-outcomes" => {
                    let which = args.text()?;
                    options.settings.log_outcomes = match which.as_str() {
                        "all" => LogOutcomes::All,
                        "refused" => LogOutcomes::Refused,
                        "none" => LogOutcomes::None,
                        _ => {
                            return Err(Usage(format!(
                                "--log-outcomes {which:?}: one of all, refused, none is wanted"
                            )));
                        }
                    };
                }
                _ => return Err(arg.unknown(NAMES.into_iter().chain(ConnectArgs::NAMES))),
            },
            Arg::Value(value) if name.is_none() => {
                let parsed = InstanceName::from_bytes(value.as_encoded_bytes());
                name = Some(parsed.map_err(|fault| Usage(format!("the name {value:?} {fault}")))?);
            }
            _ => return Err(arg.unexpected()),
        }
    }
    options.settings.name =
        name.ok_or_else(|| Usage("the UNIQUE_NAME of this instance is missing".into()))?;
    Ok(Command::Run(Box::new(options)))
}

fn number(args: &mut Args, option: &str, least: u64, most: u64) -> Result<u64, Usage> {
    let text = args.text()?;
    let value = text.parse().ok().filter(|value| (least..=most).contains(value));
    value.ok_or_else(|| {
        let range = if most == i64::MAX as u64 {
            format!("{least} or more")
        } else {
            format!("{least} to {most}")
        };
        Usage(format!("--{option} {text:?}: a number, {range}, is wanted"))
    })
}

fn seconds(args: &mut Args, option: &str, least: u64, most: u64) -> Result<Duration, Usage> {
    number(args, option, least, most).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn fault(args: &[&str]) -> String {
        parse(Args::from_list(args.iter().copied())).expect_err("this command line is wrong").0
    }

    #[test]
    fn options_and_the_name_come_in_any_order() {
        let args = Args::from_list(["--lease", "2", "worker1", "-f", "--log-outcomes=refused"]);
        let Ok(Command::Run(options)) = parse(args) else { panic!("this is a command line") };
        assert_eq!(options.settings.name.as_str(), "worker1");
        assert!(options.force);
        assert_eq!(options.settings.lease, Duration::from_secs(2));
        assert_eq!(options.settings.log_outcomes, LogOutcomes::Refused);
    }

    #[test]
    fn a_wrong_command_line_is_told_in_one_line() {
        assert!(fault(&[]).contains("UNIQUE_NAME"));
        assert!(fault(&["a", "b"]).contains("\"b\""));
        assert!(fault(&["--nonsense", "a"]).contains("--nonsense"));
        assert!(fault(&["a,b"]).contains("comma"));
        assert!(fault(&["--lease", "0", "a"]).contains("1 to 3600"));
        assert!(fault(&["--retain-days", "0", "a"]).contains("1 to 36500"));
        assert!(fault(&["--outcomes-kept", "0", "a"]).contains("a number, 1 or more, is wanted"));
        assert!(fault(&["--db", "-1", "a"]).contains("--db"));
    }

    /// What is no text was taken with a sign in its place, so that two such names became one.
    #[test]
    fn a_name_that_is_no_text_is_refused() {
        for name in [&b"w\xfe"[..], b"w\xff"] {
            let args = Args::from_list([OsStr::from_bytes(name)]);
            let Usage(fault) = parse(args).expect_err("this is no name");
            assert!(fault.contains("\\xF") && fault.ends_with("is not UTF-8"), "{fault}");
        }
    }

    #[test]
    fn the_defaults_of_the_help_are_those_of_the_parser() {
        let parsed = |args: &[&str]| format!("{:?}", parse(Args::from_list(args.iter().copied())));
        let help = help();
        let mut seen = 0;
        for option in help.split("\n      --").skip(1) {
            let name = option.split_whitespace().next().unwrap();
            let default =
                option.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
            // Which database it is without --db, the address may say.
            if let (Some((default, _)), true) = (default, name != "db") {
                let given = parsed(&["w", &format!("--{name}"), default]);
                assert_eq!(given, parsed(&["w"]), "--{name}");
                seen += 1;
            }
        }
        assert_eq!(seen, 8, "{help}");
    }
}
