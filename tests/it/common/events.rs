//! Events as the reference client writes them, and the outcomes that come of them.

use std::collections::{BTreeMap, BTreeSet};

use super::state::{RawEntries, RawFields, text};
use super::{DEADLINE, Ledger, Redis, eventually};

// The contract's names, written out here once more: a test that took them from the program could
// not see one change.
pub const REQUESTS: &str = "lending_requests_event_stream";
pub const RETURNS: &str = "book_return_requests_event_stream";
pub const SHELVING: &str = "books_for_shelving_event_stream";
pub const OUTCOMES: &str = "lending_outcomes_event_stream";
pub const DEAD_LETTERS: &str = "lending_dead_letter_event_stream";
pub const LENT_BOOKS: &str = "lent_books";
pub const STORAGE: &str = "automated_book_storage";
pub const SHELVES: &str = "shelving_service_state";

/// The fields of one entry.
pub type Fields = BTreeMap<String, String>;

/// Fields from names and values.
pub fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// The command that sends a request or a return, for a pipeline.
pub fn xadd(stream: &str, id: &str, user: &str, books: &str) -> Vec<String> {
    ["XADD", stream, id, "user_id", user, "book_ids", books].map(str::to_owned).to_vec()
}

/// A complete outcome: the four fields that each has, and those that depend.
pub fn outcome(action: &str, id: &str, user: &str, verdict: &str, more: &[(&str, &str)]) -> Fields {
    let mut all = fields(more);
    all.extend(fields(&[
        ("action", action),
        ("event_id", id),
        ("user_id", user),
        ("outcome", verdict),
    ]));
    all
}

/// For histories in which users `a...` request and return and users `b...` request the same books
/// after them: every return took back all that its request was lent, and every later request was
/// granted. (With several instances the later request may come first: then the other was lent
/// less.)
pub fn assert_returns_find_their_loans(outcomes: &[Fields]) {
    let books = |outcome: &Fields| -> BTreeSet<String> {
        let list = outcome.get("book_ids").map(|books| books.split(',').map(str::to_owned));
        list.into_iter().flatten().collect()
    };
    for outcome in outcomes {
        let user = &outcome["user_id"];
        if user.starts_with('b') {
            assert_eq!(outcome["outcome"], "accepted", "{outcome:?}");
            assert!(!outcome.contains_key("lent_to_another"), "{outcome:?}");
        } else if outcome["action"] == "return" {
            let request = outcomes
                .iter()
                .find(|other| other["user_id"] == *user && other["action"] == "request")
                .expect("each has a request");
            assert_eq!(books(outcome), books(request), "{request:?} {outcome:?}");
        }
    }
}

impl Redis {
    /// Adds an entry with any fields under any id (`*`: the next one); gives its id.
    pub fn add(&self, stream: &str, id: &str, fields: &[(&str, &[u8])]) -> String {
        let key = self.key(stream);
        let mut args: Vec<&[u8]> = vec![b"XADD", key.as_bytes(), id.as_bytes()];
        for (name, value) in fields {
            args.extend([name.as_bytes(), value]);
        }
        self.ask(&args)
    }

    /// A request in the reference client's form; gives its id.
    pub fn request(&self, user: &str, books: &str) -> String {
        self.request_at("*", user, books)
    }

    /// A return in the reference client's form; gives its id.
    pub fn give_back(&self, user: &str, books: &str) -> String {
        self.give_back_at("*", user, books)
    }

    pub fn request_at(&self, id: &str, user: &str, books: &str) -> String {
        let fields = [("user_id", user.as_bytes()), ("book_ids", books.as_bytes())];
        self.add(REQUESTS, id, &fields)
    }

    pub fn give_back_at(&self, id: &str, user: &str, books: &str) -> String {
        let fields = [("user_id", user.as_bytes()), ("book_ids", books.as_bytes())];
        self.add(RETURNS, id, &fields)
    }

    /// A hand-off to shelving in the reference's form; gives its id.
    pub fn hand_off(&self, id: &str, books: &str) -> String {
        self.add(SHELVING, id, &[("book_ids", books.as_bytes())])
    }

