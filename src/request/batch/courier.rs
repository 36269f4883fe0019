//! The second pass of a batch: chunks of events are carried to Redis, several of them at a time, each
//! added once whatever becomes of the link.

use std::collections::VecDeque;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use redis::{RedisResult, Value};

use crate::error::{Error, Remedy};
use crate::event::{AnswerWish, EventKey};
use crate::ids::{EventId, SEQ_STEP, SubmissionId};
use crate::keys::Keys;
use crate::link::Connection;
use crate::request::answer::{self, PAUSE};
use crate::request::failure::{Failure, OUTPUT};
use crate::request::options::{Batch, Run};
use crate::request::progress::Progress;
use crate::request::spool::{self, Entry, Spool};
use crate::request::submit::{self, Chunk, Fingerprint, MAX_SEQ, Name, Packed, Refused, nth_id};

/// Chunks that are sent before the reply to the first of them is read: enough that neither side
/// waits for the other, few enough that the replies fit into the link's buffers.
const MAX_UNDER_WAY: usize = 4;
/// Chunks that go by the script after one was shut out: at least, and where that happens all the time.
const SHORTEST_DETOUR: usize = 4;
const LONGEST_DETOUR: usize = 64;
/// How long one command blocks at most: so often the progress is shown.
pub(super) const SLICE: Duration = Duration::from_millis(500);

/// The ids that the events of a chunk got, one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdRange {
    pub first: EventId,
    pub count: usize,
}

impl IdRange {
    pub fn ids(self) -> impl Iterator<Item = EventId> {
        (0..self.count).map(move |nth| nth_id(self.first, nth))
    }
}

/// A chunk that was sent.
struct UnderWay {
    chunk: Chunk,
    /// The id that we chose for its first event; `None` if the script chooses.
    chosen: Option<EventId>,
    /// The id that we had chosen for it before it was sent again, by the script.
    chosen_before: Option<EventId>,
    /// It was sent on a link that is lost. If Redis says that it knows it, we take it that it came from there,
    /// and not from an earlier run.
    resent: bool,
    /// Whether Redis has it, as far as we know.
    standing: Standing,
}

/// What is known of a chunk that is not placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It was not sent, or Redis has refused it.
    NotThere,
    /// It was sent, and its reply is due.
    ReplyDue,
    /// It was sent more than once, and not refused in between as far as we know: whatever is said later,
    /// Redis may have it since the first time.
    Unknown,
}

impl UnderWay {
    fn new(chunk: Chunk, chosen: Option<EventId>) -> Self {
        Self { chunk, chosen, chosen_before: None, resent: false, standing: Standing::NotThere }
    }

    fn note_sent(&mut self) {
        self.standing = if self.standing == Standing::NotThere {
            Standing::ReplyDue
        } else {
            Standing::Unknown
        };
    }

    /// The reply is that nothing was added.
    fn note_refused(&mut self) {
        if self.standing == Standing::ReplyDue {
            self.standing = Standing::NotThere;
        }
    }

    /// Whether it is known that an earlier run, and not this process, has put it there.
    fn is_of_earlier_run(&self, placed: submit::Placed) -> bool {
        placed.known && !self.resent && self.chosen_before != Some(placed.first.id)
    }
}

/// Carries chunks to Redis.
///
/// The first goes by the script, which tells where ids are by now. The others go as plain XADDs
/// behind a gate, under ids that follow: that costs Redis a third less. If somebody else adds an
/// event meanwhile, the gate shuts them out, and what is under way goes by the script again.
pub(super) struct Courier<'a> {
    pub run: &'a Run,
    pub order: &'a Batch,
    id: SubmissionId,
    /// That of the whole batch: a chunk of another one is no chunk of this one.
    fingerprint: Fingerprint,
    pub link: Option<Connection>,
    /// Whether this Redis lets us add chunks without the script.
    may_gate: bool,
    /// How many chunks still go by the script, since one was shut out.
    detour: usize,
    /// How many it will be the next time.
    next_detour: usize,
    /// Whether the last chunk was added just now, and not by an earlier run: then the next one is not there yet
    /// either.
    fresh: bool,
    /// Sent, not confirmed; their numbers follow those that are placed.
    under_way: VecDeque<UnderWay>,
    pub placed: Vec<IdRange>,
    /// The last id that was given or chosen.
    newest: EventId,
    /// Events of which it is known that an earlier run had sent them.
    pub known: u64,
    /// When Redis last told something new.
    pub moved: Instant,
    pub progress: Progress,
}

