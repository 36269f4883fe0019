//! Waiting for the outcome of one event.
//!
//! The daemon leaves it in a list of one element that belongs to this event alone, in the script
//! that commits the effect. BLMOVE from the list to itself takes the element and puts it back: one
//! waiter costs the server nothing while others wait, and whoever asks later finds it too. So a
//! lost connection loses nothing either: the answer is still there after a reconnect.

use std::thread;
use std::time::{Duration, Instant};

use crate::connect::Target;
use crate::error::{Error, Remedy};
use crate::event::{Action, EventKey};
use crate::keys::{Keys, LENDING_GROUP};
use crate::link::{AskAgain, Connection, ask};
use crate::outcome::Outcome;
use crate::stream;

/// An answer that takes longer than this is worth asking whether anybody is there to give it.
const FIRST_SLICE: Duration = Duration::from_millis(150);
/// How long one command blocks at most: so soon a half-open link is noticed.
const SLICE: Duration = Duration::from_secs(2);
/// How much later than asked for Redis may answer before the link is given up.
const GRACE: Duration = Duration::from_secs(1);
/// Between two attempts to reach Redis again.
pub const PAUSE: Duration = Duration::from_millis(100);

/// What somebody who waits should know at once.
#[derive(Debug)]
pub enum Note<'a> {
    /// No instance holds its lock.
    NobodyRuns,
    /// The link is lost; it is being made anew.
    Lost(&'a Error),
}

/// The event that is waited for.
#[derive(Debug)]
pub struct Waiter<'a> {
    /// Where to reconnect to.
    pub target: &'a Target,
    /// The keys of the branch.
    pub keys: &'a Keys,
    /// What was sent.
    pub event: EventKey,
    /// When to give up.
    pub deadline: Instant,
}

impl Waiter<'_> {
    /// Waits for the outcome; `None` when time is up.
    ///
    /// # Errors
    /// Redis refuses, or could not be reached when time was up.
    pub fn wait(
        &self,
        connection: Connection,
        note: &mut dyn FnMut(Note<'_>),
    ) -> Result<Option<Outcome>, Error> {
        let key = self.keys.answer(self.event);
        let mut link: Result<Connection, Error> = Ok(connection);
        let mut slice = FIRST_SLICE;
        let (mut lost, mut is_told) = (false, false);
        // Less and less often: there may be very many instances to look at.
        let (mut next_look, mut pause) = (Instant::now(), SLICE);
        loop {
            // The last look begins when the time is over: this process may have been stopped meanwhile.
            let left = self.deadline.saturating_duration_since(Instant::now());
            let tried = link.and_then(|mut connection| {
                if let Some(outcome) = take(&mut connection, self.target, &key, slice.min(left))? {
                    return Ok((connection, Some(outcome)));
                }
                slice = SLICE;
                // Whoever ran when it was queued may have died since. If that cannot be found out, the next
                // look at the answer tells why.
                if !is_told && (left.is_zero() || Instant::now() >= next_look) {
                    next_look = Instant::now() + pause;
                    pause *= 2;
                    if let Ok(false) = anybody_runs(&mut connection, self.keys) {
                        note(Note::NobodyRuns);
                        is_told = true;
                    }
                }
                Ok((connection, None))
            });
            link = match tried {
                Ok((_, Some(outcome))) => return Ok(Some(outcome)),
                Ok((_, None)) if left.is_zero() => return Ok(None),
                Ok((connection, None)) => Ok(connection),
                // By a pause, or a signal: whoever gave that is told what comes of it.
                Err(error) if error.is_interrupted() => self.target.connect(SLICE),
                Err(error) => {
                    if error.remedy() != Remedy::Retry || Instant::now() >= self.deadline {
                        return Err(error);
                    }
                    if !lost {
                        lost = true;
                        note(Note::Lost(&error));
                    }
                    // Nothing tells when a server is back: asking again is all there is.
                    thread::sleep(PAUSE);
                    self.target.connect(SLICE)
                }
            };
        }
    }
}

/// The outcome under `key`, waited for as long as `slice`; `None` if there is none by then. Other replies are
/// waited for as the `target` of the connection says.
///
/// # Errors
/// What Redis or the link said, or the outcome is none that is known here.
pub fn take(
    connection: &mut Connection,
    target: &Target,
    key: &str,
    slice: Duration,
) -> Result<Option<Outcome>, Error> {
    const DOING: &str = "read the answer";
    // To Redis, 0 is for ever; and 6.2 takes 0.001 seconds for 0 milliseconds, since it rounds down.
    let slice = slice.max(Duration::from_millis(2));
    connection.set_read_timeout(Some(slice + GRACE)).map_err(Error::redis(DOING))?;
    let mut wait = redis::cmd("BLMOVE");
    wait.arg(key).arg(key).arg("LEFT").arg("RIGHT").arg(slice.as_secs_f64());
    let answer: Option<Vec<u8>> = match wait.query(connection) {
        // For all Redis knows, BLMOVE needs more memory, and it has none left. What is queued is decided all
        // the same.
        Err(error) if error.code() == Some("OOM") => {
            let answer = redis::cmd("LINDEX").arg(key).arg(0).query(connection);
            if let Ok(None) = answer {
                thread::sleep(PAUSE.min(slice));
            }
            answer
        }
        answer => answer,
    }
    .map_err(Error::redis(DOING))?;
    connection.set_read_timeout(Some(target.reply_timeout())).map_err(Error::redis(DOING))?;
    answer.map(|text| parse(&text)).transpose()
}

/// Reads what the daemon left.
///
/// # Errors
/// It is no outcome that is known here.
pub fn parse(answer: &[u8]) -> Result<Outcome, Error> {
    Outcome::from_answer(&String::from_utf8_lossy(answer))
        .map_err(|got| Error::Reply { doing: "read the answer", got })
}

/// Whether an instance of LendingService holds its lock. All of them read both streams.
///
/// # Errors
/// What Redis or the link said.
pub fn anybody_runs(connection: &mut Connection, keys: &Keys) -> Result<bool, Error> {
    const DOING: &str = "look for running instances";
    for action in Action::ALL {
        let stream = keys.stream(action);
        let consumers = match stream::consumers(&mut AskAgain(connection), stream, LENDING_GROUP) {
            Ok(consumers) => consumers,
            Err(error) => match error.code() {
                // No group, or no stream: nobody ever served it, or it is lost and being made again.
                Some("NOGROUP" | "ERR") => continue,
                // This is a courtesy only; the answer may come all the same.
                Some("NOPERM") => return Ok(true),
                _ => return Err(error),
            },
        };
        let locks: Vec<_> = consumers.iter().map(|consumer| keys.lock_of(&consumer.name)).collect();
        if !locks.is_empty() && ask::<u64>(connection, DOING, redis::cmd("EXISTS").arg(locks))? > 0
        {
            return Ok(true);
        }
    }
    Ok(false)
}
