//! The commands, run once.

use std::fmt;
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Process, Redis};

/// What a command was and what came of it.
pub struct TestCommand {
    command: String,
    status: Option<i32>,
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

    /// Runs `library-admin`, and does something to it once it has begun.
    pub fn library_admin_while(
        redis: &Redis,
        args: &[&str],
        meanwhile: impl FnOnce(&mut Process),
    ) -> Self {
        Self::run_while(redis, env!("CARGO_BIN_EXE_library-admin"), args, meanwhile)
    }

    fn run(redis: &Redis, program: &str, args: &[&str]) -> Self {
        Self::run_while(redis, program, args, |_| ())
    }

    fn run_while(
        redis: &Redis,
        program: &str,
        args: &[&str],
        meanwhile: impl FnOnce(&mut Process),
    ) -> Self {
        /// Longer than any wait of the commands themselves.
        const PATIENCE: Duration = Duration::from_secs(30);
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| redis.directory().join(format!("command-{number}.{kind}"));
        let mut command = Command::new(program);
        command.args(args);
        if let Some(branch) = redis.branch_name() {
            command.args(["--branch", branch]);
        }
        command
            .env_clear()
            .envs(redis.environment())
            .current_dir(redis.directory())
            .stdin(Stdio::null())
            // Files, because nobody reads while we wait.
            .stdout(File::create(file("out")).unwrap())
            .stderr(File::create(file("err")).unwrap());
        let mut process = Process::spawn(&mut command);
        meanwhile(&mut process);
        let status = process.wait(PATIENCE);
        let read =
            |kind: &str| String::from_utf8_lossy(&fs::read(file(kind)).unwrap()).into_owned();
        let name = program.rsplit('/').next().unwrap_or(program);
        Self {
            command: format!("{name} {}", args.join(" ")),
            status: status.and_then(|status| status.code()),
            stdout: read("out"),
            stderr: read("err"),
        }
    }

    /// Its exit status, if it ended in time and by itself.
    pub fn status(&self) -> Option<i32> {
        self.status
    }

    /// Fails, with all that the command printed, unless it ended with this status.
    #[track_caller]
    pub fn exits(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "{self}");
        self
    }
}

impl fmt::Display for TestCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "$ {}", self.command)?;
        writeln!(f, "stdout: {}", self.stdout)?;
        writeln!(f, "stderr: {}", self.stderr)?;
        match self.status {
            Some(status) => write!(f, "exit status {status}"),
            None => write!(f, "did not end in time"),
        }
    }
}
