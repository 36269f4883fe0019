//! `library-req batch`: the events of a file, for cron.
//!
//! Three passes: all lines are checked and kept in a [spool](super::spool); the good ones are sent
//! in pipelined chunks; their answers are collected in the order of the lines. Every chunk has a
//! name, made from the batch's and its own number, under which Redis adds it once. So a lost
//! connection, a crash in the middle or a second run send nothing twice, and the second run finds
//! the answers of the first.
//!
//! A million lines are sent about as fast as `redis-cli --pipe` sends as many XADDs.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use redis::{Connection, RedisResult, Value};

use super::answer::{self, PAUSE};
use super::failure::{DONE, Failure, OUTPUT, UNANSWERED, USAGE};
use super::interrupt::Interrupt;
use super::lines::{Line, Lines, Words};
use super::options::{Batch, Run};
use super::private_file::{PrivateFile, identity, place, remove_left, unfinished};
use super::progress::{self, Progress};
use super::results::{Fate, Format, Results};
use super::show::{Form, counted, say, status};
use super::spool::{Entry, Filling, Reader, Spool};
use super::submit::{self, Chunk, Draft, Fingerprint, Name, Packed, Refused, SEQ_STEP, nth_id};
use crate::connect::AskAgain;
use crate::error::{Error, Remedy};
use crate::event::{Action, AnswerWish, EventKey};
use crate::ids::{EventId, SubmissionId};
use crate::keys::Keys;
use crate::outcome::Outcome;

/// Chunks that are sent before the reply to the first of them is read: enough that neither side
/// waits for the other, few enough that the replies fit into the link's buffers.
const MAX_UNDER_WAY: usize = 4;
/// Chunks that go by the script after one was shut out: at least, and where that happens all the time.
const SHORTEST_DETOUR: usize = 4;
const LONGEST_DETOUR: usize = 64;
/// How long one command blocks at most: so often the progress is shown.
const SLICE: Duration = Duration::from_millis(500);
/// Chunks whose answers are counted together: a round trip for each takes long where Redis is far.
const COUNTED_AT_ONCE: usize = 32;

/// Does what the command line asks for.
pub fn run(run: &Run, order: &Batch) -> Result<u8, Failure> {
    let rejected = order.rejected.clone().or_else(|| beside(order.file.as_deref()?));
    check_places(order, rejected.as_deref())?;
    let spool = check(order, rejected.as_deref())?;
    if spool.bad > 0 && !order.partial {
        return Err(Failure::usage(format!(
            "{}, {} good: nothing was sent (--partial sends the good ones)",
            counted(spool.bad, "bad line"),
            spool.events
        )));
    }
    // Whatever can fail without Redis fails before anything is sent.
    let format = format(run, order);
    let mut results = match &order.results {
        Some(path) => Results::to_file(path, format)
            .map_err(|error| unwritable(path, &error, "nothing was sent"))?,
        None => Results::to_stdout(format, run.form == Form::Quiet || !order.wait),
    };
    let id = match &order.id {
        Some(id) => id.clone(),
        None => spool.fingerprint.to_string().parse().expect("hexadecimal digits make an id"),
    };
    let _interrupt = Interrupt::listen(format!(
        "interrupted; what was sent stays queued: run the same again to go on with batch {id}"
    ));
    let progress = Progress::new(spool.events, run.form == Form::Quiet);
    let mut courier = Courier {
        run,
        order,
        id,
        fingerprint: spool.fingerprint,
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
        patient: !order.timeout.is_zero(),
        progress,
    };
    courier.send_all(&spool)?;
    if spool.bad == 0
        && let Some(rejected) = &rejected
    {
        remove_earlier(rejected, run.form);
    }
    let tally = if order.wait {
        courier.collect(&spool, &mut results)?
    } else {
        confirm(&spool, run.form, &courier.placed).map_err(|error| courier.output(&error))?;
        Tally::default()
    };
    match results.done() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(courier.output(&error));
        }
        _ => {}
    }
    if run.form != Form::Quiet {
        say(&courier.summary(&spool, &tally));
    }
    Ok(match &tally {
        // Before what no repetition corrects: whoever repeats it while there is something to ask for
        // has all results in the end.
        Tally { unanswered: 1.., .. } => UNANSWERED,
        _ if spool.bad > 0 => USAGE,
        tally => tally.worst,
    })
}

