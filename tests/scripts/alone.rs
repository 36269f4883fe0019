//! A request that comes alone is decided by alone.lua where that can, else by decide.lua's own way.
//! Both must come to the same, whatever there is in Redis.

use library_lending::event::{Action, AnswerWish, Event};
use library_lending::keys::LENDING_GROUP;
use library_lending::lending::decide::{Fetched, Finality, Try};
use library_lending::session::Neighbours;
use library_lending::shelving::fetch::Answer;
use redis::Value;

use crate::choices::{Choices, check};
use crate::library::Library;
use crate::redis::Dump;
use crate::world::*;

/// A library, and a request or two in it for whose books the main storage was just asked.
struct Case {
    events: Vec<Event>,
    neighbours: Neighbours,
    keep_events: bool,
    keep_outcomes: u64,
    /// What there is before the event comes, and what somebody does after shelving has answered.
    before: Vec<Vec<String>>,
    after: Vec<Vec<String>>,
}

fn command(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

/// One of these at random, the first is the simplest.
fn one_of<'a>(choices: &mut Choices, words: &[&'a str]) -> &'a str {
    words[choices.below(words.len())]
}

/// A request that can be granted, but for up to three strange things.
fn any_case(library: &Library, choices: &mut Choices) -> Case {
    let keys = &library.keys;
    let number = choices.between(1, 3);
    let books: Vec<String> = (0..number).map(|n| format!("book{n}")).collect();
    let mut first = event(Action::Request, id(5, 0), "user1", &books.join(","));
    if choices.one_in(2) {
        first.answer = AnswerWish::Wait;
    }
    let (count, reservation) = (keys.count(&first.user), keys.reservation(first.key.id));
    // Ids that are given from here on are told by these, and not by Redis' clock.
    let mut before: Vec<_> = [&keys.outcomes, &keys.handoffs]
        .map(|stream| command(&["XADD", stream, "99999999999999-0", "book_ids", "ulysses"]))
        .into();
    let in_hand = choices.below(6);
    if in_hand > 0 {
        before.push(command(&["SET", &count, &in_hand.to_string()]));
        let noted = (0..in_hand).map(|n| format!("noted{n}")).collect::<Vec<_>>().join(",");
        before.push(command(&["HSET", &keys.books_of_users, "user1", &noted]));
    }
    let mut events = vec![first];
    let mut after = Vec::new();
    let mut neighbours = Neighbours::default();
    let keep_events = choices.one_in(4);
    // With none kept there is always one to be dropped.
    let keep_outcomes = [1_000, 0][choices.below(2)];
    for _ in 0..choices.below(4) {
        let book = &books[choices.below(books.len())];
        match choices.below(15) {
            0 => before.push(command(&["SADD", &keys.storage, book])),
            1 => {
                let who = one_of(choices, &["user2", "user1", ""]);
                before.push(command(&["HSET", &keys.loans, book, who]));
            }
            2 => {
                let states = ["?5-0", "?4-0", "=4-0", ">99999999999999-0", "", "x"];
                let state = one_of(choices, &states);
                before.push(command(&["HSET", &keys.book_states, book, state]));
            }
            3 => {
                let has = one_of(choices, &["5-0", "4-0", "x"]);
                before.push(command(&["HSET", &keys.shelves, book, has]));
            }
            4 => {
                let text = one_of(choices, &["2", "0", "-1", "07", "0x2", "2x", ""]);
                before.push(command(&["SET", &count, text]));
            }
            5 => {
                before.push(command(&["DEL", &count]));
                before.push(command(&["RPUSH", &count, "1"]));
            }
            6 => {
                let noted = ["kim", "kim,book0", "book0", "", ",", "kim,,momo", "a,b,c,d,e"];
                let noted = one_of(choices, &noted);
                before.push(command(&["HSET", &keys.books_of_users, "user1", noted]));
            }
            7 => before.push(command(&["SADD", &reservation, book, "another"])),
            8 => before.push(command(&["RPUSH", &reservation, book])),
            9 => before.push(command(&["HSET", &keys.ties, "return:5-0", "request:5-0"])),
            10 => after.push(command(&["XACK", &keys.requests, LENDING_GROUP, "5-0"])),
            11 => {
                let shared = [
                    &keys.handoffs,
                    &keys.outcomes,
                    &keys.loans,
                    &keys.book_states,
                    &keys.books_of_users,
                    &keys.storage,
                    &keys.requests,
                    &keys.ties,
                ];
                let key = shared[choices.below(shared.len())];
                after.push(command(&["DEL", key]));
                after.push(command(&["SET", key, "spoilt"]));
            }
            12 => {
                let n = events.len() as u64;
                events.push(event(Action::Request, id(5 + n, 0), "user2", &format!("momo{n}")));
            }
            13 => {
                // A name that could be taken for the form of a larger event behind the names.
                let form = format!("request {} fetched 0 sure", number + 1);
                neighbours.reference.push(form.into_bytes());
            }
            _ => {
                let form = format!("request {} fetched 0 sure", number + 2);
                neighbours.silent.extend([b"0".to_vec(), form.into_bytes()]);
            }
        }
    }
    Case { events, neighbours, keep_events, keep_outcomes, before, after }
}

fn lay_down(library: &mut Library, commands: &[Vec<String>]) {
    for command in commands {
        // Two strange things can be in each other's way.
        let _ = library.redis.try_ask::<Value>(command);
    }
}

/// What came of a case.
#[derive(Debug, PartialEq)]
struct Played {
    /// The reply to the call, unless it is an error.
    reply: Option<Vec<Value>>,
    /// What there is then.
    there: Dump,
    /// How long the first answer is kept, in minutes or so.
    answer_kept: i64,
    /// Whether other instances were told.
    rang: bool,
}

