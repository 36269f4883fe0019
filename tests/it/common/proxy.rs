//! A proxy between `libraryd` and Redis that lets the link or the daemon die at a chosen command.
//!
//! It understands just enough of the protocol to tell where a command or a reply ends, and which
//! script a command calls. Commands are counted by their kind, over all connections of the daemon:
//! the threads of a daemon race with each other, but each kind goes over one connection, so that "the
//! third decide" is the same in every run.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use library_lending::script::bare;
use rustix::process::{Pid, Signal, kill_process};

use super::{DEADLINE, Daemon, Redis, eventually};

/// The whole text of the script that decides.
pub const DECIDE: &str = concat!(
    include_str!("../../../lua/order.lua"),
    include_str!("../../../lua/groups.lua"),
    include_str!("../../../lua/refusals.lua"),
    include_str!("../../../lua/returns.lua"),
    include_str!("../../../lua/alone.lua"),
    include_str!("../../../lua/decide.lua")
);

/// Each script by the digest that a call carries.
static SCRIPTS: LazyLock<HashMap<String, &'static str>> = LazyLock::new(|| {
    const ORDER: &str = include_str!("../../../lua/order.lua");
    const GROUPS: &str =
        concat!(include_str!("../../../lua/order.lua"), include_str!("../../../lua/groups.lua"));
    let scripts = [
        ("acquire", "", include_str!("../../../lua/acquire.lua")),
        ("claim", ORDER, include_str!("../../../lua/claim.lua")),
        (
            "clear",
            GROUPS,
            concat!(
                include_str!("../../../lua/last_given.lua"),
                include_str!("../../../lua/clear.lua")
            ),
        ),
        ("decide", "", DECIDE),
        (
            "discard",
            include_str!("../../../lua/letters.lua"),
            include_str!("../../../lua/discard.lua"),
        ),
        ("fetch", "", include_str!("../../../lua/fetch.lua")),
        ("forget", "", include_str!("../../../lua/forget.lua")),
        ("inspect", GROUPS, include_str!("../../../lua/inspect.lua")),
        (
            "last_id",
            "",
            concat!(
                include_str!("../../../lua/last_given.lua"),
                include_str!("../../../lua/last_id.lua")
            ),
        ),
        ("lone_try", "", include_str!("../../../lua/lone_try.lua")),
        ("mend", GROUPS, include_str!("../../../lua/mend.lua")),
        ("old_tries", GROUPS, include_str!("../../../lua/old_tries.lua")),
        ("permits", "", include_str!("../../../lua/permits.lua")),
        ("recount", ORDER, include_str!("../../../lua/recount.lua")),
        (
            "reject",
            concat!(
                include_str!("../../../lua/order.lua"),
                include_str!("../../../lua/groups.lua"),
                include_str!("../../../lua/letters.lua")
            ),
            include_str!("../../../lua/reject.lua"),
        ),
        ("regroup", "", include_str!("../../../lua/regroup.lua")),
        ("renew", "", include_str!("../../../lua/renew.lua")),
        ("reserved", GROUPS, include_str!("../../../lua/reserved.lua")),
        ("resign", "", include_str!("../../../lua/resign.lua")),
        ("shelve", "", include_str!("../../../lua/shelve.lua")),
        ("sweep", GROUPS, include_str!("../../../lua/sweep.lua")),
        ("undone", GROUPS, include_str!("../../../lua/undone.lua")),
        ("unfetch", "", include_str!("../../../lua/unfetch.lua")),
    ];
    let digest = |(kind, parts, text): (&'static str, &str, &str)| {
        (redis::Script::new(&bare(&format!("{parts}{text}"))).get_hash().to_owned(), kind)
    };
    scripts.into_iter().map(digest).collect()
});

/// A command that is about to go to Redis.
pub struct Command<'a> {
    /// The script's name; `read`, `read hand-offs`, `pending`, `stream`, `read counts`,
    /// `transaction`, `delete`, `groups`, `type`, `persist` or `is stored`.
    pub kind: &'static str,
    /// The first of its kind is number 1.
    pub number: usize,
    bytes: &'a [u8],
}

