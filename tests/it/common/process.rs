//! Processes that do not outlive the test that started them, nor the test runner.

use std::io::Write;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use library_lending::signals::heeded;
use rustix::process::{Pid, Signal, kill_process};

use super::eventually;

/// A child that is killed when it is dropped, and by [`GUARD`] when the test runner is killed.
pub struct Process {
    child: Child,
    status: Option<ExitStatus>,
}

/// A program that heeds SIGHUP and SIGINT, also where whoever runs the tests ignores them: nohup, or a
/// script that began them in the background.
pub fn program(path: &str) -> Command {
    const SIGHUP: i32 = 1;
    const SIGINT: i32 = 2;
    if heeded(&[SIGHUP, SIGINT]).len() == 2 {
        return Command::new(path);
    }
    let mut command = Command::new("/usr/bin/env");
    command.args(["--default-signal=HUP,INT", path]);
    command
}

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        tell_guard("started", child.id());
        Self { child, status: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
            if self.status.is_some() {
                tell_guard("ended", self.child.id());
            }
        }
        self.status
    }

    /// Its exit status once it ends; `None` if it does not within `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        let _in_time = eventually(deadline, || self.ended().is_some());
        self.status
    }

    /// Sends a signal; nothing happens if the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            kill_process(Pid::from_child(&self.child), signal).unwrap();
        }
    }

    /// Kills it as a power failure does, and waits until it is gone.
    pub fn kill9(&mut self) {
        self.signal(Signal::KILL);
        assert!(self.wait(Duration::from_secs(10)).is_some(), "SIGKILL did not end a process");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        tell_guard("ended", self.child.id());
    }
}

/// A shell that knows the processes that are alive and kills them when its input ends, which it
/// does however the test runner ends, by SIGKILL too. (PR_SET_PDEATHSIG would fire as soon as
/// the *thread* ends that started the child, and is Linux' alone.)
#[allow(clippy::zombie_processes)] // It ends after us.
static GUARD: LazyLock<Mutex<ChildStdin>> = LazyLock::new(|| {
    const SCRIPT: &str = r#"
        trap '' HUP INT TERM
        alive=' '
        while read -r word pid; do
            case $word in
                started) alive="$alive$pid " ;;
                ended) case $alive in
                    *" $pid "*) alive="${alive%% "$pid" *} ${alive#* "$pid" }" ;;
                esac ;;
            esac
        done
        [ "$alive" = ' ' ] || kill -9 $alive"#;
    let mut guard = Command::new("sh")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell");
    Mutex::new(guard.stdin.take().expect("it was piped"))
});

fn tell_guard(word: &str, pid: u32) {
    let mut guard = GUARD.lock().unwrap_or_else(PoisonError::into_inner);
    // One write: a line is never half there.
    let _ = guard.write_all(format!("{word} {pid}\n").as_bytes());
}
