//! The commands, each run to its end.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Process, Redis};

/// A command under way.
pub struct Running {
    shown: String,
    pub process: Process,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    /// Starts a program that is told where this Redis is, and which branch of it. `prepare` is for
    /// what is not as usual: another input or output, more in the environment.
    pub fn start(
        redis: &Redis,
        program: &str,
        args: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        Self::start_alone(redis.directory(), program, args, |command| {
            if let Some(branch) = redis.branch_name() {
                command.args(["--branch", branch]);
            }
            command.envs(redis.environment());
            prepare(command);
        })
    }

    /// Starts a program that knows of no Redis, in this directory.
    pub fn start_alone(
        directory: &Path,
        program: &str,
        args: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| directory.join(format!("command-{number}.{kind}"));
        let (out, err) = (file("out"), file("err"));
        let mut command = super::process::program(program);
        command
            .args(args)
            .env_clear()
            .current_dir(directory)
            .stdin(Stdio::null())
            // Files, because nobody reads while we wait.
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap());
        prepare(&mut command);
        let name = program.rsplit('/').next().unwrap_or(program);
        let shown = format!("{name} {}", args.join(" "));
        Self { shown, process: Process::spawn(&mut command), out, err }
    }

    /// What comes of it, once it ends.
    pub fn ends(mut self) -> TestCommand {
        /// Longer than any wait of the commands themselves, on a machine that has much else to do.
        const PATIENCE: Duration = Duration::from_secs(120);
        let exit = self.process.wait(PATIENCE);
        // Whatever they were given, what they write is text.
        let read = |file: &Path| match String::from_utf8(fs::read(file).unwrap()) {
            Ok(text) => text,
            Err(error) => panic!("{} wrote what is no UTF-8: {error}", self.shown),
        };
        let (stdout, stderr) = (read(&self.out), read(&self.err));
        if self.shown.starts_with("library-admin") && self.shown.contains("--json") {
            for member in stdout.lines().flat_map(members) {
                assert!(
                    is_in_the_manual(member),
                    "library-admin(8) does not tell {member}: {stdout}"
                );
            }
        }
        TestCommand { command: self.shown, exit, stdout, stderr }
    }
}

/// The names of the members in a line of JSON, of nested objects too.
fn members(json: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut rest = json;
    while let Some((_, text)) = rest.split_once('"') {
        let mut is_escaped = false;
        let end = text.find(|c| {
            let ends = c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            ends
        });
        let end = end.expect("a text in JSON ends");
        rest = &text[end + 1..];
        if rest.starts_with(':') {
            names.push(&text[..end]);
        }
    }
    names
}

/// Whether the section on JSON of library-admin(8) names a member.
fn is_in_the_manual(member: &str) -> bool {
    let manual = include_str!("../../../src/man/library-admin.8");
    let (_, section) = manual.split_once("\n.Sh JSON\n").unwrap();
    let (section, _) = section.split_once("\n.Sh ").unwrap();
    // Of a text that is not UTF-8.
    let name = member.strip_suffix("_hex").unwrap_or(member);
    section.lines().any(|line| {
        line.strip_prefix(".Li ").is_some_and(|words| words.split_whitespace().any(|it| it == name))
    })
}

/// What a command was and what came of it.
pub struct TestCommand {
    command: String,
    /// `None` if it did not end in time.
    pub exit: Option<ExitStatus>,
    pub stdout: String,
    pub stderr: String,
}

impl TestCommand {
    /// Runs `library-req` against this Redis, and this branch of it.
    pub fn library_req(redis: &Redis, args: &[&str]) -> Self {
        Self::run(redis, env!("CARGO_BIN_EXE_library-req"), args)
    }

    /// Runs `library-admin` against this Redis, and this branch of it.
    pub fn library_admin(redis: &Redis, args: &[&str]) -> Self {
        Self::run(redis, env!("CARGO_BIN_EXE_library-admin"), args)
    }

    /// Runs `libraryd` to its end, for what it says on a wrong command line.
    pub fn libraryd(redis: &Redis, args: &[&str]) -> Self {
        Self::run(redis, env!("CARGO_BIN_EXE_libraryd"), args)
    }

    fn run(redis: &Redis, program: &str, args: &[&str]) -> Self {
        Running::start(redis, program, args, |_| ()).ends()
    }

    /// Its exit status, if it ended in time and by itself.
    pub fn status(&self) -> Option<i32> {
        self.exit.and_then(|exit| exit.code())
    }

    /// Fails, with all that the command printed, unless it ended with this status.
    #[track_caller]
    pub fn exits(self, status: i32) -> Self {
        assert_eq!(self.status(), Some(status), "{self}");
        self
    }
}

impl fmt::Display for TestCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "$ {}", self.command)?;
        writeln!(f, "stdout: {}", self.stdout)?;
        writeln!(f, "stderr: {}", self.stderr)?;
        match self.exit {
            Some(exit) => write!(f, "{exit}"),
            None => write!(f, "did not end in time"),
        }
    }
}
