//! A private redis-server in a temporary directory.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::{Client, Connection, ErrorKind, FromRedisValue, RedisError, RedisResult, Value};
use tempfile::TempDir;

use super::{DEADLINE, Process, Signal, State, eventually};

/// A redis-server of this test, seen as one branch of the library. Cloning gives another handle
/// to the same server; the last one kills it. If the test fails, that prints all logs and what
/// Redis held.
#[derive(Clone)]
pub struct Redis {
    server: Arc<Server>,
    prefix: String,
    /// The file of certificates that the binaries are to trust, if it is not the system's.
    trusted: Option<String>,
}

struct Server {
    directory: TempDir,
    /// The option for the TCP port, if there is one.
    listens: Option<&'static str>,
    options: Vec<String>,
    running: Mutex<Running>,
    connection: Mutex<Option<Connection>>,
    /// Whether it was stopped by a signal.
    hangs: AtomicBool,
}

struct Running {
    process: Option<Process>,
    /// 0 where there is only the socket. Kept over a restart.
    port: u16,
}

impl Redis {
    /// A server on a Unix socket that keeps nothing on disk.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// The same with options, as on redis-server's command line; `--appendonly yes` makes its
    /// data outlive [`Redis::kill9`].
    pub fn with(options: &[&str]) -> Self {
        Self::start(None, options)
    }

    /// The same on a free TCP port as well.
    pub fn tcp(options: &[&str]) -> Self {
        Self::start(Some("--port"), options)
    }

    /// The same on a free TCP port where TLS is spoken, with the certificate that `options` name.
    pub fn tls(options: &[&str]) -> Self {
        Self::start(Some("--tls-port"), options)
    }

    fn start(listens: Option<&'static str>, options: &[&str]) -> Self {
        let server = Server {
            directory: TempDir::with_prefix("library-").unwrap(),
            listens,
            options: options.iter().map(ToString::to_string).collect(),
            running: Mutex::new(Running { process: None, port: 0 }),
            connection: Mutex::new(None),
            hangs: AtomicBool::new(false),
        };
        let redis = Self { server: Arc::new(server), prefix: String::new(), trusted: None };
        redis.restart();
        redis
    }

    /// The same server seen as a branch: events, outcomes and state are those under its prefix.
    pub fn branch(&self, name: &str) -> Self {
        let mut branch = self.clone();
        branch.prefix = format!("{{{name}}}:");
        branch
    }

    /// A name of the contract as a key of this branch.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The name for `--branch`, if this is a branch.
    pub fn branch_name(&self) -> Option<&str> {
        self.prefix.strip_prefix('{')?.strip_suffix("}:")
    }

    /// The same server, to whoever trusts the certificates in this file.
    pub fn trusting(&self, file: &str) -> Self {
        let mut redis = self.clone();
        redis.trusted = Some(file.to_owned());
        redis
    }

    /// What the binaries are told by their environment.
    pub fn environment(&self) -> impl Iterator<Item = (&'static str, String)> {
        let address = Some(("LIBRARY_ADDRESS", self.address()));
        let trusted = self.trusted.clone().map(|file| ("SSL_CERT_FILE", file));
        address.into_iter().chain(trusted)
    }

    /// The path of its Unix socket, as `--address` takes it.
    pub fn address(&self) -> String {
        self.socket().display().to_string()
    }

