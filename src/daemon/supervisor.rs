//! The main thread: signals, sessions one after the other, and the end.
//!
//! A session ends at the first error on any of its connections. What can heal is tried again, with
//! growing pauses, and each cause told once; what cannot ends the process with a status of its own
//! (libraryd(8), exit status). Nothing in a session needs to recover from anything: that is what makes
//! every loop come back by itself.

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select, unbounded};
use log::{debug, error, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::keeper::{Order, STALL};
use super::lease::{self, Acquired, Lease, Watch};
use super::notify::Notifier;
use super::options::Options;
use super::outage::Outage;
use super::threads::{Connections, Report};
use super::{
    EXIT_AT_ONCE, EXIT_CREDENTIALS, EXIT_RUNNING, EXIT_SYSTEM, EXIT_UNAVAILABLE, EXIT_UNFIT,
    blocked_reads, lost_group, neighbours, setup,
};
use crate::connect::Target;
use crate::daemon::LOG;
use crate::error::{Error, Remedy};
use crate::event::EventKey;
use crate::keys::{Keys, Stream};
use crate::lending::lone_tries::{self, LoneStep};
use crate::link::{self, Connection};
use crate::session::{Session, Thread};
use crate::signals;
use crate::text::counted;
use crate::{lending, logging, shelving};

/// Signals so close behind the first are the same wish: who stops a process and its whole group, as
/// `timeout` does, sends two.
const ONE_WISH: Duration = Duration::from_millis(100);

/// Pauses between tries to get a session: the first, and the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long a consumer group that was lost stays so at least. Instances of the reference application,
/// which leave no word, notice within it.
const REGROUP_PAUSE: Duration = Duration::from_millis(500);

/// How long the others may take to notice: longer than whatever an instance waits for, and than the usual
/// lease.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

/// How often others' locks are looked at, where something waits for them.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A session that lasted so long was a good one: an outage before it is over.
const PROVEN: Duration = Duration::from_millis(500);

/// How many sessions in a row must have failed before anything was decided: a single one can be a link that
/// fell silent.
const FRUITLESS: u32 = 3;

/// How often the connection on which threads are ended says that it is alive.
const PING_EVERY: Duration = Duration::from_secs(1);

/// How long a graceful end may take before what is in work is left to others.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the process ends.
enum End {
    /// It was asked to.
    Stopped,
    /// Something that cannot heal, or not by itself.
    Status(u8, String),
}

/// Sessions in a row that failed before anything was decided, though they had the lease.
struct Fruitless {
    since: Instant,
    sessions: u32,
}

/// How a session came to its end.
enum Over {
    End(End),
    Trouble(Error),
}

impl From<Error> for Over {
    fn from(error: Error) -> Self {
        Self::Trouble(error)
    }
}

/// Runs the daemon until it is asked to stop, or cannot go on.
pub fn run(options: Options, target: Target) -> ExitCode {
    logging::start(options.log_level, &[LOG, lending::LOG, shelving::LOG]);
    // A thread that panics leaves its work undone: that must not look like an idle one. The lease
    // runs out, others take over, systemd starts us again.
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default_hook(panic);
        std::process::abort();
    }));
    let signals = match watch_signals() {
        Ok(signals) => signals,
        Err(why) => {
            error!(target: LOG, "cannot watch signals: {why}");
            return ExitCode::from(EXIT_SYSTEM);
        }
    };
    let notifier = Notifier::from_env();
    let keys = Keys::new(options.connect.branch());
    let lease = Lease::new(keys.lock(&options.settings.name), options.settings.lease);
    let part = options.connect.part(&target);
    info!(target: LOG, "{} starts, on Redis at {target}{part}", options.settings.name);
    let mut supervisor = Supervisor {
        keys,
        options,
        target,
        signals,
        notifier,
        lease,
        tried: Arc::default(),
        sessions: 0,
        ready: false,
        answered: Instant::now(),
        outage: None,
        lease_unused: false,
        reading: 0,
        blocked: Vec::new(),
        fruitless: None,
    };
    let end = supervisor.run();
    supervisor.notifier.stopping();
    match end {
        End::Stopped => {
            info!(target: LOG, "{} stopped", supervisor.options.settings.name);
            ExitCode::SUCCESS
        }
        End::Status(status, why) => {
            error!(target: LOG, "{why}");
            info!(target: LOG, "{} ends with status {status}", supervisor.options.settings.name);
            ExitCode::from(status)
        }
    }
}