    /// The entries of a stream with their ids.
    pub fn entries(&self, stream: &str) -> Vec<(String, Fields)> {
        let map = |(id, raw): (String, RawFields)| {
            let count = raw.len();
            let fields: Fields = raw.into_iter().map(|(f, v)| (text(f), text(v))).collect();
            assert_eq!(fields.len(), count, "a field twice in {stream} {id}: {fields:?}");
            (id, fields)
        };
        self.raw_entries(stream).into_iter().map(map).collect()
    }

    /// The same with the fields in their order, byte by byte.
    pub fn raw_entries(&self, stream: &str) -> RawEntries {
        self.ask(&["XRANGE", &self.key(stream), "-", "+"])
    }

    /// How many entries a stream holds.
    pub fn length(&self, stream: &str) -> usize {
        self.ask(&["XLEN", &self.key(stream)])
    }

    /// The names under which instances read a stream, in the order of the alphabet.
    pub fn consumers(&self, stream: &str) -> Vec<String> {
        let consumers: Vec<BTreeMap<String, redis::Value>> =
            self.ask(&["XINFO", "CONSUMERS", &self.key(stream), group_of(stream)]);
        let name = |mut consumer: BTreeMap<_, _>| consumer.remove("name").expect("each has one");
        consumers.into_iter().map(|one| redis::from_redis_value(name(one)).unwrap()).collect()
    }

    /// All outcomes, in the order in which they were committed.
    pub fn outcomes(&self) -> Vec<Fields> {
        self.entries(OUTCOMES).into_iter().map(|(_, fields)| fields).collect()
    }

    /// The outcomes of one event that are there now.
    pub fn outcomes_of(&self, action: &str, id: &str) -> Vec<Fields> {
        let mut all = self.outcomes();
        all.retain(|outcome| outcome["action"] == action && outcome["event_id"] == id);
        all
    }

    /// Waits for the outcome of a request.
    pub fn outcome_of_request(&self, id: &str) -> Fields {
        self.outcome_of("request", id)
    }

    /// Waits for the outcome of a return.
    pub fn outcome_of_return(&self, id: &str) -> Fields {
        self.outcome_of("return", id)
    }

    fn outcome_of(&self, action: &str, id: &str) -> Fields {
        let mut found = Vec::new();
        let came = eventually(DEADLINE, || {
            found = self.outcomes_of(action, id);
            !found.is_empty()
        });
        assert!(came, "no outcome of {action} {id} came in time");
        assert_eq!(found.len(), 1, "more than one outcome");
        found.remove(0)
    }

    /// Waits until what is sent gets an id of a later millisecond than all that is there by now. For
    /// where milliseconds are compared: a quick test sends into that of its last outcome.
    pub fn wait_for_next_millisecond(&self) {
        let now = || self.ask::<(u64, u64)>(&["TIME"]);
        let (seconds, micros) = now();
        let is_later = |(s, us): (u64, u64)| (s, us / 1000) > (seconds, micros / 1000);
        assert!(eventually(DEADLINE, || is_later(now())), "Redis' clock stands");
    }

    /// Waits until there are `count` outcomes, as long as there are more and more, and then until
    /// nothing is left to do; each event has one outcome and no more.
    pub fn assert_one_outcome_each(&self, count: usize) -> Vec<Fields> {
        let mut last = self.length(OUTCOMES);
        while last < count {
            let more = eventually(DEADLINE, || self.length(OUTCOMES) > last);
            assert!(more, "{last} outcomes of {count} came, and then no more");
            last = self.length(OUTCOMES);
        }
        self.wait_until_drained(DEADLINE);
        let outcomes = self.outcomes();
        let mut events: Vec<_> = outcomes.iter().map(|o| (&o["action"], &o["event_id"])).collect();
        events.sort_unstable();
        let twice: Vec<_> = events.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "events with two outcomes: {twice:?}");
        assert_eq!(outcomes.len(), count, "outcomes for events that nobody sent");
        outcomes
    }

    /// The ledger of this branch as it is now.
    pub fn ledger(&self) -> Ledger {
        Ledger::of(&self.everything().branch(&self.key("")))
    }
}