    /// Its URL, where it was started with [`Redis::tcp`].
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }

    /// Its TCP port; 0 without.
    pub fn port(&self) -> u16 {
        self.server.running.lock().unwrap().port
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.server.running.lock().unwrap().process.as_ref().expect("it runs").pid()
    }

    /// Where sockets and logs are.
    pub fn directory(&self) -> &Path {
        self.server.directory.path()
    }

    fn socket(&self) -> PathBuf {
        self.directory().join("redis.sock")
    }

    /// Starts the server (again), in the same directory, on the same addresses.
    pub fn restart(&self) {
        let mut running = self.server.running.lock().unwrap();
        assert!(running.process.is_none(), "it runs already");
        for _ in 0..5 {
            if self.server.listens.is_some() && running.port == 0 {
                running.port = free_port();
            }
            let mut process = self.spawn(running.port);
            let up = eventually(DEADLINE, || process.ended().is_some() || self.answers());
            if up && process.ended().is_none() {
                running.process = Some(process);
                return;
            }
            // Somebody else may have taken the port between our look and the server's.
            running.port = 0;
        }
        drop(running);
        panic!("redis-server did not start:\n{}", self.server.logs());
    }

    fn spawn(&self, port: u16) -> Process {
        let path = self.directory().join("redis.log");
        let log = File::options().append(true).create(true).open(path).unwrap();
        let socket = self.socket();
        let _ = fs::remove_file(&socket);
        let mut command = Command::new("redis-server");
        command
            .current_dir(self.directory())
            .args(["--save", "", "--appendonly", "no", "--port", "0"])
            .args(
                self.server.listens.iter().flat_map(|option| [(*option).into(), port.to_string()]),
            )
            .args(["--bind", "127.0.0.1", "--unixsocket", "redis.sock"])
            .args(&self.server.options)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        Process::spawn(&mut command)
    }

    fn answers(&self) -> bool {
        self.connect().and_then(|mut c| redis::cmd("PING").query::<Value>(&mut c)).is_ok()
    }

    /// Ends the server as a power failure does.
    pub fn kill9(&self) {
        let process = self.server.running.lock().unwrap().process.take();
        process.expect("it runs").kill9();
        self.server.hangs.store(false, Ordering::SeqCst);
        *self.server.connection.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How many calls of scripts by their digest it has served.
    pub fn calls_of_scripts(&self) -> usize {
        self.calls_of("evalsha")
    }

    /// How many calls of a command it has served.
    pub fn calls_of(&self, command: &str) -> usize {
        let stats: String = self.ask(&["INFO", "commandstats"]);
        let calls = stats.split_once(&format!("cmdstat_{command}:calls="));
        let (_, calls) = calls.unwrap_or(("", "0,"));
        calls.split(',').next().unwrap().parse().unwrap()
    }

    /// Sends the server a signal: `STOP` and `CONT` make it hang and go on.
    pub fn signal(&self, signal: Signal) {
        let mut running = self.server.running.lock().unwrap();
        self.server.hangs.store(signal == Signal::STOP, Ordering::SeqCst);
        running.process.as_mut().expect("it runs").signal(signal);
    }

    /// A connection of one's own, without a limit of time: where there is one, the system ends a
    /// wait with an error when the machine goes on after a pause.
    pub fn connect(&self) -> RedisResult<Connection> {
        self.unless_it_hangs()?;
        Client::open(format!("redis+unix://{}", self.address()))?.get_connection()
    }

    /// An error where a question would wait for ever: a test that fails while its server is stopped
    /// says so.
    fn unless_it_hangs(&self) -> RedisResult<()> {
        if self.server.hangs.load(Ordering::SeqCst) {
            return Err((ErrorKind::Io, "the test has stopped this server").into());
        }
        Ok(())
    }

    /// Runs one command and gives its reply in the wanted form. For commands that must succeed.
    pub fn ask<T: FromRedisValue>(&self, args: &[impl AsRef<[u8]>]) -> T {
        let shown: Vec<_> = args.iter().map(|arg| arg.as_ref().escape_ascii()).collect();
        self.try_ask(args).unwrap_or_else(|error| panic!("{shown:?}: {error}"))
    }

    /// Runs one command; its reply as it is.
    pub fn cmd(&self, args: &[impl AsRef<[u8]>]) -> Value {
        self.ask(args)
    }

    /// Runs one command; for those that may fail.
    pub fn try_ask<T: FromRedisValue>(&self, args: &[impl AsRef<[u8]>]) -> Result<T, RedisError> {
        self.unless_it_hangs()?;
        let mut connection = self.server.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.is_none() {
            *connection = Some(self.connect()?);
        }
        let mut command = redis::Cmd::new();
        for arg in args {
            command.arg(arg.as_ref());
        }
        let reply = command.query(connection.as_mut().expect("just made"));
        if reply.as_ref().is_err_and(RedisError::is_io_error) {
            *connection = None;
        }
        reply
    }

    /// Runs commands in one pipeline; none may fail.
    pub fn pipeline(&self, commands: &[Vec<String>]) -> Vec<Value> {
        let mut connection = self.connect().unwrap();
        let mut pipeline = redis::pipe();
        for command in commands {
            let (name, args) = command.split_first().expect("a command has a name");
            pipeline.cmd(name).arg(args);
        }
        pipeline.query(&mut connection).unwrap()
    }

    /// Everything that Redis holds, of all branches.
    pub fn everything(&self) -> State {
        State::read(self).unwrap()
    }

    /// What violates an invariant, of this branch, if nothing were left to do.
    pub fn violations(&self) -> Vec<String> {
        self.everything().branch(&self.prefix).violations()
    }

    /// Whether nothing is left to do: every event of the three streams is delivered and
    /// acknowledged.
    pub fn is_drained(&self) -> bool {
        self.everything().branch(&self.prefix).is_drained()
    }

    /// Waits until nothing is left to do and checks that no invariant is violated then.
    pub fn assert_at_rest(&self) {
        self.wait_until_drained(DEADLINE);
        let violations = self.violations();
        assert!(violations.is_empty(), "violated invariants: {violations:#?}");
    }

    /// Waits until nothing is left to do.
    pub fn wait_until_drained(&self, deadline: Duration) {
        assert!(eventually(deadline, || self.is_drained()), "the streams were not drained in time");
    }
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

impl Server {
    /// The last lines of every log in the directory.
    fn logs(&self) -> String {
        const LINES: usize = 80;
        let mut shown = String::new();
        let mut paths: Vec<_> =
            fs::read_dir(self.directory.path()).into_iter().flatten().flatten().collect();
        paths.sort_by_key(fs::DirEntry::file_name);
        for entry in paths {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "log") {
                continue;
            }
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
            let lines: Vec<_> = text.lines().collect();
            let _ = writeln!(shown, "---- {}", entry.file_name().display());
            for line in &lines[lines.len().saturating_sub(LINES)..] {
                let _ = writeln!(shown, "{line}");
            }
        }
        shown
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if Arc::strong_count(&self.server) == 1 && std::thread::panicking() {
            println!("{}", self.server.logs());
            match State::read(self) {
                Ok(state) => println!("---- what Redis held\n{state}"),
                Err(error) => println!("---- what Redis held is not known: {error}"),
            }
        }
    }
}