/// A thread that waits for signals: the first goes to the channel, a second ends the process.
fn watch_signals() -> std::io::Result<Receiver<i32>> {
    let (sender, receiver) = bounded(1);
    // Of nohup; SIGINT is ignored in whatever a script begins in the background, and stops us even so.
    let hangup = signals::heeded(&[SIGHUP]);
    let mut signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(hangup))?;
    // Ends with the process.
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut signals = signals.forever();
        if let Some(signal) = signals.next() {
            // The supervisor lives as long as the process.
            let _ = sender.send(signal);
        }
        let asked = Instant::now();
        if signals.any(|_| asked.elapsed() > ONE_WISH) {
            logging::say("libraryd: stopped at once by a second signal\n");
            std::process::exit(EXIT_AT_ONCE);
        }
    })?;
    Ok(receiver)
}

struct Supervisor {
    keys: Keys,
    options: Options,
    target: Target,
    signals: Receiver<i32>,
    notifier: Notifier,
    lease: Lease,
    tried: Arc<Mutex<Vec<EventKey>>>,
    /// How many sessions this process has had.
    sessions: u64,
    /// Whether systemd was told that we are ready.
    ready: bool,
    /// When Redis last answered in a session, or the start of the process.
    answered: Instant,
    /// Why there is no good session, once that was told.
    outage: Option<Outage>,
    /// Whether this session has the lease, and has decided nothing.
    lease_unused: bool,
    /// How many readers read what is new in this session, having read what was pending.
    reading: usize,
    /// The connections on which readers of this session block, by the ids that Redis gives them.
    blocked: Vec<u64>,
    /// The last sessions, if they failed with a lease that they had not used.
    fruitless: Option<Fruitless>,
}