/// Where the bad lines of a file go unless told otherwise. A pipe, and what the shell has opened
/// for us, are like stdin: nobody looks for a file beside them.
fn beside(file: &Path) -> Option<PathBuf> {
    place(file)?;
    let mut name = file.to_owned().into_os_string();
    name.push(".rejected");
    Some(name.into())
}

/// Removes the bad lines of an earlier run: they would be taken for those of this one.
fn remove_earlier(rejected: &Path, form: Form) {
    let path = rejected.display();
    match remove_left(rejected) {
        Ok(true) if form != Form::Quiet => {
            say(&format!("no bad lines: removed {path}, those of an earlier run"));
        }
        Ok(_) => {}
        Err(error) => {
            say(&format!("cannot remove {path}, the bad lines of an earlier run: {error}"));
        }
    }
}

fn format(run: &Run, order: &Batch) -> Format {
    let json = order
        .results
        .as_deref()
        .and_then(Path::extension)
        .is_some_and(|end| end == "json" || end == "jsonl");
    if json || run.form == Form::Json { Format::Json } else { Format::Csv }
}

fn unwritable(path: &Path, error: &io::Error, sent: &str) -> Failure {
    Failure { message: format!("cannot write {}: {error}; {sent}", path.display()), status: OUTPUT }
}

/// Reads and checks all lines. Bad ones are told on stderr, and their text goes to a file of its
/// own, ready to be corrected and sent.
fn check(order: &Batch, rejected: Option<&Path>) -> Result<Spool, Failure> {
    let name = order.file.as_deref().map_or("stdin".into(), |path| path.display().to_string());
    let unreadable =
        |error: io::Error| Failure::usage(format!("cannot read {name}: {error}; nothing was sent"));
    let (input, grown): (Box<dyn BufRead>, _) = match &order.file {
        None => (Box::new(io::stdin().lock()), None),
        Some(path) => {
            let file = File::open(path).map_err(unreadable)?;
            let meta = file.metadata().map_err(unreadable)?;
            let watched = file.try_clone().map_err(unreadable)?;
            // A file that somebody writes to while it is read might never end.
            let bytes = if meta.is_file() { meta.len() } else { u64::MAX };
            let grown =
                move || meta.is_file() && watched.metadata().is_ok_and(|now| now.len() != bytes);
            (Box::new(BufReader::with_capacity(1 << 16, file.take(bytes))), Some(grown))
        }
    };
    let unspooled = |error: io::Error| Failure {
        message: format!("cannot keep the lines in a temporary file: {error}; nothing was sent"),
        status: OUTPUT,
    };
    let mut spool = Filling::new().map_err(unspooled)?;
    let mut rejects = Rejects::to(rejected);
    let is_text = |text: &[u8], line: u64| match text.contains(&0) {
        true => Err(Failure::usage(format!(
            "{name} has a zero byte in line {line}: it is no text; nothing was sent"
        ))),
        false => Ok(()),
    };
    let mut lines = Lines::new(input);
    let (mut words, mut draft) = (Words::default(), Draft::new());
    while let Some(line) = lines.next().map_err(unreadable)? {
        is_text(line.text, line.number)?;
        let number = line.number;
        match line.parse(&mut words, &mut draft) {
            Ok(false) => {}
            Ok(true) => spool.event(number, &draft).map_err(unspooled)?,
            Err(fault) => {
                rejects.add(&line, &fault);
                while let Some(piece) = lines.more().map_err(unreadable)? {
                    is_text(piece, number)?;
                    rejects.write(piece);
                }
                rejects.write(b"\n");
                spool.bad(number, &fault).map_err(unspooled)?;
            }
        }
    }
    if grown.is_some_and(|grown| grown()) {
        return Err(Failure::usage(format!(
            "{name} was written to while it was read: nothing was sent; run it again when it is whole"
        )));
    }
    match rejects.done() {
        // With the good ones sent, they would have to be looked for in the file.
        Err(unkept) if order.partial => {
            return Err(Failure { message: format!("{unkept}; nothing was sent"), status: OUTPUT });
        }
        // Nothing is sent in any case, and what is wrong with the file is told already.
        Err(unkept) => say(&unkept),
        Ok(()) => {}
    }
    spool.done().map_err(unspooled)
}