impl Command<'_> {
    /// Whether this text is anywhere in the command.
    pub fn mentions(&self, text: &str) -> bool {
        self.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

/// What happens at a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is cut before the command reaches Redis.
    CutBefore,
    /// Redis executes it; the connection is cut before the reply arrives.
    CutAfter,
    /// Redis executes it, and the reply arrives; nothing can be sent any more behind that.
    CutBehind,
    /// Redis executes it; the reply arrives when the test says so.
    LateReply,
    /// The connection is cut, and the command arrives late: when the daemon has a new lease.
    Late,
    /// From this command on nothing arrives any more, in either direction; nobody is told.
    Silence,
    /// The command does not reach Redis, and its reply comes byte by byte and has no end: whoever
    /// waits for it is stuck, although never for long without a byte.
    Drip,
    /// The daemon is killed before the command reaches Redis.
    KillBefore,
    /// Redis executes it, and the daemon is killed before the reply arrives.
    KillAfter,
}

type Rule = dyn Fn(&Command<'_>) -> Option<Fault> + Send + Sync;

/// A running proxy.
pub struct Proxy {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    redis: String,
    rule: Box<Rule>,
    counts: Mutex<BTreeMap<&'static str, usize>>,
    /// Set when a fault has happened.
    struck: AtomicBool,
    /// Set when late replies may arrive.
    released: AtomicBool,
    ended: AtomicBool,
    daemon: AtomicU32,
    /// Commands that arrive late, with the connection that they are on.
    held: Mutex<Vec<(Arc<Link>, Vec<u8>)>>,
    unknown: Mutex<Vec<String>>,
}

impl Proxy {
    /// A proxy in front of a Redis. `rule` says for each command of a known kind what happens.
    pub fn new(
        redis: &Redis,
        rule: impl Fn(&Command<'_>) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = redis.directory().join(format!("proxy-{number}.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        let shared = Arc::new(Shared {
            path,
            redis: redis.address(),
            rule: Box::new(rule),
            counts: Mutex::default(),
            struck: AtomicBool::new(false),
            released: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            daemon: AtomicU32::new(0),
            held: Mutex::default(),
            unknown: Mutex::default(),
        });
        let of_thread = Arc::clone(&shared);
        // Ends when the proxy is dropped; those of a connection end with it.
        thread::spawn(move || {
            for client in listener.incoming() {
                if of_thread.ended.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(client) = client {
                    Link::open(&of_thread, client);
                }
            }
        });
        Self { shared }
    }

    /// A proxy for one fault, at the `number`-th command of a kind.
    pub fn at(redis: &Redis, kind: &'static str, number: usize, fault: Fault) -> Self {
        let here = move |command: &Command<'_>| command.kind == kind && command.number == number;
        Self::new(redis, move |command| here(command).then_some(fault))
    }

    /// A proxy without any fault that counts the commands of a kind.
    pub fn counting(redis: &Redis, kind: &'static str) -> (Self, Arc<AtomicUsize>) {
        let number = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&number);
        let proxy = Self::new(redis, move |command| {
            count.fetch_add(usize::from(command.kind == kind), Ordering::SeqCst);
            None
        });
        (proxy, number)
    }

    /// Its address.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Starts a daemon that speaks through this proxy, and does not wait for it.
    pub fn spawn(&self, redis: &Redis, args: &[&str]) -> Daemon {
        let address = self.path().display().to_string();
        self.shared.daemon.store(0, Ordering::SeqCst);
        let daemon = Daemon::spawn(redis, &[&["-a", &address], args].concat());
        self.shared.daemon.store(daemon.pid(), Ordering::SeqCst);
        daemon
    }

    /// Whether a fault has happened.
    pub fn has_struck(&self) -> bool {
        self.shared.struck.load(Ordering::SeqCst)
    }

    /// Lets late commands and replies arrive now.
    pub fn release(&self) {
        self.shared.released.store(true, Ordering::SeqCst);
        self.shared.release();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for (link, _) in self.shared.held.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            link.cut();
        }
        let _ = UnixStream::connect(self.path());
        let _ = fs::remove_file(self.path());
        let unknown = self.shared.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if !thread::panicking() {
            assert!(unknown.is_empty(), "scripts that the proxy does not know: {unknown:?}");
        }
    }
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill_daemon(&self) {
        // It may reach the point before whoever started it has told us its number.
        let pid = loop {
            let pid = self.daemon.load(Ordering::SeqCst);
            if pid != 0 || self.ended.load(Ordering::SeqCst) {
                break pid;
            }
            thread::sleep(Duration::from_millis(1));
        };
        if let Some(pid) = Pid::from_raw(i32::try_from(pid).expect("a process id")) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn release(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        for (link, bytes) in held {
            let _ = (&link.server).write_all(&bytes);
            // A blocking read may well take longer; every script is done by then.
            let _done = eventually(Duration::from_millis(300), || {
                link.late.load(Ordering::SeqCst) == LATE_DONE
            });
        }
    }
}

