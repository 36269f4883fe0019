//! The scripts on a private Redis: calls of them, the events that they work on, and a way to take
//! a guard out of one.

use std::collections::BTreeMap;
use std::sync::Arc;

use library_lending::error::Error;
use library_lending::event::{Action, Event, EventKey, HandOff};
use library_lending::ids::{BookId, EventId};
use library_lending::keys::{Keys, LENDING_GROUP, SHELVING_GROUP};
use library_lending::lending::decide::{self, Told, Try, TryEnd};
use library_lending::lending::reject::{self, GivenUp};
use library_lending::session::{Neighbours, Session};
use library_lending::settings::Settings;
use library_lending::shelving;
use library_lending::shelving::fetch::{self, Answer};
use library_lending::stream::Entry;
use redis::{Arg, Cmd, RedisError, Value};

use crate::redis::{Dump, Redis, show};

/// The scripts' texts, as they stand.
pub const SCRIPTS: [(&str, &str); 35] = [
    ("acquire", include_str!("../../lua/acquire.lua")),
    ("alone", include_str!("../../lua/alone.lua")),
    ("backlog", include_str!("../../lua/backlog.lua")),
    ("claim", include_str!("../../lua/claim.lua")),
    ("clear", include_str!("../../lua/clear.lua")),
    ("decide", include_str!("../../lua/decide.lua")),
    ("discard", include_str!("../../lua/discard.lua")),
    ("fetch", include_str!("../../lua/fetch.lua")),
    ("forget", include_str!("../../lua/forget.lua")),
    ("gate", include_str!("../../lua/gate.lua")),
    ("groups", include_str!("../../lua/groups.lua")),
    ("inspect", include_str!("../../lua/inspect.lua")),
    ("last_given", include_str!("../../lua/last_given.lua")),
    ("last_id", include_str!("../../lua/last_id.lua")),
    ("letters", include_str!("../../lua/letters.lua")),
    ("lone_try", include_str!("../../lua/lone_try.lua")),
    ("mend", include_str!("../../lua/mend.lua")),
    ("old_tries", include_str!("../../lua/old_tries.lua")),
    ("order", include_str!("../../lua/order.lua")),
    ("permits", include_str!("../../lua/permits.lua")),
    ("recount", include_str!("../../lua/recount.lua")),
    ("refusals", include_str!("../../lua/refusals.lua")),
    ("regroup", include_str!("../../lua/regroup.lua")),
    ("reject", include_str!("../../lua/reject.lua")),
    ("renew", include_str!("../../lua/renew.lua")),
    ("reserved", include_str!("../../lua/reserved.lua")),
    ("resign", include_str!("../../lua/resign.lua")),
    ("retain", include_str!("../../lua/retain.lua")),
    ("retry", include_str!("../../lua/retry.lua")),
    ("returns", include_str!("../../lua/returns.lua")),
    ("shelve", include_str!("../../lua/shelve.lua")),
    ("submit", include_str!("../../lua/submit.lua")),
    ("sweep", include_str!("../../lua/sweep.lua")),
    ("undone", include_str!("../../lua/undone.lua")),
    ("unfetch", include_str!("../../lua/unfetch.lua")),
];

/// A script's own text.
pub fn text(script: &str) -> &'static str {
    let found = SCRIPTS.iter().find(|(name, _)| *name == script);
    found.unwrap_or_else(|| panic!("no script {script}")).1
}

/// What is put in front of scripts, and is none of its own.
pub const PARTS: [&str; 7] =
    ["order", "groups", "letters", "refusals", "returns", "alone", "last_given"];

/// A script's text as it is sent: behind the parts that its header names.
pub fn whole_text(script: &str) -> String {
    assert!(!PARTS.contains(&script), "it is no script of its own");
    let own = text(script);
    let mut header = own.lines().take_while(|line| line.starts_with("--"));
    let after = header.find_map(|line| line.split_once("After ")).map_or("", |(_, after)| after);
    let parts = PARTS.iter().filter(|part| after.contains(&format!("{part}.lua")));
    parts.map(|part| text(part)).chain([own]).collect()
}

