//! The third pass of a batch: the outcomes of its events are waited for and written, in the order of its
//! lines.

use std::io;
use std::time::Instant;

use super::courier::{Courier, SLICE};
use crate::error::Error;
use crate::event::{Action, EventKey};
use crate::link::AskAgain;
use crate::outcome::Outcome;
use crate::request::answer;
use crate::request::failure::{DONE, Failure};
use crate::request::results::{Fate, Results};
use crate::request::show::status;
use crate::request::spool::{Entry, Reader, Spool};

/// Chunks whose answers are counted together: a round trip for each takes long where Redis is far.
const COUNTED_AT_ONCE: usize = 32;

/// What came of the events.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub done: u64,
    pub refused: u64,
    pub unanswered: u64,
    /// The exit status that the outcomes stand for.
    pub worst: u8,
}

impl Tally {
    /// Counts an event, and tells what came of it.
    fn count<'a>(&mut self, event: EventKey, outcome: Option<&'a Outcome>) -> Fate<'a> {
        let Some(outcome) = outcome else {
            self.unanswered += 1;
            return Fate::Unanswered(event);
        };
        let status = status(outcome);
        self.worst = self.worst.max(status);
        *if status == DONE { &mut self.done } else { &mut self.refused } += 1;
        Fate::Decided(event, outcome)
    }
}

/// What came of a look for the outcomes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// All are there.
    Whole,
    /// Not all, but it is worth while to come again at once.
    Moving,
    /// Some are missing, and none has come for a slice of the time.
    Stalled,
    /// Some are missing, and time is up.
    TimeIsUp,
}

/// Waits for outcomes, on the courier's link.
struct Collector<'a, 'b> {
    courier: &'a mut Courier<'b>,
    /// Whether outcomes that are missing are waited for: until none has come for the timeout.
    patient: bool,
}

/// Writes a result for every line, in their order.
pub(super) fn outcomes(
    courier: &mut Courier<'_>,
    spool: &Spool,
    results: &mut Results,
) -> Result<Tally, Failure> {
    courier.moved = Instant::now();
    let patient = !courier.order.timeout.is_zero();
    Collector { courier, patient }.collect(spool, results)
}

impl Collector<'_, '_> {
    fn collect(mut self, spool: &Spool, results: &mut Results) -> Result<Tally, Failure> {
        let mut tally = Tally::default();
        let mut entries = spool.read().map_err(|error| self.courier.output(&error))?;
        // A chunk ahead: its events are asked about before the first of their lines is written. The bad
        // lines between them are not kept: there may be millions.
        let mut ahead = spool.read().map_err(|error| self.courier.output(&error))?;
        let (mut chunks, mut answers) = (0, Vec::new().into_iter());
        while let Some(entry) = entries.next().map_err(|error| self.courier.output(&error))? {
            let written = match entry {
                Entry::Bad { line, fault } => results.add(line, &Fate::Bad(fault)),
                Entry::Event { line, .. } => {
                    if answers.len() == 0 {
                        answers = self.answers(chunks, &mut ahead)?.into_iter();
                        chunks += 1;
                    }
                    let (event, outcome) = answers.next().expect("each event is in a chunk");
                    results.add(line, &tally.count(event, outcome.as_ref()))
                }
            };
            match written {
                Ok(()) => {}
                // Whoever read them wants no more.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                Err(error) => return Err(self.courier.output(&error)),
            }
        }
        Ok(tally)
    }

    /// The events of a chunk, whose lines are the next ones in `ahead`, and their outcomes.
    fn answers(
        &mut self,
        chunk: usize,
        ahead: &mut Reader,
    ) -> Result<Vec<(EventKey, Option<Outcome>)>, Failure> {
        let range = self.courier.placed[chunk];
        let actions =
            next_actions(ahead, range.count).map_err(|error| self.courier.output(&error))?;
        let event = |(id, action)| EventKey { id, action };
        let events: Vec<EventKey> = range.ids().zip(actions).map(event).collect();
        let later = Later { first_chunk: chunk + 1, entries: ahead };
        let outcomes = self.outcomes(&events, &later)?;
        Ok(events.into_iter().zip(outcomes).collect())
    }