/// What the reply to a command does.
#[derive(Clone, Copy)]
enum OnReply {
    Pass,
    /// It tells that the daemon has a (new) lease: late commands arrive.
    Release,
    Fault(Fault),
}

/// A connection of the daemon, and ours to Redis.
struct Link {
    shared: Arc<Shared>,
    client: UnixStream,
    server: UnixStream,
    /// What is to be done with the replies that are still to come.
    replies: Mutex<VecDeque<OnReply>>,
    silent: AtomicBool,
    /// Whether a command is held back to arrive late, and whether it has.
    late: AtomicU32,
}

const LATE: u32 = 1;
const LATE_DONE: u32 = 2;

impl Link {
    fn open(shared: &Arc<Shared>, client: UnixStream) {
        let Ok(server) = UnixStream::connect(&shared.redis) else { return };
        let link = Arc::new(Self {
            shared: Arc::clone(shared),
            client,
            server,
            replies: Mutex::default(),
            silent: AtomicBool::new(false),
            late: AtomicU32::new(0),
        });
        let other = Arc::clone(&link);
        thread::spawn(move || Self::commands(&link));
        thread::spawn(move || other.replies());
    }

    fn cut(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }

    fn strike(&self, fault: Fault) {
        if matches!(fault, Fault::KillBefore | Fault::KillAfter) {
            self.shared.kill_daemon();
        }
        self.cut();
        self.shared.struck.store(true, Ordering::SeqCst);
    }

    /// Ends with the connection, or with the proxy.
    fn drip(&self) {
        self.shared.struck.store(true, Ordering::SeqCst);
        let _ = (&self.client).write_all(b"+");
        while !self.shared.ended.load(Ordering::SeqCst) && (&self.client).write_all(b".").is_ok() {
            thread::sleep(Duration::from_secs(1));
        }
        self.cut();
    }

    /// From the daemon to Redis.
    fn commands(self: &Arc<Self>) {
        let mut frames = Frames::default();
        while frames.fill(&self.client) {
            while let Some(frame) = frames.next() {
                if self.silent.load(Ordering::SeqCst) {
                    continue;
                }
                match self.command(frame) {
                    Some(Fault::Silence) => {
                        self.silent.store(true, Ordering::SeqCst);
                        self.shared.struck.store(true, Ordering::SeqCst);
                    }
                    Some(Fault::Drip) => return self.drip(),
                    Some(Fault::Late) => {
                        let mut held =
                            self.shared.held.lock().unwrap_or_else(PoisonError::into_inner);
                        held.push((Arc::clone(self), frame.to_vec()));
                        self.late.store(LATE, Ordering::SeqCst);
                        let _ = self.client.shutdown(Shutdown::Both);
                        self.shared.struck.store(true, Ordering::SeqCst);
                        return;
                    }
                    Some(fault) => return self.strike(fault),
                    None if (&self.server).write_all(frame).is_err() => return self.cut(),
                    None => {}
                }
            }
        }
        if !self.silent.load(Ordering::SeqCst) {
            self.cut();
        }
    }

    /// Looks at a command: what happens before Redis has it.
    fn command(&self, frame: &[u8]) -> Option<Fault> {
        let mut on_reply = OnReply::Pass;
        if let Some(kind) = self.kind(frame) {
            let number = {
                let mut counts = self.shared.counts();
                let count = counts.entry(kind).or_default();
                *count += 1;
                *count
            };
            match (self.shared.rule)(&Command { kind, number, bytes: frame }) {
                Some(
                    fault @ (Fault::CutAfter
                    | Fault::CutBehind
                    | Fault::KillAfter
                    | Fault::LateReply),
                ) => {
                    on_reply = OnReply::Fault(fault);
                }
                Some(fault) => return Some(fault),
                None if kind == "acquire" => on_reply = OnReply::Release,
                None => {}
            }
        }
        self.replies.lock().unwrap_or_else(PoisonError::into_inner).push_back(on_reply);
        None
    }