/// An instance that is not one of ours: a consumer with a lock, which takes events and holds
/// them as long as the test likes.
pub struct Other<'a> {
    redis: &'a Redis,
    name: &'static str,
}

impl<'a> Other<'a> {
    /// An instance that is alive for a minute, with a lease as ours have.
    pub fn alive(redis: &'a Redis, name: &'static str) -> Self {
        let lock = redis.key(&format!("instance_lock:{name}"));
        redis.cmd(&["SET", &lock, "somebody else", "PX", "60000"]);
        Self { redis, name }
    }

    /// An instance of the reference application that was killed and left its lock, without a
    /// TTL.
    pub fn of_the_reference(redis: &'a Redis, name: &'static str) -> Self {
        redis.cmd(&["SET", &redis.key(&format!("instance_lock:{name}")), "1"]);
        Self { redis, name }
    }

    /// One that is gone, with its lock.
    pub fn gone(redis: &'a Redis, name: &'static str) -> Self {
        Self { redis, name }
    }

    /// Takes the next event of a stream in hand; gives its id. The group is made as the
    /// reference makes it.
    pub fn take(&self, stream: &str) -> String {
        let (key, group) = (self.redis.key(stream), group_of(stream));
        // It is there already where an instance runs.
        let _ = self.redis.try_ask::<()>(&["XGROUP", "CREATE", &key, group, "0", "MKSTREAM"]);
        let got: Vec<(String, RawEntries)> = self.redis.ask(&[
            "XREADGROUP",
            "GROUP",
            group,
            self.name,
            "COUNT",
            "1",
            "STREAMS",
            &key,
            ">",
        ]);
        got[0].1[0].0.clone()
    }

    /// Adds a request and has it in hand at once: it goes to nobody else.
    pub fn takes_new(&self, id: &str, user: &str, books: &str) {
        let (key, group) = (self.redis.key(REQUESTS), group_of(REQUESTS));
        self.at_once(&[
            &["XADD", &key, id, "user_id", user, "book_ids", books],
            &["XREADGROUP", "GROUP", group, self.name, "COUNT", "1", "STREAMS", &key, ">"],
        ]);
    }

    /// Is done with a request in hand, and deletes it.
    pub fn finishes(&self, id: &str) {
        self.acknowledge(REQUESTS, id);
        self.redis.cmd(&["XDEL", &self.redis.key(REQUESTS), id]);
    }

    /// Acknowledges an event and leaves it in its stream, as the reference does.
    pub fn acknowledge(&self, stream: &str, id: &str) {
        let acknowledged: u32 =
            self.redis.ask(&["XACK", &self.redis.key(stream), group_of(stream), id]);
        assert_eq!(acknowledged, 1, "{id} was not pending");
    }

    /// Lends a book that was fetched before, with the reference's plain commands.
    pub fn lend(&self, user: &str, book: &str) {
        let [loans, count] = [LENT_BOOKS, &format!("user:{user}:count")].map(|k| self.redis.key(k));
        self.at_once(&[&["HSET", &loans, book, user], &["INCR", &count]]);
    }

    /// Takes a book back into automated storage.
    pub fn take_back(&self, user: &str, book: &str) {
        let [loans, count, storage] =
            [LENT_BOOKS, &format!("user:{user}:count"), STORAGE].map(|name| self.redis.key(name));
        self.at_once(&[&["HDEL", &loans, book], &["DECR", &count], &["SADD", &storage, book]]);
    }

    /// As the reference application does it: a daemon beside it must not see one without the other.
    fn at_once(&self, commands: &[&[&str]]) {
        let all = [&[&["MULTI"][..]], commands, &[&["EXEC"][..]]].concat();
        let owned = |command: &&[&str]| command.iter().map(|word| (*word).to_owned()).collect();
        self.redis.pipeline(&all.iter().map(owned).collect::<Vec<Vec<String>>>());
    }

    /// Dies with its lock.
    pub fn die(self) {
        self.redis.cmd(&["DEL", &self.redis.key(&format!("instance_lock:{}", self.name))]);
    }
}

fn group_of(stream: &str) -> &'static str {
    if stream == SHELVING { "shelving_service" } else { "lending_service" }
}