impl Supervisor {
    fn run(&mut self) -> End {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let begin = Instant::now();
            let error = match self.session() {
                Ok(()) => return End::Stopped,
                Err(Over::End(end)) => return end,
                Err(Over::Trouble(error)) => error,
            };
            if let Some(end) = self.end_for(&error) {
                return end;
            }
            if begin.elapsed() > PROVEN {
                pause = SHORTEST_PAUSE;
            }
            self.tell_outage(&error);
            self.count_failure();
            let waited =
                if self.is_fruitless() { self.let_lease_run_out() } else { self.wait(pause) };
            if let Err(Over::End(end)) = waited {
                return end;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Tells an outage when it is noticed, and later whatever else keeps it up. A closed link is noticed at
    /// once; a server that has fallen silent has been so since its last answer.
    fn tell_outage(&mut self, error: &Error) {
        if error.is_interrupted() {
            // Somebody paused this process: nothing is wrong with Redis.
            debug!(target: LOG, "{error}");
            return;
        }
        // Where Redis has been once, it is the right address.
        let question = if self.sessions == 0 {
            self.target.question(error)
        } else {
            self.target.question_at_any_time(error).unwrap_or_default()
        };
        // The line that said where it is may be weeks old.
        let (whose, status) = match error {
            Error::Redis { .. } => (format!("Redis at {}: ", self.target), "waiting for Redis"),
            _ => (String::new(), "trying again"),
        };
        let cause = format!("{whose}{error}");
        let now = Instant::now();
        match &mut self.outage {
            None => {
                warn!(target: LOG, "{cause}{question}; trying again until it works");
                let since = if error.is_unanswered() { self.answered } else { now };
                self.outage = Some(Outage::new(&cause, since, now));
            }
            Some(outage) => {
                if outage.is_news(&cause, now) {
                    warn!(target: LOG, "{cause}{question}; still trying");
                } else {
                    debug!(target: LOG, "{cause}");
                }
            }
        }
        self.notifier.status(status);
    }

    /// A pause is nobody's fault. One that outlasted the lease explains why others have our events.
    fn tell_pause(&self, error: &Error) {
        let silent = self.answered.elapsed();
        if (error.is_interrupted() || matches!(error, Error::Fenced))
            && silent > self.options.settings.lease
        {
            warn!(
                target: LOG,
                "nothing was heard from Redis for {} s, longer than the lease, as when this process or its \
                 machine is paused: what it had in hand may have been taken over",
                silent.as_secs()
            );
        }
    }

    /// What ends the process, if this error does.
    fn end_for(&self, error: &Error) -> Option<End> {
        match error.remedy() {
            Remedy::Credentials => {
                let advice = self.target.advice(error);
                Some(End::Status(EXIT_CREDENTIALS, format!("{error}{advice}")))
            }
            // In an outage something else may stand in Redis' place for a while.
            Remedy::Person if self.sessions > 0 && error.is_unknown_command() => None,
            Remedy::Person => {
                // Which key has the wrong type, the server does not say.
                let named = self
                    .target
                    .connect(Duration::ZERO)
                    .and_then(|mut it| setup::check_types(&mut it, &self.keys, self.lease.lock()));
                let why = match named {
                    Err(unfit @ Error::Unfit(_)) => unfit.to_string(),
                    _ => error.to_string(),
                };
                Some(End::Status(EXIT_UNFIT, why))
            }
            Remedy::Retry if self.sessions == 0 && self.options.exit_if_unavailable => {
                let question = self.target.question(error);
                Some(End::Status(EXIT_UNAVAILABLE, format!("{error}{question}")))
            }
            Remedy::Retry => None,
        }
    }

    /// Waits. Even then we are alive: an outage of Redis is no stall.
    ///
    /// # Errors
    /// A signal came.
    fn wait(&self, pause: Duration) -> Result<(), Over> {
        self.notifier.alive();
        match self.signals.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(Over::End(End::Stopped)),
        }
    }

    /// Whether sessions have failed for longer than a lease, and nothing was decided in any of them.
    fn is_fruitless(&self) -> bool {
        let lease = self.options.settings.lease;
        self.fruitless
            .as_ref()
            .is_some_and(|it| it.sessions >= FRUITLESS && it.since.elapsed() > lease)
    }

    /// Counts a session that has failed. Without the lease it keeps nobody from anything.
    fn count_failure(&mut self) {
        if self.lease_unused {
            let first = || Fruitless { since: Instant::now(), sessions: 0 };
            self.fruitless.get_or_insert_with(first).sessions += 1;
        } else {
            self.fruitless = None;
        }
    }

    /// Leaves what is in hand to others: while it is taken again and again, a lease does not run out, and
    /// nobody takes over.
    fn let_lease_run_out(&mut self) -> Result<(), Over> {
        warn!(target: LOG, "sessions fail before anything is decided: the lease is left to run out");
        self.fruitless = None;
        // Others look three times in each lease: after two leases one of them has taken over.
        let until = Instant::now() + 2 * self.options.settings.lease;
        while Instant::now() < until {
            self.wait(LONGEST_PAUSE.min(until - Instant::now()))?;
        }
        Ok(())
    }

    /// Takes the lease. The first time, a lock that is held is watched for as long as it lasts: an
    /// instance that died leaves one behind.
    fn acquire(&mut self, connection: &mut Connection) -> Result<String, Over> {
        let first = self.sessions == 0;
        let name = self.options.settings.name.clone();
        let mut watch: Option<Watch> = None;
        loop {
            let force = first && self.options.force;
            let (value, left) = match self.lease.acquire(connection, force)? {
                Acquired::Ours { token, is_forced } => {
                    if is_forced {
                        warn!(
                            target: LOG,
                            "took the name {name} from an instance that was running, by its lease"
                        );
                    }
                    return Ok(token);
                }
                Acquired::Held { value, left } => (value, left),
            };
            if !first {
                return Err(Over::End(End::Status(
                    EXIT_UNAVAILABLE,
                    format!("{name} lost its lease to another process, which has its name now"),
                )));
            }
            let lives = match &mut watch {
                Some(watch) => watch.shows_life(&value, left),
                None => left.is_none(),
            };
            if lives {
                let (why, force) = if left.is_none() {
                    (
                        "its lock has no time to live, as an instance of the reference application \
                         leaves it",
                        "if that one runs no more, -f takes the name",
                    )
                } else {
                    ("its lease is being renewed", "-f takes the name over and stops the other")
                };
                return Err(Over::End(End::Status(
                    EXIT_RUNNING,
                    format!(
                        "an instance of the name {name} is running: {why}. Every instance needs a \
                         name of its own; {force}"
                    ),
                )));
            }
            if watch.is_none() {
                info!(target: LOG, "the name {name} is leased; if nobody renews the lease, it is taken");
                watch = Some(Watch::new(value, left));
            }
            self.wait(LOOK_EVERY)?;
        }
    }

    /// One session, from the connection to its end.
    fn session(&mut self) -> Result<(), Over> {
        (self.lease_unused, self.reading) = (false, 0);
        let mut control = self.target.connect(Duration::ZERO)?;
        self.notifier.alive();
        let has_branch = self.options.connect.branch().is_some();
        setup::check_version(&mut control, has_branch)?;
        setup::check_types(&mut control, &self.keys, self.lease.lock())?;
        self.notifier.alive();
        let token = self.acquire(&mut control)?;
        self.lease_unused = true;
        let first = self.sessions == 0;
        let session = Session::new(
            self.keys.clone(),
            self.options.settings.clone(),
            token,
            Arc::clone(&self.tried),
            first,
        );
        let mut threads = match self.prepare(&session, &mut control) {
            Ok(threads) => threads,
            Err(error) => {
                // Whoever starts next need not wait for a lease that nobody uses. On a link that has
                // failed that would only take longer; and what somebody else has by now is theirs.
                let is_lost = |error: &Error| error.is_of_link() || matches!(error, Error::Fenced);
                if !matches!(&error, Over::Trouble(error) if is_lost(error)) {
                    let _ = lost_group::forget(&session, &mut control);
                    if lease::resign(&session, &mut control).is_ok() {
                        self.lease_unused = false;
                    }
                }
                return Err(error);
            }
        };
        self.sessions += 1;
        self.blocked = std::mem::take(&mut threads.of_readers);
        std::thread::scope(|scope| {
            let (sender, events) = unbounded();
            let (orders, keeper_orders) = unbounded();
            let started = threads.spawn(scope, &session, &sender, keeper_orders);
            drop(sender);
            let over = match started {
                Ok(()) => self.oversee(&session, &events, &orders, &mut control),
                Err(error) => Err(error.into()),
            };
            self.answered = session.last_reply();
            if self.is_productive(&session) {
                // It keeps nobody waiting.
                self.lease_unused = false;
            }
            if let Err(Over::Trouble(error)) = &over
                && error.remedy() == Remedy::Retry
            {
                // Threads that wait for a Redis that hangs may take longer to end than it hangs.
                self.tell_outage(error);
                self.tell_pause(error);
            }
            // Whatever happened, every thread ends now: at the scope's end they are all joined.
            session.break_off();
            let _ = orders.send(Order::End);
            let _ = blocked_reads::wake(&self.blocked, &mut control);
            over
        })
    }

    /// What has to be done before the first event is read. Where Redis takes a second for each command, or
    /// there are very many instances, that takes longer than systemd waits for a sign of life, and longer
    /// than the lease: so now and then on the way systemd is told that we are alive, and the lease is renewed.
    fn prepare(&self, session: &Session, control: &mut Connection) -> Result<Connections, Over> {
        let keep_alive = |control: &mut Connection| {
            self.notifier.alive();
            lease::renew(session, control)
        };
        self.notifier.alive();
        blocked_reads::end_others(session, control)?;
        setup::check_permissions(control, session)?;
        setup::check_ids(control, &self.keys, true)?;
        keep_alive(control)?;
        let lost = setup::first_lost(control, &self.keys)?;
        if let Some(stream) = lost {
            self.wait_until_noticed(session, control, stream)?;
        }
        let created = setup::ensure_groups(control, &self.keys)?;
        // With an outcome left it is known to be lost groups, and no more.
        if created == Stream::ALL.len() && self.ready && lost.is_none() {
            error!(
                target: LOG,
                "the library is gone from Redis at {}: it was emptied, or came back without its data. Who had \
                 which book is lost; going on with what is there",
                self.target
            );
        }
        if lost.is_some() {
            lost_group::forget(session, control)?;
        }
        keep_alive(control)?;
        setup::make_known(control, &self.keys, self.options.settings.name.as_str())?;
        if self.options.settings.keep_events {
            setup::note_kept_events(control, &self.keys)?;
        }
        if session.first {
            setup::warn_of_settings(control);
        }
        // Before the first decision.
        let others = neighbours::others(session, control)?;
        neighbours::note_neighbours(session, &others);
        // The last session was interrupted in a try that was noted, and we survived.
        let tried = session.tried();
        if !tried.is_empty() {
            lone_tries::note(session, control, &tried, LoneStep::Survived)?;
            session.remember_tried(Vec::new());
        }
        keep_alive(control)?;
        let threads = Connections::open(&self.target, session)?;
        keep_alive(control)?;
        Ok(threads)
    }

    /// Waits until all instances have noticed that a group is lost, or somebody has made it again.
    fn wait_until_noticed(
        &self,
        session: &Session,
        control: &mut Connection,
        stream: Stream,
    ) -> Result<(), Over> {
        warn!(target: LOG,
            "the consumer group {} of {} is lost: all instances are to know before it is made again",
            stream.group(), stream.key(&self.keys)
        );
        lost_group::notice(session, control)?;
        let until = Instant::now() + NOTICED_WITHIN;
        let mut pause = REGROUP_PAUSE;
        loop {
            self.wait(pause)?;
            pause = LOOK_EVERY;
            // Nobody else does so before the session begins.
            lease::renew(session, control)?;
            self.notifier.alive();
            let Some(unaware) = lost_group::unaware(session, control)? else { return Ok(()) };
            if setup::first_lost(control, &self.keys)?.is_none() {
                return Ok(());
            }
            if Instant::now() >= until {
                let name = neighbours::shown(&unaware);
                warn!(target: LOG, "instance {name:?} has not noticed, and is not waited for any longer");
                return Ok(());
            }
        }
    }

    /// Whether what was pending was read, and what there is to decide is being decided.
    fn is_productive(&self, session: &Session) -> bool {
        session.has_worked()
            || (self.reading == Thread::READERS.len() && session.workload.count() == 0)
    }

    /// Watches a session until it is over.
    fn oversee(
        &mut self,
        session: &Session,
        events: &Receiver<Report>,
        orders: &Sender<Order>,
        control: &mut Connection,
    ) -> Result<(), Over> {
        let begin = Instant::now();
        let tick = self.notifier.interval().map_or(PROVEN, |interval| interval.min(PROVEN));
        let mut pinged = begin;
        loop {
            select! {
                recv(self.signals) -> _ => {
                    info!(target: LOG, "{} stops: what is in work is finished", self.options.settings.name);
                    self.notifier.stopping();
                    return self.stop(session, events, orders, control);
                }
                recv(events) -> event => match event {
                    Ok(Report::Reading) => {
                        self.reading += 1;
                        if self.reading == Thread::READERS.len() && !self.ready {
                            self.ready = true;
                            info!(target: LOG, "{} is ready: lending and shelving", self.options.settings.name);
                            self.notifier.status("lending and shelving");
                            self.notifier.ready();
                        }
                    }
                    // It ends with the worker, which has yet to tell why it ended.
                    Ok(Report::Ended(Thread::LendingListener, Ok(()))) => {}
                    Ok(Report::Ended(thread, Ok(()))) => {
                        return Err(Error::Ended(thread.name()).into());
                    }
                    Ok(Report::Ended(thread, Err(error))) => {
                        debug!(target: LOG, "{thread}: {error}");
                        return Err(error.into());
                    }
                    Err(_) => return Err(Error::Ended("every thread").into()),
                },
                default(tick) => {
                    let is_good = begin.elapsed() >= PROVEN && self.is_productive(session);
                    if is_good {
                        self.fruitless = None;
                    }
                    if is_good && let Some(outage) = self.outage.take() {
                        let length = (begin - outage.since).as_secs_f64();
                        info!(target: LOG, "working again after {length:.1} s");
                        self.notifier.status("lending and shelving");
                    }
                    if session.slowest().1 < STALL {
                        self.notifier.alive();
                    }
                    if pinged.elapsed() > PING_EVERY {
                        link::ping(control)?;
                        pinged = Instant::now();
                    }
                }
            }
        }
    }

    /// Ends a session gracefully: readers first, then what they have read, the lease last.
    fn stop(
        &mut self,
        session: &Session,
        events: &Receiver<Report>,
        orders: &Sender<Order>,
        control: &mut Connection,
    ) -> Result<(), Over> {
        session.stop();
        let until = Instant::now() + PATIENCE;
        let _ = orders.send(Order::LetGo);
        let mut readers = Thread::READERS.len();
        let mut running = readers + Thread::WORKERS.len();
        let leave_to_others = |error: Error| {
            warn!(target: LOG, "{error}; what was in work is left to others");
            Ok(())
        };
        while running > 0 && Instant::now() < until {
            // Again and again: a reader may be just about to block.
            if readers > 0
                && let Err(error) = blocked_reads::wake(&self.blocked, control)
            {
                return leave_to_others(error);
            }
            match events.recv_timeout(Duration::from_millis(10)) {
                // It ends with the worker, soon, and has nothing in work.
                Ok(Report::Ended(Thread::LendingListener, _)) => {}
                Ok(Report::Ended(thread, result)) => {
                    running -= 1;
                    if thread.is_reader() {
                        readers -= 1;
                    }
                    if let Err(error) = result {
                        return leave_to_others(error);
                    }
                }
                Ok(Report::Reading) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        match lease::resign(session, control) {
            Ok(0) => {}
            Ok(left) => {
                let left = counted(usize::try_from(left).unwrap_or(0), "event");
                info!(target: LOG, "what waits for others is left to them: {left}");
            }
            Err(error) => warn!(target: LOG, "{error}; it will run out"),
        }
        Ok(())
    }
}