impl<'a> Courier<'a> {
    /// A courier that has carried nothing.
    pub fn new(
        run: &'a Run,
        order: &'a Batch,
        id: SubmissionId,
        fingerprint: Fingerprint,
        progress: Progress,
    ) -> Self {
        Self {
            run,
            order,
            id,
            fingerprint,
            link: None,
            may_gate: false,
            detour: 0,
            next_detour: SHORTEST_DETOUR,
            fresh: false,
            under_way: VecDeque::new(),
            placed: Vec::new(),
            newest: EventId::default(),
            known: 0,
            moved: Instant::now(),
            progress,
        }
    }

    /// Whether no instance holds its lock, as far as can be told.
    pub fn nobody_runs(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        matches!(answer::anybody_runs(link, &self.run.keys), Ok(false))
    }

    /// How many events Redis has.
    pub fn queued(&self) -> u64 {
        self.placed.iter().map(|range| range.count as u64).sum()
    }

    /// The same in words, as far as it is known.
    fn told(&self) -> String {
        let is_known = self.under_way.iter().all(|sent| sent.standing == Standing::NotThere);
        let queued = match (self.queued(), is_known) {
            (0, true) if self.under_way.is_empty() => return "nothing was sent".to_owned(),
            // An earlier run of the same batch may have queued it.
            (0, true) => return "this run has queued nothing".to_owned(),
            (0, false) => return "it is not known whether any event is queued".to_owned(),
            (1, _) => "1 event is queued".to_owned(),
            (queued, _) => format!("{queued} events are queued"),
        };
        if is_known { queued } else { format!("at least {queued}") }
    }

    /// Redis failed for good. Running again is always safe.
    fn failure(&self, error: &Error) -> Failure {
        let sent = format!("{}; run the same again to go on: none is queued twice", self.told());
        Failure::redis(error, &self.run.target, &sent)
    }

    /// Redis does not know a chunk any more that it has had: an answer to it may be lost with it, or only
    /// its name.
    fn forgotten(&self) -> Failure {
        let error = Error::Unfit("Redis does not know any more what was sent before".to_owned());
        let sent = format!(
            "{} events were queued then: if Redis has lost data, run the same again, and none is queued \
             twice; but if --remember was too short, or Redis' clock was set, those would be",
            self.queued()
        );
        Failure::redis(&error, &self.run.target, &sent)
    }

    /// Results cannot be written, or the spool not read.
    pub fn output(&self, error: &io::Error) -> Failure {
        let what = match &self.order.results {
            _ if spool::is_unreadable(error) => "cannot read the temporary file".to_owned(),
            Some(file) => format!("cannot write the results to {}", file.display()),
            None => "cannot write the results".to_owned(),
        };
        Failure {
            message: format!(
                "{what}: {error}; {}; run the same again for the results: none is queued twice",
                self.told()
            ),
            status: OUTPUT,
        }
    }