    /// The outcomes of a chunk's events, waited for until nothing has come for the timeout: none of
    /// them, and none of a later chunk. Then no chunk is waited for any more; one line in each that is
    /// not answered would else take a timeout each.
    fn outcomes(
        &mut self,
        events: &[EventKey],
        later: &Later<'_>,
    ) -> Result<Vec<Option<Outcome>>, Failure> {
        let keys: Vec<String> =
            events.iter().map(|event| self.courier.run.keys.answer(*event)).collect();
        let mut outcomes: Vec<Option<Outcome>> = Vec::new();
        outcomes.resize_with(events.len(), || None);
        // How many answers of later chunks were there when they were counted.
        let mut counted = None;
        loop {
            match self.outcomes_now(&keys, &mut outcomes) {
                Ok(Look::Whole) => return Ok(outcomes),
                Ok(Look::Moving) => {}
                // Counting takes a while: a batch whose answers come needs none.
                Ok(Look::Stalled) if counted.is_some() => {}
                Ok(look) => {
                    let count = self.count(later)?;
                    if count > counted {
                        // The first time as well, since they may have come till now.
                        counted = count;
                        self.courier.moved = Instant::now();
                    } else if look == Look::TimeIsUp {
                        self.patient = false;
                        return Ok(outcomes);
                    }
                }
                // After a pause, however long, they are looked for once more; redis-rs passes over
                // the late reply.
                Err(error) if error.is_interrupted() => {}
                Err(error) => self.courier.recover(error)?,
            }
        }
    }

    /// Takes what is there, and if something is missing, waits a while for the first of it.
    fn outcomes_now(
        &mut self,
        keys: &[String],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<Look, Error> {
        let missing: Vec<usize> = (0..keys.len()).filter(|&n| outcomes[n].is_none()).collect();
        if missing.is_empty() {
            return Ok(Look::Whole);
        }
        let mut pipe = redis::pipe();
        for &n in &missing {
            pipe.cmd("LINDEX").arg(&keys[n]).arg(0);
        }
        let link = self.courier.link.as_mut().expect("it is made before the first chunk");
        let answers: Vec<Option<Vec<u8>>> =
            pipe.query(link).map_err(Error::redis("read the answers"))?;
        let mut first_missing = None;
        for (&n, answer) in missing.iter().zip(answers) {
            match answer {
                Some(text) => {
                    outcomes[n] = Some(answer::parse(&text)?);
                    self.courier.moved = Instant::now();
                    self.courier.progress.answered(1);
                }
                None => first_missing = first_missing.or(Some(n)),
            }
        }
        let Some(n) = first_missing else {
            return Ok(Look::Whole);
        };
        let left = self.courier.order.timeout.saturating_sub(self.courier.moved.elapsed());
        if !self.patient || left.is_zero() {
            return Ok(Look::TimeIsUp);
        }
        // At least twice within the timeout: what has come between the first time and the end is seen.
        let slice = SLICE.min(self.courier.order.timeout / 2).min(left);
        let Some(outcome) = answer::take(link, &self.courier.run.target, &keys[n], slice)? else {
            self.courier.progress.show();
            return Ok(Look::Stalled);
        };
        outcomes[n] = Some(outcome);
        self.courier.moved = Instant::now();
        self.courier.progress.answered(1);
        Ok(Look::Moving)
    }

    /// How many answers of later chunks are there; `None` if there is no later chunk, or nothing is
    /// waited for any more.
    fn count(&mut self, later: &Later<'_>) -> Result<Option<u64>, Failure> {
        if !self.patient || later.first_chunk >= self.courier.placed.len() {
            return Ok(None);
        }
        let mut entries = later.entries.ahead().map_err(|error| self.courier.output(&error))?;
        let mut count = 0;
        for from in (later.first_chunk..self.courier.placed.len()).step_by(COUNTED_AT_ONCE) {
            let to = self.courier.placed.len().min(from + COUNTED_AT_ONCE);
            let mut pipe = redis::pipe();
            for range in &self.courier.placed[from..to] {
                let actions = next_actions(&mut entries, range.count);
                let actions = actions.map_err(|error| self.courier.output(&error))?;
                pipe.cmd("EXISTS");
                for (id, action) in range.ids().zip(actions) {
                    pipe.arg(self.courier.run.keys.answer(EventKey { id, action }));
                }
            }
            count += self.sum(&pipe)?;
        }
        Ok(Some(count))
    }

    /// The sum of what these questions are answered with.
    fn sum(&mut self, questions: &redis::Pipeline) -> Result<u64, Failure> {
        loop {
            let link = self.courier.link.as_mut().expect("it is made before the first chunk");
            let counts: Result<Vec<u64>, _> = questions.query(&mut AskAgain(link));
            match counts.map_err(Error::redis("count the answers")) {
                Ok(counts) => return Ok(counts.into_iter().sum()),
                // It only tells whether to wait on.
                Err(error) if error.lacks_permission() => return Ok(0),
                Err(error) => self.courier.recover(error)?,
            }
        }
    }
}

/// The chunks behind one.
struct Later<'a> {
    /// The first of them, counted from 0.
    first_chunk: usize,
    /// Its lines are the next ones here.
    entries: &'a Reader,
}

/// What the next events ask for, so many of them.
fn next_actions(entries: &mut Reader, events: usize) -> io::Result<Vec<Action>> {
    let mut actions = Vec::with_capacity(events);
    while actions.len() < events
        && let Some(entry) = entries.next()?
    {
        if let Entry::Event { action, .. } = entry {
            actions.push(action);
        }
    }
    Ok(actions)
}
