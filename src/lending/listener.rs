//! LendingService's listener: hears when another instance rings, which it does when it has decided
//! something or put books on their shelves, and lets the worker know.
//!
//! It listens only while the worker waits for what others may decide, and a little longer: whoever
//! listens at full speed is woken for each call of everybody else's. It is a help, no more: what
//! waits is tried again from time to time in any case, and where the Redis user may not listen or
//! ring, that has to do. It ends with the worker, or when the session breaks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use log::{Level, log};
use redis::{PubSub, RedisResult, Value};

use super::LOG;
use super::news::News;
use crate::connect::REPLY_TIMEOUT;
use crate::error::Error;
use crate::link::{self, Connection};
use crate::script::text;
use crate::session::{Session, Thread};

/// How long it goes on listening when the worker waits no more: what waited once may do so again.
const LINGER: Duration = Duration::from_millis(300);

/// How often it looks up while it hears nothing: so long does its end take at most.
const LOOK_UP_EVERY: Duration = Duration::from_millis(100);

/// How often it looks up while nobody wants it to listen, to show that it is alive, and its link too.
const IDLE: Duration = Duration::from_secs(1);

/// How often it asks to be told again while it hears nothing: on a half-open link no answer comes.
const ASK_AGAIN: Duration = Duration::from_secs(10);

const DOING: &str = "listen to other instances";

/// Listens when `wanted`, until nobody can want it any more. Lets `heard` know of each ring, and
/// when it has begun to listen: what was decided before was not heard.
///
/// # Errors
/// What Redis or the link said; the session is then over.
pub fn run(
    session: &Session,
    mut connection: Connection,
    wanted: &Receiver<()>,
    heard: &Sender<News>,
) -> Result<(), Error> {
    let is_permitted = is_permitted(session, &mut connection)?;
    let mut bell = connection.as_pubsub();
    let mut next_ping = Instant::now() + IDLE;
    while !session.is_broken() {
        session.beat(Thread::LendingListener);
        match wanted.recv_deadline(next_ping) {
            Ok(()) if is_permitted => listen(session, &mut bell, wanted, heard)?,
            // There is only the link to keep, and no wish puts the next PING off.
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => {
                link::pinged(bell.ping())?;
                next_ping = Instant::now() + IDLE;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // What redis-rs says at the end is not waited for any longer than this.
    let _ = bell.set_read_timeout(Some(LOOK_UP_EVERY));
    Ok(())
}

/// Whether it was said, in whatever session of this process, that it may not.
static IS_TOLD: AtomicBool = AtomicBool::new(false);

/// Whether this Redis user may ring and listen; if not, that is said once.
fn is_permitted(session: &Session, connection: &mut Connection) -> Result<bool, Error> {
    let bell = session.keys.bell.as_str();
    for args in
        [&["PUBLISH", bell, session.consumer()][..], &["SUBSCRIBE", bell], &["UNSUBSCRIBE", bell]]
    {
        match ask(connection, args) {
            Err(error) if error.code() == Some("NOPERM") => {
                let is_told = IS_TOLD.swap(true, Ordering::Relaxed);
                let level = if is_told { Level::Debug } else { Level::Warn };
                log!(target: LOG, level,
                    "{} on the channel {bell} is not permitted: what waits for other instances is \
                     tried again and again, which is slower",
                    args[0]
                );
                return Ok(false);
            }
            other => other.map_err(Error::redis(DOING))?,
        }
    }
    Ok(true)
}

/// A command and its reply. Others may ring in between.
fn ask(connection: &mut Connection, args: &[&str]) -> RedisResult<()> {
    let command = redis::Cmd::new().arg(args).get_packed_command();
    connection.send_packed_command(&command)?;
    loop {
        let reply = connection.recv_response()?.extract_error()?;
        let is_ring = match &reply {
            Value::Array(parts) => parts.first().and_then(text) == Some("message"),
            _ => false,
        };
        if !is_ring {
            return Ok(());
        }
    }
}

fn listen(
    session: &Session,
    bell: &mut PubSub<'_>,
    wanted: &Receiver<()>,
    heard: &Sender<News>,
) -> Result<(), Error> {
    subscribe(session, bell)?;
    // What was decided before was not heard.
    let _ = heard.try_send(News::default());
    let (mut wanted_at, mut heard_at) = (Instant::now(), Instant::now());
    while !session.is_broken() {
        session.beat(Thread::LendingListener);
        match wanted.try_recv() {
            Ok(()) => wanted_at = Instant::now(),
            Err(TryRecvError::Empty) if wanted_at.elapsed() < LINGER => {}
            Err(_) => break,
        }
        match bell.get_message() {
            Ok(ring) => {
                heard_at = Instant::now();
                if let Some(news) = News::read(ring.get_payload_bytes(), session.consumer()) {
                    // A worker that is so far behind finds it by itself.
                    let _ = heard.try_send(news);
                }
            }
            Err(error) => {
                let is_silence = error.is_timeout();
                let error = Error::redis(DOING)(error);
                if !is_silence && !error.is_interrupted() {
                    return Err(error);
                }
            }
        }
        if heard_at.elapsed() > ASK_AGAIN {
            subscribe(session, bell)?;
            heard_at = Instant::now();
        }
    }
    bell.set_read_timeout(Some(REPLY_TIMEOUT)).map_err(Error::redis(DOING))?;
    bell.unsubscribe(&session.keys.bell).map_err(Error::redis(DOING))
}

fn subscribe(session: &Session, bell: &mut PubSub<'_>) -> Result<(), Error> {
    let mut subscribe = || {
        bell.set_read_timeout(Some(REPLY_TIMEOUT))?;
        bell.subscribe(&session.keys.bell)?;
        bell.set_read_timeout(Some(LOOK_UP_EVERY))
    };
    subscribe().map_err(Error::redis(DOING))
}