/// One running instance, in one session.
#[derive(Clone)]
pub struct Instance {
    pub session: Arc<Session>,
    number: u64,
}

impl Instance {
    pub fn name(&self) -> &str {
        self.session.consumer()
    }
}

/// A library without anybody in it.
pub struct Library {
    pub redis: Redis,
    pub keys: Keys,
    patched: Option<(&'static str, String)>,
    keep_events: bool,
    keep_outcomes: Option<u64>,
    fetches: u64,
    /// The last fetch under each token.
    left: BTreeMap<String, Fetch>,
}

/// A call of fetch.lua.
struct Fetch {
    number: u64,
    asked: Vec<(BookId, EventId)>,
    answers: Vec<Answer>,
}

impl Library {
    pub fn new() -> Self {
        let mut library = Self {
            redis: Redis::new(),
            keys: Keys::new(None),
            patched: None,
            keep_events: false,
            keep_outcomes: None,
            fetches: 0,
            left: BTreeMap::new(),
        };
        library.clear();
        library
    }

    /// An empty library with the consumer groups.
    pub fn clear(&mut self) {
        self.redis.ask::<()>(&["FLUSHALL"]);
        for (stream, group) in [
            (&self.keys.requests, LENDING_GROUP),
            (&self.keys.returns, LENDING_GROUP),
            (&self.keys.handoffs, SHELVING_GROUP),
        ] {
            let args: [&str; 6] = ["XGROUP", "CREATE", stream, group, "0", "MKSTREAM"];
            self.redis.ask::<()>(&args);
        }
    }

    /// Whether decided events are left in their streams by instances started from now on.
    pub fn keep_events(&mut self, keep: bool) {
        self.keep_events = keep;
    }

    /// Keep so many outcomes, for instances started from now on.
    pub fn keep_outcomes(&mut self, number: u64) {
        self.keep_outcomes = Some(number);
    }

    /// Replaces parts of a script that occur once each, in all calls from now on.
    pub fn patch(&mut self, script: &'static str, parts: &[(&str, &str)]) {
        let mut whole = whole_text(script);
        for (guard, without) in parts {
            let times = whole.matches(guard).count();
            assert_eq!(times, 1, "{script}.lua has this {times} times: {guard}");
            whole = whole.replacen(guard, without, 1);
        }
        self.patched = Some((script, whole));
    }

    pub fn dump(&mut self) -> Dump {
        self.redis.dump()
    }

    /// Starts an instance: it has the lease.
    pub fn instance(&mut self, name: &str) -> Instance {
        self.session(name, 1)
    }

    fn session(&mut self, name: &str, number: u64) -> Instance {
        let mut settings = Settings::of(name.parse().unwrap());
        settings.keep_events = self.keep_events;
        settings.outcomes_kept = self.keep_outcomes.unwrap_or(settings.outcomes_kept);
        let token = format!("process-of-{name}:{number}");
        let keys = self.keys.clone();
        let session = Session::new(keys, settings, token, Arc::default(), number == 1);
        let instance = Instance { session: Arc::new(session), number };
        self.redis.ask::<()>(&["SET", instance.session.lock(), &instance.session.token]);
        self.redis.ask::<()>(&["PEXPIRE", instance.session.lock(), "600000"]);
        instance
    }

    /// The next session of an instance, under a new token.
    pub fn next_session(&mut self, of: &Instance) -> Instance {
        self.session(of.name(), of.number + 1)
    }

    /// The instance's lease runs out.
    pub fn lose_lease(&mut self, of: &Instance) {
        self.redis.ask::<()>(&["DEL", of.session.lock()]);
    }

    // ---- Events.