/// Where bad lines go.
struct Rejects<'a> {
    path: Option<&'a Path>,
    /// Begun with the first of them. What is wrong with the others is told even if it cannot be
    /// written.
    file: io::Result<Option<BufWriter<PrivateFile>>>,
    /// stderr writes each line by itself; a file full of bad lines would take for ever.
    told: BufWriter<io::Stderr>,
}

impl<'a> Rejects<'a> {
    fn to(path: Option<&'a Path>) -> Self {
        Self { path, file: Ok(None), told: BufWriter::new(io::stderr()) }
    }

    /// Tells what is wrong with a line, and begins to keep its text.
    fn add(&mut self, line: &Line<'_>, fault: &str) {
        let _ = writeln!(self.told, "library-req: line {}: {fault}", line.number);
        self.write(line.text);
    }

    fn write(&mut self, text: &[u8]) {
        let (Some(path), Ok(file)) = (self.path, &mut self.file) else {
            return;
        };
        let write = || match file {
            Some(file) => file.write_all(text),
            none => none.insert(BufWriter::new(PrivateFile::create(path)?)).write_all(text),
        };
        if let Err(error) = write() {
            self.file = Err(error);
        }
    }

    /// All bad lines are there. If they cannot be kept, the answer says so.
    fn done(mut self) -> Result<(), String> {
        let _ = self.told.flush();
        let Some(path) = self.path else {
            return Ok(());
        };
        let whole = |file: BufWriter<PrivateFile>| {
            file.into_inner().map_err(io::IntoInnerError::into_error)?.done()
        };
        let kept = self.file.and_then(|file| file.map(whole).transpose());
        // In a pipe or a device nobody looks for them.
        let is_file = place(path).is_some();
        let path = path.display();
        match kept {
            Ok(Some(())) if is_file => say(&format!("the bad lines are in {path}")),
            Ok(_) => {}
            Err(error) => {
                return Err(format!("cannot write {path}: {error}; the bad lines are not kept"));
            }
        }
        Ok(())
    }
}

/// Refuses to write over what is read, or to write two things to one place. A file is written under
/// another name until it is whole: what has that name already would be gone.
fn check_places(order: &Batch, rejected: Option<&Path>) -> Result<(), Failure> {
    let read = identity_of_input(order.file.as_deref());
    let is_read = |path: &Path| read.is_some() && identity(path.metadata()) == read;
    let is_lost = |place: &Option<PathBuf>| {
        place.as_ref().is_some_and(|place| is_read(place) || is_read(&unfinished(place)))
    };
    let [results, rejected] = [order.results.as_deref(), rejected].map(|path| path.and_then(place));
    let collide = |one: &Path, other: &Path| {
        one == other || unfinished(one) == *other || unfinished(other) == *one
    };
    let fault = if is_lost(&results) {
        "--results would write over the batch itself"
    } else if is_lost(&rejected) {
        "--rejected would write over the batch itself"
    } else if results.zip(rejected).is_some_and(|(one, other)| collide(&one, &other)) {
        "--results and --rejected name the same file"
    } else {
        return Ok(());
    };
    Err(Failure::usage(format!("{fault}: nothing was sent")))
}

/// Which file the batch is read from. The shell may have opened it, as stdin, and has told us no name.
fn identity_of_input(file: Option<&Path>) -> Option<(u64, u64)> {
    match file {
        Some(path) => identity(path.metadata()),
        None => {
            let stdin = io::stdin().as_fd().try_clone_to_owned().ok()?;
            identity(File::from(stdin).metadata())
        }
    }
}