    fn kind(&self, frame: &[u8]) -> Option<&'static str> {
        let args = words(frame);
        match args.first()?.to_ascii_uppercase().as_slice() {
            b"EVALSHA" => {
                let digest = String::from_utf8_lossy(args.get(1)?).into_owned();
                let kind = SCRIPTS.get(&digest).copied();
                if kind.is_none() {
                    self.shared.unknown.lock().unwrap().push(digest);
                }
                kind
            }
            // The text comes after NOSCRIPT: the same call once more.
            b"EVAL" => {
                let text = String::from_utf8_lossy(args.get(1)?).into_owned();
                SCRIPTS.get(redis::Script::new(&text).get_hash()).copied()
            }
            b"XREADGROUP" if args.contains(&&b"shelving_service"[..]) => Some("read hand-offs"),
            b"XREADGROUP" => Some("read"),
            b"XINFO" if args.get(1)?.eq_ignore_ascii_case(b"STREAM") => Some("stream"),
            b"XPENDING" => Some("pending"),
            b"MGET" => Some("read counts"),
            b"MULTI" => Some("transaction"),
            b"XDEL" => Some("delete"),
            b"XINFO" if args.get(1)?.eq_ignore_ascii_case(b"GROUPS") => Some("groups"),
            b"TYPE" => Some("type"),
            b"PERSIST" => Some("persist"),
            b"SISMEMBER" => Some("is stored"),
            _ => None,
        }
    }

    /// From Redis to the daemon.
    fn replies(&self) {
        let mut frames = Frames::default();
        while frames.fill(&self.server) {
            while let Some(frame) = frames.next() {
                let next = self.replies.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                if self.late.load(Ordering::SeqCst) != 0 {
                    if next.is_none() {
                        return self.late.store(LATE_DONE, Ordering::SeqCst);
                    }
                    continue;
                }
                if self.silent.load(Ordering::SeqCst) {
                    continue;
                }
                match next {
                    Some(OnReply::Fault(Fault::LateReply)) => {
                        self.shared.struck.store(true, Ordering::SeqCst);
                        let released = || self.shared.released.load(Ordering::SeqCst);
                        assert!(eventually(DEADLINE, released), "nobody lets the reply go on");
                    }
                    Some(OnReply::Fault(Fault::CutBehind)) if !frame.starts_with(b"-NOSCRIPT") => {
                        // Before the reply: by then it is too late to send.
                        self.silent.store(true, Ordering::SeqCst);
                        let _ = self.client.shutdown(Shutdown::Read);
                        let _ = (&self.client).write_all(frame);
                        return self.strike(Fault::CutBehind);
                    }
                    Some(OnReply::Fault(fault)) if !frame.starts_with(b"-NOSCRIPT") => {
                        return self.strike(fault);
                    }
                    Some(OnReply::Release) => self.shared.release(),
                    _ => {}
                }
                // If the daemon has gone meanwhile, a late command still goes to Redis.
                let _ = (&self.client).write_all(frame);
            }
        }
        let _ = self.client.shutdown(Shutdown::Both);
    }
}

/// Bytes that come, in whole commands or replies.
#[derive(Default)]
struct Frames {
    bytes: Vec<u8>,
    taken: usize,
}

impl Frames {
    /// Waits for more; false at the end.
    fn fill(&mut self, mut from: &UnixStream) -> bool {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        let mut more = [0; 65536];
        match from.read(&mut more) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.bytes.extend(&more[..count]);
                true
            }
        }
    }

    fn next(&mut self) -> Option<&[u8]> {
        let rest = &self.bytes[self.taken..];
        let length = length_of(rest)?;
        self.taken += length;
        Some(&rest[..length])
    }
}

/// The first line, without its end, and where the next begins.
fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    Some((&bytes[..end], end + 2))
}

fn number(digits: &[u8]) -> i64 {
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).expect("a length")
}

/// How long the first value is, if all of it has come.
fn length_of(bytes: &[u8]) -> Option<usize> {
    let (first, mut at) = line(bytes)?;
    match first.first()? {
        b'$' => {
            let length = number(&first[1..]);
            let end = if length < 0 { at } else { at + length as usize + 2 };
            (bytes.len() >= end).then_some(end)
        }
        b'*' => {
            for _ in 0..number(&first[1..]) {
                at += length_of(&bytes[at..])?;
            }
            Some(at)
        }
        _ => Some(at),
    }
}

/// The words of a command.
fn words(frame: &[u8]) -> Vec<&[u8]> {
    let Some((_, mut at)) = line(frame) else { return Vec::new() };
    let mut words = Vec::new();
    while let Some((head, begin)) = line(&frame[at..]) {
        let length = number(&head[1..]) as usize;
        words.push(&frame[at + begin..at + begin + length]);
        at += begin + length + 2;
    }
    words
}
