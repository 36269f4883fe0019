//! The threads of a session, with a connection each and the channels between them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::blocked_reads;
use super::keeper::{Keeper, Order, Workers};
use crate::connect::Target;
use crate::error::Error;
use crate::lending;
use crate::lending::intake::Intake;
use crate::lending::worker::Worker;
use crate::lending::worker_thread::{self, Channels};
use crate::link::Connection;
use crate::session::{Session, Thread};
use crate::shelving;
use crate::stream;

/// Batches on their way from a reader to a worker: one to work on, one behind it, one more so that
/// the reader can go on.
const BATCHES: usize = 3;

/// News of other instances on their way to the worker: of as many calls as come while it is at one of its own.
const NEWS: usize = 64;

/// What the threads tell the supervisor.
pub enum Report {
    /// A reader has passed on what was pending and reads what is new.
    Reading,
    /// A thread has ended.
    Ended(Thread, Result<(), Error>),
}

/// The connections of a session's threads, opened before any of them starts.
pub struct Connections {
    /// The ids by which Redis knows those on which readers block. Without one its reader cannot be woken,
    /// only waited for.
    pub of_readers: Vec<u64>,
    lending_reader: Connection,
    lending_worker: Connection,
    lending_listener: Connection,
    shelving_reader: Connection,
    shelving_worker: Connection,
    keeper: Connection,
}

impl Connections {
    /// Opens all of them.
    ///
    /// # Errors
    /// What Redis or the link said.
    pub fn open(target: &Target, session: &Session) -> Result<Self, Error> {
        let block = Duration::from_millis(stream::BLOCK_MS);
        let mut of_readers = Vec::new();
        let mut reader = || {
            let mut connection = target.connect(block)?;
            of_readers.extend(redis::cmd("CLIENT").arg("ID").query::<u64>(&mut connection).ok());
            blocked_reads::mark(session, &mut connection);
            Ok::<_, Error>(connection)
        };
        Ok(Self {
            lending_reader: reader()?,
            shelving_reader: reader()?,
            of_readers,
            lending_worker: target.connect(Duration::ZERO)?,
            lending_listener: target.connect(Duration::ZERO)?,
            shelving_worker: target.connect(Duration::ZERO)?,
            keeper: target.connect(Duration::ZERO)?,
        })
    }

    /// Starts the threads. Each ends as its module says, and tells how; the scope joins them.
    ///
    /// # Errors
    /// The system gives no more threads. Those that were started end with the session.
    pub fn spawn<'scope>(
        self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        session: &'scope Session,
        events: &Sender<Report>,
        orders: Receiver<Order>,
    ) -> Result<(), Error> {
        let (to_lending, lending_events) = bounded(BATCHES);
        let (to_shelving, shelving_work) = bounded(BATCHES);
        let (to_room, shelved) = bounded(1);
        let (to_listener, wanted) = bounded(1);
        let (ring, rung) = bounded(NEWS);
        // What came before may have taken longer than a thread may be stuck, and the keeper is at work while
        // others are yet to be started.
        Thread::ALL.into_iter().for_each(|thread| session.beat(thread));
        type Body<'scope> = Box<dyn FnOnce() -> Result<(), Error> + Send + 'scope>;
        let start = |thread: Thread, body: Body<'scope>| {
            let events = events.clone();
            std::thread::Builder::new()
                .name(thread.name().into())
                .spawn_scoped(scope, move || {
                    let result = body();
                    let _ = events.send(Report::Ended(thread, result));
                })
                .map(drop)
                .map_err(|source| Error::System { doing: "start a thread", source })
        };
        let worker = Arc::new(Mutex::new(Worker::new(session, self.lending_worker)));
        let keeper = Keeper { session, connection: self.keeper, orders };
        let workers = Workers { to_lending: to_lending.clone(), to_shelving: to_shelving.clone() };
        let reading = |events: &Sender<Report>| {
            let events = events.clone();
            move || drop(events.send(Report::Reading))
        };
        let (lending_reading, shelving_reading) = (reading(events), reading(events));
        start(Thread::Keeper, Box::new(move || keeper.run(workers)))?;
        start(Thread::LendingWorker, {
            let worker = Arc::clone(&worker);
            let channels = Channels { events: lending_events, shelved, rung, to_listener };
            Box::new(move || worker_thread::run(session, &worker, channels))
        })?;
        start(
            Thread::LendingListener,
            Box::new(move || {
                lending::listener::run(session, self.lending_listener, &wanted, &ring)
            }),
        )?;
        start(
            Thread::ShelvingWorker,
            Box::new(move || {
                shelving::worker::run(session, self.shelving_worker, &shelving_work, &to_room)
            }),
        )?;
        let intake = Intake::new(&session.workload, worker, to_lending);
        start(
            Thread::LendingReader,
            Box::new(move || {
                lending::reader::run(session, self.lending_reader, intake, lending_reading)
            }),
        )?;
        start(
            Thread::ShelvingReader,
            Box::new(move || {
                shelving::reader::run(session, self.shelving_reader, &to_shelving, shelving_reading)
            }),
        )
    }
}