    /// Sends all good lines, and waits until Redis has them.
    pub fn send_all(&mut self, spool: &Spool) -> Result<(), Failure> {
        if spool.events == 0 {
            return Ok(());
        }
        // Here the first error is final: nothing was sent, and a person wants to know why now.
        self.connect().map_err(|e| Failure::redis(&e, &self.run.target, &"nothing was sent"))?;
        let wish =
            if self.order.wait { AnswerWish::kept(self.order.remember) } else { AnswerWish::None };
        let mut chunk = Chunk::new(wish);
        let mut entries = spool.read().map_err(|error| self.output(&error))?;
        while let Some(entry) = entries.next().map_err(|error| self.output(&error))? {
            if let Entry::Event { action, user, books, .. } = entry {
                chunk.push(action, user, books);
                if chunk.is_full() {
                    self.send(std::mem::replace(&mut chunk, Chunk::new(wish)))?;
                }
            }
        }
        if !chunk.is_empty() {
            self.send(chunk)?;
        }
        while !self.under_way.is_empty() {
            self.receive()?;
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), Error> {
        let tried = self.run.target.connect(SLICE).and_then(|mut link| {
            let may_gate = may_gate(&mut link, &self.run.keys).map_err(Error::redis("connect"))?;
            Ok((link, may_gate))
        });
        match tried {
            Ok((link, may_gate)) => {
                (self.link, self.may_gate) = (Some(link), may_gate);
                Ok(())
            }
            // The late replies would be taken for those to other commands on that link.
            Err(error) if error.is_interrupted() => self.connect(),
            Err(error) => Err(error),
        }
    }

    fn send(&mut self, chunk: Chunk) -> Result<(), Failure> {
        // The ids of the second chunk follow those that the first got.
        let most = if self.placed.is_empty() { 1 } else { MAX_UNDER_WAY };
        while self.under_way.len() >= most {
            self.receive()?;
        }
        let past_the_script = self.may_gate && self.fresh && self.detour == 0;
        self.detour = self.detour.saturating_sub(1);
        // Nor can ids be chosen behind chunks whose ids the script still chooses.
        while past_the_script && self.under_way.iter().any(|it| it.chosen.is_none()) {
            self.receive()?;
        }
        let chosen = past_the_script.then(|| id_after(self.newest));
        if let Some(first) = chosen {
            self.newest = nth_id(first, chunk.len() - 1);
        }
        self.under_way.push_back(UnderWay::new(chunk, chosen));
        match self.transmit(self.under_way.len() - 1) {
            Ok(()) => Ok(()),
            Err(error) => self.recover(error),
        }
    }

    fn name(&self, number: usize) -> Name {
        Name {
            key: self.run.keys.batch_chunk(&self.id, number),
            ttl_ms: self.order.remember.as_millis() as u64,
            fingerprint: self.fingerprint,
        }
    }

    /// Sends one of the chunks that are under way.
    fn transmit(&mut self, nth: usize) -> Result<(), Error> {
        let number = self.placed.len() + nth;
        let name = self.name(number);
        let UnderWay { chunk, chosen, .. } = &self.under_way[nth];
        let before = number.checked_sub(1).map(|before| self.name(before).key);
        let before = before.as_deref();
        let packed = match chosen {
            Some(first) => chunk.plain_commands(&self.run.keys, &name, before, *first),
            None => chunk.command(&self.run.keys, Some(&name), before),
        };
        self.under_way[nth].note_sent();
        let link = self.link.as_mut().expect("it is made before the first chunk");
        link.send_packed_command(&packed).map_err(Error::redis("queue events"))
    }

    /// Takes the reply to the oldest chunk.
    fn receive(&mut self) -> Result<(), Failure> {
        let Some(oldest) = self.under_way.front() else {
            return Ok(());
        };
        let UnderWay { chunk, chosen, .. } = oldest;
        let name = self.name(self.placed.len());
        let link = self.link.as_mut().expect("it is made before the first chunk");
        let placed = match chosen {
            None => chunk.placed(link.recv_response(), Some(&name)),
            Some(first) => match plain_reply(link) {
                Ok(kept) if kept.as_deref() == Some(chunk.kept(&name, *first).as_bytes()) => {
                    let action = chunk.first_action();
                    let first = EventKey { id: *first, action };
                    Ok(submit::Placed { first, known: false })
                }
                // Shut out, or refused: the script will tell which.
                Ok(_) => return self.send_by_script(),
                Err(error) => Err(Refused::Lost(error)),
            },
        };
        match placed {
            Ok(placed) => {
                let events = chunk.len();
                if oldest.is_of_earlier_run(placed) {
                    self.known += events as u64;
                }
                self.fresh = !placed.known;
                if chosen.is_some() {
                    self.next_detour = (self.next_detour - 1).max(SHORTEST_DETOUR);
                }
                self.newest = self.newest.max(nth_id(placed.first.id, events - 1));
                self.placed.push(IdRange { first: placed.first.id, count: events });
                self.under_way.pop_front();
                self.moved = Instant::now();
                self.progress.sent(events as u64);
                Ok(())
            }
            Err(Refused::OtherContent(event)) => {
                let sent = match self.queued() {
                    0 => "nothing was sent".to_owned(),
                    1 => "the first event is queued, nothing else was sent".to_owned(),
                    queued => {
                        format!("the first {queued} events are queued, nothing else was sent")
                    }
                };
                Err(Failure::usage(format!(
                    "batch {} was sent before with other content (see {} {}); {sent}",
                    self.id, event.action, event.id
                )))
            }
            Err(Refused::OutOfTurn) => Err(self.forgotten()),
            Err(Refused::Error(error)) => {
                self.under_way.front_mut().into_iter().for_each(UnderWay::note_refused);
                self.recover(error)
            }
            Err(Refused::Lost(error)) => self.recover(error),
        }
    }

    /// Sends again what is under way, by the script, on the same connection. Whoever got ahead may
    /// come again: the next chunks go the same way, the more the oftener this happens.
    fn send_by_script(&mut self) -> Result<(), Failure> {
        self.detour = self.next_detour;
        self.next_detour = (2 * self.next_detour).min(LONGEST_DETOUR);
        let link = self.link.as_mut().expect("it is made before the first chunk");
        // The first one's reply is read. What became of the others is told again.
        for behind in self.under_way.iter().skip(1) {
            let reply = match behind.chosen {
                Some(_) => plain_reply(link).map(drop),
                None => link.recv_response().map(drop).or_else(unless_lost),
            };
            if let Err(error) = reply {
                return self.recover(error);
            }
        }
        match self.transmit_again() {
            Ok(()) => Ok(()),
            Err(error) => self.recover(error),
        }
    }

    fn transmit_again(&mut self) -> Result<(), Error> {
        for nth in 0..self.under_way.len() {
            let again = &mut self.under_way[nth];
            again.chosen_before = again.chosen.take().or(again.chosen_before);
            self.transmit(nth)?;
        }
        Ok(())
    }

    /// Sends again what is under way, on a new connection. Redis knows the chunks by name, so
    /// it does not matter which of them it has added.
    pub fn recover(&mut self, mut error: Error) -> Result<(), Failure> {
        self.under_way.iter_mut().for_each(|sent| sent.resent = true);
        if error.is_interrupted() {
            // This process was stopped, for however long: nothing is wrong with Redis.
            self.moved = Instant::now();
        }
        while error.remedy() == Remedy::Retry && self.moved.elapsed() < self.order.timeout {
            // Nothing tells when a server is back: asking again is all there is.
            thread::sleep(PAUSE);
            match self.connect().and_then(|()| self.transmit_again()) {
                Ok(()) => return Ok(()),
                Err(newer) => error = newer,
            }
        }
        Err(self.failure(&error))
    }
}

/// Whether a connection may do what a chunk without the script needs beyond what the script does.
/// What these commands say else does not matter: they change nothing.
fn may_gate(link: &mut Connection, keys: &Keys) -> RedisResult<bool> {
    let commands: [&[&str]; 4] = [
        &["CLIENT", "REPLY", "ON"],
        &["XSETID", &keys.requests, "no id"],
        &["XDEL", &keys.requests, "0-1"],
        &["EXEC"],
    ];
    // Who may not EXEC would be caught in a transaction.
    Ok(may(link, &commands)? && may(link, &[&["MULTI"], &["EXEC"]])?)
}

fn may(link: &mut Connection, commands: &[&[&str]]) -> RedisResult<bool> {
    let mut packed = Packed::default();
    commands.iter().for_each(|command| packed.words(command));
    link.send_packed_command(&packed.into_bytes())?;
    let mut may = true;
    for command in commands {
        match link.recv_response().and_then(Value::extract_error) {
            Ok(_) => {}
            Err(error) if error.is_io_error() => return Err(error),
            // A server that does not know CLIENT REPLY cannot do it either.
            Err(error) => {
                // EXEC puts its own code before the reason.
                let refused = matches!(error.code(), Some("NOPERM" | "EXECABORT"));
                may &= command[0] != "CLIENT" && !refused;
            }
        }
    }
    Ok(may)
}

/// The replies to a chunk that went without the script: what Redis keeps of it.
fn plain_reply(link: &mut Connection) -> Result<Option<Vec<u8>>, Error> {
    let replies = [link.recv_response(), link.recv_response()];
    let [switched_on, kept] = replies.map(|reply| reply.and_then(Value::extract_error));
    switched_on
        .and(kept)
        .and_then(|kept| Ok(redis::from_redis_value(kept)?))
        .map_err(Error::redis("queue events"))
}

/// An error of the server's is one that it will say again.
fn unless_lost(error: redis::RedisError) -> Result<(), Error> {
    if error.is_io_error() { Err(Error::redis("queue events")(error)) } else { Ok(()) }
}

/// The first id of a chunk that comes after `newest`.
fn id_after(newest: EventId) -> EventId {
    if newest.seq > MAX_SEQ {
        // Beyond the last id of all, the gate shuts it out, and the script says why.
        return EventId { ms: newest.ms.saturating_add(1), seq: SEQ_STEP };
    }
    nth_id(newest, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_numbers_of_a_millisecond_are_used_up_ids_go_on_in_the_next() {
        for (newest, next) in [
            ("17-5000000", "17-6000000"),
            ("17-99999999999999", "17-100000000999999"),
            ("17-100000000000000", "18-1000000"),
        ] {
            assert_eq!(id_after(newest.parse().unwrap()), next.parse().unwrap());
        }
        // It is not above that one: the gate lets nothing in.
        assert!(id_after(EventId::LAST) < EventId::LAST);
    }
}