    /// Adds an event under an id.
    pub fn add(&mut self, event: &Event) {
        let books: Vec<_> = event.books.iter().map(BookId::as_str).collect();
        let id = event.key.id.to_string();
        let mut args = vec!["XADD", self.keys.stream(event.key.action), &id];
        let books = books.join(",");
        args.extend(["user_id", event.user.as_str(), "book_ids", &books]);
        let wish = event.answer.word();
        if let Some(word) = &wish {
            args.extend(["answer", word]);
        }
        self.redis.ask::<()>(&args);
    }

    /// New entries of a stream, delivered to an instance.
    pub fn read(&mut self, to: &str, stream: &str, count: usize) -> Vec<Entry> {
        let group = if stream == self.keys.handoffs { SHELVING_GROUP } else { LENDING_GROUP };
        let count = count.to_string();
        let args = ["XREADGROUP", "GROUP", group, to, "COUNT", &count, "STREAMS", stream, ">"];
        match self.redis.ask(&args) {
            Value::Array(mut streams) => {
                let Value::Array(stream) = streams.remove(0) else { panic!("a stream") };
                let Some(Value::Array(entries)) = stream.into_iter().nth(1) else {
                    panic!("entries")
                };
                entries.into_iter().map(entry).collect()
            }
            _ => Vec::new(),
        }
    }

    /// New events of one kind, delivered to an instance.
    pub fn take(&mut self, to: &str, action: Action, count: usize) -> Vec<Event> {
        let stream = self.keys.stream(action).to_owned();
        self.read(to, &stream, count).iter().map(|entry| parsed(action, entry)).collect()
    }

    /// New hand-offs, delivered to an instance.
    pub fn take_handoffs(&mut self, to: &str, count: usize) -> Vec<HandOff> {
        let stream = self.keys.handoffs.clone();
        let entries = self.read(to, &stream, count);
        entries.iter().map(|entry| shelving::reader::delivered(entry).unwrap()).collect()
    }

    /// Entries that are pending for an instance.
    pub fn pending(&mut self, of: &str, stream: &str) -> Vec<Entry> {
        let group = if stream == self.keys.handoffs { SHELVING_GROUP } else { LENDING_GROUP };
        let args = ["XPENDING", stream, group, "-", "+", "100000", of];
        let Value::Array(list) = self.redis.ask(&args) else { return Vec::new() };
        let ids = list.iter().map(|one| match one {
            Value::Array(parts) => show(&parts[0]),
            other => panic!("{other:?}"),
        });
        let ids: Vec<String> = ids.collect();
        ids.into_iter().map(|id| self.entry(stream, &id)).collect()
    }

    fn entry(&mut self, stream: &str, id: &str) -> Entry {
        match self.redis.ask(&["XRANGE", stream, id, id]) {
            Value::Array(mut list) if list.len() == 1 => entry(list.remove(0)),
            _ => Entry::from_parts(&Value::SimpleString(id.into()), Value::Nil, "read").unwrap(),
        }
    }

    // ---- The scripts.

    /// Sends a call of a script, in its patched form if it has one.
    fn send(&mut self, script: &str, by_text: Cmd) -> Result<Value, RedisError> {
        let mut cmd = Cmd::new();
        for (n, arg) in by_text.args_iter().enumerate() {
            match (arg, &self.patched) {
                (_, Some((name, text))) if n == 1 && *name == script => cmd.arg(text),
                (Arg::Simple(arg), _) => cmd.arg(arg),
                _ => panic!("an argument that is not plain"),
            };
        }
        cmd.query(self.redis.connection())
    }

    /// Calls a script with these keys and arguments.
    pub fn eval(
        &mut self,
        script: &str,
        keys: &[&str],
        args: &[&str],
    ) -> Result<Value, RedisError> {
        let whole = whole_text(script);
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(&whole).arg(keys.len()).arg(keys).arg(args);
        self.send(script, cmd)
    }