fn played(library: &mut Library, case: &Case) -> Played {
    library.clear();
    library.keep_events(case.keep_events);
    library.keep_outcomes(case.keep_outcomes);
    let by = library.instance("worker1");
    lay_down(library, &case.before);
    for event in &case.events {
        library.add(event);
    }
    library.take("worker1", Action::Request, case.events.len());
    let books = case.events.iter().flat_map(|it| it.books.iter().map(|book| (book, it.key.id)));
    let asked: Vec<_> = books.map(|(book, id)| (book.clone(), id)).collect();
    library.fetch(&by, &asked).unwrap();
    lay_down(library, &case.after);
    let left = |event: &Event| {
        let answers = vec![Some(Answer::Left); event.books.len()];
        let fetched = Some(Fetched { finality: Finality::First, answers });
        Try { event: event.clone(), doubt: Doubt::None, fetched }
    };
    let tries: Vec<Try> = case.events.iter().map(left).collect();
    let fetch = library.fetches();
    library.redis.ask::<()>(&["CONFIG", "RESETSTAT"]);
    let reply = match library.decide_raw(&by, &case.neighbours, &tries, Some(fetch)) {
        Ok(Value::Array(verdicts)) => Some(verdicts),
        Ok(other) => panic!("{other:?}"),
        Err(_) => None,
    };
    let told: String = library.redis.ask(&["INFO", "commandstats"]);
    let answer = library.keys.answer(case.events[0].key);
    let kept_ms: i64 = library.redis.ask(&["PTTL", &answer]);
    let answer_kept = (kept_ms + 30_000) / 60_000;
    Played { reply, there: library.dump(), answer_kept, rang: told.contains("cmdstat_publish") }
}

/// The same library twice: with alone.lua, and without.
struct BothWays {
    short: Library,
    long: Library,
}

impl BothWays {
    fn new() -> Self {
        let mut both = Self { short: Library::new(), long: Library::new() };
        both.long.patch("decide", &[("local reply = lend_alone(tell)", "local reply")]);
        both.change(&[]);
        both
    }

    /// Changes alone.lua in these parts, from the text as it stands.
    fn change(&mut self, parts: &[(&str, &str)]) {
        // Its replies are marked, to be told from the other way's.
        let mark = "  if reply then\n    reply[2] = 'alone'\n    return reply";
        self.short
            .patch("decide", &[parts, &[("  if reply then\n    return reply", mark)]].concat());
    }

    /// Plays a case both ways. Returns whether alone.lua decided it, or how it came out differently.
    fn play(&mut self, choices: &mut Choices) -> Result<bool, String> {
        let case = any_case(&self.short, choices);
        let mut short = played(&mut self.short, &case);
        let mark = Value::BulkString(b"alone".to_vec());
        let reply = short.reply.as_mut();
        let by_itself = reply.and_then(|reply| reply.pop_if(|last| *last == mark)).is_some();
        let expected = played(&mut self.long, &case);
        let Case { before, after, .. } = case;
        ensure!(
            short == expected,
            "{before:?}, then {after:?}:\n{short:?}\ninstead of\n{expected:?}\n{}",
            expected.there.difference(&short.there)
        );
        Ok(by_itself)
    }
}

#[test]
fn a_request_that_comes_alone_is_decided_as_any_other() {
    let mut both = BothWays::new();
    let (mut by_itself, cases) = (0, 400);
    check(cases, |choices| {
        by_itself += u64::from(both.play(choices)?);
        Ok(())
    });
    assert!(by_itself > cases / 10, "{by_itself} of {cases} were decided by alone.lua");
}

/// Whatever alone.lua looks at, some library shows why.
#[test]
fn nothing_that_is_looked_at_can_be_left_out() {
    let mut both = BothWays::new();
    for (part, instead) in [
        (" or ARGV[11] ~= '0'", ""),
        (" or ARGV[12] ~= '0'", ""),
        ("#ARGV ~= 15 + n", "false"),
        ("number_of_keys == 1 and text and", "text and"),
        ("tonumber(string.match(text, '^%d$'))", "tonumber(text)"),
        (" or in_hand + n > limit", ""),
        ("if loans[k] or states[k]", "if states[k]"),
        ("if loans[k] or states[k]", "if loans[k]"),
        (" or stored[k] == 1", ""),
        ("    if not is_new[book] then", "    if true then"),
        ("if noted + n > limit then", "if false then"),
        ("redis.call('XLEN', KEYS[2])", ""),
        ("redis.call('XLEN', KEYS[4])", ""),
        ("tell(KEYS[14], answer_ms,", "tell(KEYS[14], 1000,"),
        ("redis.pcall('PUBLISH', ARGV[9], ARGV[8] .. ", "tostring("),
        ("redis.call('XTRIM', KEYS[8], 'MAXLEN', '~', ARGV[4])\n  if", "if"),
        (
            "if redis.call('XACK', KEYS[2], ARGV[5], id) == 0 then",
            "redis.call('XACK', KEYS[2], ARGV[5], id) if false then",
        ),
        (
            "if ARGV[7] ~= 'keep' then\n    redis.call('XDEL', KEYS[2], id)",
            "if true then\n    redis.call('XDEL', KEYS[2], id)",
        ),
    ] {
        both.change(&[(part, instead)]);
        let shows = (0..5_000).any(|seed| both.play(&mut Choices::random(seed)).is_err());
        assert!(shows, "alone.lua is as good with {instead:?} instead of {part:?}");
    }
}
