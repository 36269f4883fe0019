//! The real `libraryd`.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::process::program;
use super::{DEADLINE, Process, Redis, Signal};

/// A running `libraryd`, with its log in the directory of its Redis.
pub struct Daemon {
    process: Process,
    log: PathBuf,
    notify: UnixDatagram,
    notified: String,
}

impl Daemon {
    /// Starts one and waits until it reads.
    pub fn start(redis: &Redis, args: &[&str]) -> Self {
        Self::spawn(redis, args).ready()
    }

    /// Starts one and does not wait. It is told where Redis is unless `args` do.
    pub fn spawn(redis: &Redis, args: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| redis.directory().join(format!("libraryd-{number}.{kind}"));
        let (log, notify) = (file("log"), file("notify"));
        let output = File::create(&log).unwrap();
        let socket = UnixDatagram::bind(&notify).unwrap();
        let mut command = program(env!("CARGO_BIN_EXE_libraryd"));
        command
            .args(args)
            .env_clear()
            .envs(redis.environment())
            .env("NOTIFY_SOCKET", &notify)
            // As the unit says.
            .env("WATCHDOG_USEC", "30000000")
            .current_dir(redis.directory())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        if let Some(branch) = redis.branch_name() {
            command.args(["--branch", branch]);
        }
        let process = Process::spawn(&mut command);
        Self { process, log, notify: socket, notified: String::new() }
    }

    /// Waits until it says that it is ready.
    pub fn ready(mut self) -> Self {
        assert!(self.becomes_ready(DEADLINE), "libraryd did not become ready:\n{}", self.log());
        self
    }

    /// Whether it says that it is ready, within `deadline` and before it ends.
    pub fn becomes_ready(&mut self, deadline: Duration) -> bool {
        let start = Instant::now();
        while !self.has_notified("READY=1") {
            if self.process.ended().is_some() || start.elapsed() > deadline {
                return false;
            }
        }
        true
    }

    /// Whether it has told its supervisor this; waits a little for the next message.
    pub fn has_notified(&mut self, line: &str) -> bool {
        if let Some(message) = self.next_notice() {
            self.notified.push_str(&message);
            self.notified.push('\n');
        }
        self.notified.lines().any(|told| told == line)
    }

    /// What it tells its supervisor next, if that comes soon.
    pub fn next_notice(&mut self) -> Option<String> {
        let mut message = [0; 4096];
        self.notify.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let length = self.notify.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..length]).into_owned())
    }

    /// The file that it writes to.
    pub fn log_file(&self) -> File {
        File::open(&self.log).unwrap()
    }

    /// All that it has written so far.
    pub fn log(&self) -> String {
        let mut bytes = Vec::new();
        self.log_file().read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    pub fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Waits until it ends by itself; its exit status (a negative number: the signal).
    pub fn exit_status(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let Some(status) = self.process.wait(DEADLINE) else {
            panic!("libraryd did not end in time:\n{}", self.log());
        };
        status.code().unwrap_or_else(|| -status.signal().expect("it ended"))
    }

    /// Asks it to stop and waits; its exit status.
    pub fn stop(&mut self) -> i32 {
        self.signal(Signal::TERM);
        self.exit_status()
    }
}