    /// Calls a script; its reply as words.
    pub fn words(&mut self, script: &str, keys: &[&str], args: &[&str]) -> Vec<String> {
        words(script, self.eval(script, keys, args))
    }

    /// The raw reply to a chunk of tries, sent behind the fetch of that number, if any.
    pub fn decide_raw(
        &mut self,
        by: &Instance,
        neighbours: &Neighbours,
        tries: &[Try],
        fetch: Option<u64>,
    ) -> Result<Value, RedisError> {
        self.send("decide", decide::call(&by.session, neighbours, tries, fetch).by_text())
    }

    /// The verdicts on a chunk of tries; outcomes are written out as text.
    pub fn decide(&mut self, by: &Instance, tries: &[Try]) -> Result<Vec<TryEnd>, Error> {
        let nobody = Neighbours::default();
        let reply = match self.as_left(by, tries) {
            Some((fetch, left)) => self.decide_raw(by, &nobody, &left, Some(fetch)),
            None => self.decide_raw(by, &nobody, tries, None),
        };
        let reply = reply.map_err(Error::redis("decide events"))?;
        let verdicts = decide::ends(reply, tries)?.expect("the answer was left");
        let as_text = |(verdict, one): (_, &Try)| match verdict {
            TryEnd::Done(told) => TryEnd::Done(Told::Fields(spelled_out(&told, &one.event))),
            other => other,
        };
        Ok(verdicts.into_iter().zip(tries).map(as_text).collect())
    }

    /// The same tries, where they begin with the answers of the last fetch: its number, and with those
    /// left for the script to find, as the daemon does it. Every other time, since it gives them itself
    /// as well.
    fn as_left(&self, by: &Instance, tries: &[Try]) -> Option<(u64, Vec<Try>)> {
        let Fetch { number, asked, answers } = self.left.get(&by.session.token)?;
        let mut fetched = asked.iter().zip(answers).peekable();
        let mut left = Vec::new();
        for one in tries {
            let (event, doubt) = (one.event.clone(), one.doubt.clone());
            let mut fetched_of = one.fetched.clone();
            for (n, said) in fetched_of.iter_mut().flat_map(|f| f.answers.iter_mut()).enumerate() {
                let of = (event.books[n].clone(), event.key.id);
                if fetched
                    .next_if(|(asked, answer)| **asked == of && said.as_ref() == Some(*answer))
                    .is_some()
                {
                    *said = Some(Answer::Left);
                }
            }
            left.push(Try { event, doubt, fetched: fetched_of });
        }
        (fetched.next().is_none() && number % 2 == 0).then_some((*number, left))
    }

    /// Asks the main storage for books.
    pub fn fetch(
        &mut self,
        by: &Instance,
        asked: &[(BookId, EventId)],
    ) -> Result<Vec<Answer>, Error> {
        self.fetches += 1;
        let number = self.fetches;
        let pairs = asked.iter().map(|(book, id)| (book, *id));
        let reply = self.send("fetch", fetch::call(&by.session, pairs, number).by_text());
        let answers = fetch::answers(reply.map_err(Error::redis("fetch books"))?, asked.len())?;
        let fetch = Fetch { number, asked: asked.to_vec(), answers: answers.clone() };
        self.left.insert(by.session.token.clone(), fetch);
        Ok(answers)
    }

    /// The number of the last fetch.
    pub fn fetches(&self) -> u64 {
        self.fetches
    }

    /// Puts the books of hand-offs on their shelves; the reply's words.
    pub fn shelve(&mut self, by: &Instance, handoffs: &[HandOff]) -> Vec<String> {
        let call = shelving::worker::call(&by.session, handoffs);
        let reply = self.send("shelve", call.by_text());
        words("shelve", reply)
    }