/// With `--no-wait`: `OK` for every line that is queued, and the others' faults.
fn confirm(spool: &Spool, form: Form, placed: &[Placed]) -> io::Result<()> {
    progress::clear();
    let written = match form {
        Form::Words => confirm_in_words(spool),
        Form::Json => confirm_as_json(spool, placed),
        Form::Quiet => Ok(()),
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

fn confirm_in_words(spool: &Spool) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    if spool.bad == 0 {
        for _ in 0..spool.events {
            out.write_all(b"OK\n")?;
        }
        return out.flush();
    }
    let mut entries = spool.read()?;
    while let Some(entry) = entries.next()? {
        match entry {
            Entry::Event { .. } => out.write_all(b"OK\n")?,
            Entry::Bad { line, fault } => writeln!(out, "line {line}: {fault}")?,
        }
    }
    out.flush()
}

fn confirm_as_json(spool: &Spool, placed: &[Placed]) -> io::Result<()> {
    let mut ids = placed.iter().flat_map(|it| (0..it.events).map(|nth| nth_id(it.first, nth)));
    let mut results = Results::to_stdout(Format::Json, false);
    let mut entries = spool.read()?;
    while let Some(entry) = entries.next()? {
        match entry {
            Entry::Event { line, action, .. } => {
                let id = ids.next().unwrap_or_default();
                results.add(line, &Fate::Queued(EventKey { id, action }))?;
            }
            Entry::Bad { line, fault } => results.add(line, &Fate::Bad(fault))?,
        }
    }
    results.done()
}

/// What came of the events.
#[derive(Debug, Default)]
struct Tally {
    done: u64,
    refused: u64,
    unanswered: u64,
    /// The exit status that the outcomes stand for.
    worst: u8,
}

/// Events that got consecutive ids.
#[derive(Clone, Copy, Debug)]
struct Placed {
    first: EventId,
    events: usize,
}

/// A chunk that was sent.
struct UnderWay {
    chunk: Chunk,
    /// The id that we chose for its first event; `None` if the script chooses.
    chosen: Option<EventId>,
    /// The id that we had chosen for it before it was sent again, by the script.
    chosen_before: Option<EventId>,
    /// It was sent on a link that is lost: if Redis knows it, then from there, as far as can be told.
    resent: bool,
}

impl UnderWay {
    fn new(chunk: Chunk, chosen: Option<EventId>) -> Self {
        Self { chunk, chosen, chosen_before: None, resent: false }
    }

    /// Whether it is known that an earlier run, and not this process, has put it there.
    fn is_of_earlier_run(&self, placed: submit::Placed) -> bool {
        placed.known && !self.resent && self.chosen_before != Some(placed.first.id)
    }
}

/// Carries chunks to Redis and answers back.
///
/// The first goes by the script, which tells where ids are by now. The others go as plain XADDs
/// behind a gate, under ids that follow: that costs Redis a third less. If somebody else adds an
/// event meanwhile, the gate shuts them out, and what is under way goes by the script again.
struct Courier<'a> {
    run: &'a Run,
    order: &'a Batch,
    id: SubmissionId,
    /// That of the whole batch: a chunk of another one is no chunk of this one.
    fingerprint: Fingerprint,
    link: Option<Connection>,
    /// Whether this Redis lets us add chunks without the script.
    may_gate: bool,
    /// How many chunks still go by the script, since one was shut out.
    detour: usize,
    /// How many it will be the next time.
    next_detour: usize,
    /// Whether the last chunk is there only now, so that the next one is not there yet.
    fresh: bool,
    /// Sent, not confirmed; their numbers follow those that are placed.
    under_way: VecDeque<UnderWay>,
    placed: Vec<Placed>,
    /// The last id that was given or chosen.
    newest: EventId,
    /// Events of which it is known that an earlier run had sent them.
    known: u64,
    /// When Redis last told something new.
    moved: Instant,
    /// Whether outcomes that are missing are waited for: until none has come for the timeout.
    patient: bool,
    progress: Progress,
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

impl Courier<'_> {
    fn queued(&self) -> u64 {
        self.placed.iter().map(|placed| placed.events as u64).sum()
    }

    fn summary(&self, spool: &Spool, tally: &Tally) -> String {
        let mut text = format!("{} queued", counted(self.queued(), "event"));
        if self.known > 0 {
            text += &format!(" ({} of them by an earlier run)", self.known);
        }
        if self.order.wait {
            text += &format!(": {} done, {} refused", tally.done, tally.refused);
            if tally.unanswered > 0 {
                text += &format!(
                    ", {} unanswered so far (run the same again to ask)",
                    tally.unanswered
                );
            }
        }
        if spool.bad > 0 {
            text += &format!("; {} not sent", counted(spool.bad, "bad line"));
        }
        text
    }

    /// Redis failed for good. Running again is always safe.
    fn failure(&self, error: &Error) -> Failure {
        let sent = format!(
            "at least {} events are queued; run the same again to go on: none is queued twice",
            self.queued()
        );
        Failure::redis(error, &self.run.target, &sent)
    }

    /// Results cannot be written, or the spool not read.
    fn output(&self, error: &io::Error) -> Failure {
        Failure {
            message: format!(
                "cannot write the results: {error}; {} events are queued; run the same again for \
                 the results: none is queued twice",
                self.queued()
            ),
            status: OUTPUT,
        }
    }

    fn send_all(&mut self, spool: &Spool) -> Result<(), Failure> {
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
            // By a pause. On that link the late replies would be taken for those to other commands.
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
                self.placed.push(Placed { first: placed.first.id, events });
                self.under_way.pop_front();
                self.moved = Instant::now();
                self.progress.sent(events as u64);
                Ok(())
            }
            Err(Refused::OtherContent(event)) => {
                let sent = match self.queued() {
                    0 => "nothing was sent".to_owned(),
                    queued => {
                        format!("the first {queued} events are queued, nothing else was sent")
                    }
                };
                Err(Failure::usage(format!(
                    "batch {} was sent before with other content (see {} {}); {sent}",
                    self.id, event.action, event.id
                )))
            }
            Err(Refused::Error(error) | Refused::Lost(error)) => self.recover(error),
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
    fn recover(&mut self, mut error: Error) -> Result<(), Failure> {
        self.under_way.iter_mut().for_each(|sent| sent.resent = true);
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

    /// Writes a result for every line, in their order.
    fn collect(&mut self, spool: &Spool, results: &mut Results) -> Result<Tally, Failure> {
        let mut tally = Tally::default();
        let mut entries = spool.read().map_err(|error| self.output(&error))?;
        self.moved = Instant::now();
        for nth in 0..=self.placed.len() {
            // The chunk's events and the bad lines between them; after the last chunk only those.
            let placed = self.placed.get(nth).copied();
            let mut lines: Vec<(u64, Result<EventKey, String>)> = Vec::new();
            let mut events = Vec::new();
            while placed.is_none_or(|placed| events.len() < placed.events) {
                match entries.next().map_err(|error| self.output(&error))? {
                    Some(Entry::Bad { line, fault }) => lines.push((line, Err(fault.to_owned()))),
                    Some(Entry::Event { line, action, .. }) => {
                        let Some(Placed { first, .. }) = placed else { break };
                        let event = EventKey { id: nth_id(first, events.len()), action };
                        events.push(event);
                        lines.push((line, Ok(event)));
                    }
                    None => break,
                }
            }
            let later = Later { first_chunk: nth + 1, entries: &entries };
            let mut outcomes = self.outcomes(&events, &later)?.into_iter();
            for (line, event) in &lines {
                let outcome = if event.is_ok() { outcomes.next().flatten() } else { None };
                let fate = match (event, &outcome) {
                    (Err(fault), _) => Fate::Bad(fault),
                    (Ok(event), None) => {
                        tally.unanswered += 1;
                        Fate::Unanswered(*event)
                    }
                    (Ok(event), Some(outcome)) => {
                        let status = status(outcome);
                        tally.worst = tally.worst.max(status);
                        *if status == DONE { &mut tally.done } else { &mut tally.refused } += 1;
                        Fate::Decided(*event, outcome)
                    }
                };
                match results.add(*line, &fate) {
                    Ok(()) => {}
                    // Whoever read them wants no more.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(tally),
                    Err(error) => return Err(self.output(&error)),
                }
            }
        }
        Ok(tally)
    }

    /// The outcomes of a chunk's events, waited for until nothing has come for the timeout: none of
    /// them, and none of a later chunk. Then no chunk is waited for any more; one line in each that is
    /// not answered would else take a timeout each.
    fn outcomes(
        &mut self,
        events: &[EventKey],
        later: &Later<'_>,
    ) -> Result<Vec<Option<Outcome>>, Failure> {
        let keys: Vec<String> = events.iter().map(|event| self.run.keys.answer(*event)).collect();
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
                        self.moved = Instant::now();
                    } else if look == Look::TimeIsUp {
                        self.patient = false;
                        return Ok(outcomes);
                    }
                }
                // After a pause, however long, they are looked for once more; redis-rs passes over
                // the late reply.
                Err(error) if error.is_interrupted() => {}
                Err(error) => self.recover(error)?,
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
        let Some(link) = self.link.as_mut() else {
            return Ok(Look::Whole);
        };
        let mut pipe = redis::pipe();
        for &n in &missing {
            pipe.cmd("LINDEX").arg(&keys[n]).arg(0);
        }
        if missing.is_empty() {
            return Ok(Look::Whole);
        }
        let answers: Vec<Option<Vec<u8>>> =
            pipe.query(link).map_err(Error::redis("read the answers"))?;
        let mut first_missing = None;
        for (&n, answer) in missing.iter().zip(answers) {
            match answer {
                Some(text) => {
                    outcomes[n] = Some(answer::parse(&text)?);
                    self.moved = Instant::now();
                    self.progress.answered(1);
                }
                None => first_missing = first_missing.or(Some(n)),
            }
        }
        let Some(n) = first_missing else {
            return Ok(Look::Whole);
        };
        let left = self.order.timeout.saturating_sub(self.moved.elapsed());
        if !self.patient || left.is_zero() {
            return Ok(Look::TimeIsUp);
        }
        // At least twice within the timeout: what has come between the first time and the end is seen.
        let slice = SLICE.min(self.order.timeout / 2).min(left);
        let outcome = answer::take(link, &keys[n], slice)?;
        let look = if outcome.is_some() { Look::Moving } else { Look::Stalled };
        if outcome.is_some() {
            outcomes[n] = outcome;
            self.moved = Instant::now();
            self.progress.answered(1);
        }
        self.progress.show();
        Ok(look)
    }

    /// How many answers of later chunks are there; `None` if there is no later chunk, or nothing is
    /// waited for any more.
    fn count(&mut self, later: &Later<'_>) -> Result<Option<u64>, Failure> {
        if !self.patient || later.first_chunk >= self.placed.len() {
            return Ok(None);
        }
        let mut entries = later.entries.ahead().map_err(|error| self.output(&error))?;
        let mut count = 0;
        for from in (later.first_chunk..self.placed.len()).step_by(COUNTED_AT_ONCE) {
            let to = self.placed.len().min(from + COUNTED_AT_ONCE);
            let mut pipe = redis::pipe();
            for placed in &self.placed[from..to] {
                let actions = next_actions(&mut entries, placed.events);
                let actions = actions.map_err(|error| self.output(&error))?;
                pipe.cmd("EXISTS");
                for (n, action) in actions.into_iter().enumerate() {
                    let id = nth_id(placed.first, n);
                    pipe.arg(self.run.keys.answer(EventKey { id, action }));
                }
            }
            count += self.sum(&pipe)?;
        }
        Ok(Some(count))
    }

    /// The sum of what these questions are answered with.
    fn sum(&mut self, questions: &redis::Pipeline) -> Result<u64, Failure> {
        loop {
            let link = self.link.as_mut().expect("it is made before the first chunk");
            let counts: Result<Vec<u64>, _> = questions.query(&mut AskAgain(link));
            match counts.map_err(Error::redis("count the answers")) {
                Ok(counts) => return Ok(counts.into_iter().sum()),
                // It only tells whether to wait on.
                Err(error) if error.lacks_permission() => return Ok(0),
                Err(error) => self.recover(error)?,
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
    // As submit.lua: its numbers are exact up to 14 digits.
    const MAX_SEQ: u64 = 99_999_999_999_999;
    if newest.seq > MAX_SEQ {
        // Beyond the last id of all, the gate shuts it out, and the script says why.
        return EventId { ms: newest.ms.saturating_add(1), seq: SEQ_STEP };
    }
    nth_id(newest, 1)
}