    /// Moves a request or return to the dead letters; or only looks.
    pub fn reject(
        &mut self,
        by: &Instance,
        key: EventKey,
        cause: &str,
        look: bool,
    ) -> Result<Value, RedisError> {
        let event = (key, cause.to_owned());
        let call = match look {
            true => reject::look(&by.session, &event),
            false => reject::call(&by.session, std::slice::from_ref(&event)),
        };
        self.send("reject", call.by_text())
    }

    /// Moves several requests or returns to the dead letters.
    pub fn reject_all(&mut self, by: &Instance, events: &[GivenUp]) -> Result<Value, RedisError> {
        self.send("reject", reject::call(&by.session, events).by_text())
    }

    /// Puts books back that a request may have fetched.
    pub fn unfetch(&mut self, by: &Instance, fetched: &[(&str, EventId)]) -> Value {
        let pairs = fetched.iter().map(|(book, id)| (book.as_bytes(), *id));
        self.send("unfetch", fetch::undo(&by.session, pairs).by_text()).unwrap()
    }

    /// Moves a hand-off to the dead letters.
    pub fn discard(
        &mut self,
        by: &Instance,
        id: EventId,
        cause: &str,
    ) -> Result<Value, RedisError> {
        self.send("discard", shelving::worker::discard(&by.session, id, cause).by_text())
    }

    /// Claims what is pending for another instance; the reply's words.
    pub fn claim(&mut self, by: &Instance, stream: &str, from: &str) -> Vec<String> {
        let group = if stream == self.keys.handoffs { SHELVING_GROUP } else { LENDING_GROUP };
        let lock = self.keys.lock(&from.parse().unwrap());
        let args = [&by.session.token, group, by.name(), from, "1000", "-", "1000000", "3600000"];
        self.words("claim", &[by.session.lock(), stream, &lock], &args)
    }

    /// Removes states of books, as they were seen, that mean nothing any more. The step is "look"
    /// or "unfetched".
    pub fn sweep(&mut self, by: &Instance, step: &str, seen: &[(String, String)]) -> Vec<String> {
        let keys = self.keys.clone();
        let lock = by.session.lock();
        let touched: [&str; 6] =
            [lock, &keys.book_states, &keys.loans, &keys.handoffs, &keys.requests, &keys.storage];
        let mut args: Vec<&str> = vec![&by.session.token, LENDING_GROUP, SHELVING_GROUP, step];
        args.extend(seen.iter().flat_map(|(book, state)| [book.as_str(), state.as_str()]));
        self.words("sweep", &touched, &args)
    }

    /// Deletes decided events from a stream.
    pub fn clear_stream(&mut self, by: &Instance, stream: &str) -> Vec<String> {
        let group = if stream == self.keys.handoffs { SHELVING_GROUP } else { LENDING_GROUP };
        let kept = self.keys.kept_events.clone();
        let args = [&by.session.token, group, "3", by.session.decided_events()];
        self.words("clear", &[by.session.lock(), stream, &kept], &args)
    }
}

/// An entry from a reply.
fn entry(value: Value) -> Entry {
    let Value::Array(parts) = value else { panic!("an entry") };
    let [id, values] = <[Value; 2]>::try_from(parts).expect("id and values");
    Entry::from_parts(&id, values, "read").unwrap()
}

/// A well-formed event from its entry.
pub fn parsed(action: Action, entry: &Entry) -> Event {
    Event::parse(EventKey { id: entry.id, action }, entry.fields()).unwrap()
}

/// The fields of an outcome as text, a line for each name and each value.
fn spelled_out(told: &Told, event: &Event) -> String {
    let mut room = String::new();
    let lines: Vec<&str> =
        told.fields(event, &mut room).flat_map(|(name, value)| [name, value]).collect();
    lines.join("\n")
}

fn words(script: &str, reply: Result<Value, RedisError>) -> Vec<String> {
    match reply {
        Ok(Value::Array(list)) => list.iter().map(show).collect(),
        other => panic!("{script}: {other:?}"),
    }
}
