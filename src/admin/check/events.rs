//! I4, as far as it can be seen: what has an outcome has one, and is not worked on once more. What
//! lies in the dead letters is not worked on either.
//!
//! An outcome, or a dead letter, is written in the same step that takes the event away; so an event
//! that is still there after its outcome was read is wrong, however busy the library is.

use std::collections::{BTreeSet, HashSet};
use std::sync::LazyLock;
use std::thread;

use super::{Check, MOST_SUSPECTS, NOT_WITHOUT_GUESSING, PAGE, PAUSE, Violation};
use crate::admin::dead_letters;
use crate::admin::failure::Failure;
use crate::error::Error;
use crate::event::Action;
use crate::ids::EventId;
use crate::keys::Stream;
use crate::script::{Script, lua, text};
use crate::stream;

static UNDONE: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("order", "groups", "undone")));

/// Outcomes that are remembered in one pass, to find those that are there twice: 32 MB or so.
const OUTCOMES_IN_A_PASS: u64 = 500_000;

type Suspects = BTreeSet<(&'static str, EventId)>;

impl Check<'_> {
    /// Looks at the outcomes and at the dead letters.
    pub(super) fn events(&mut self) -> Result<(), Failure> {
        self.outcomes()?;
        let run = self.run;
        let mut suspects = Suspects::new();
        let mut after = None;
        loop {
            let page = stream::page(
                &mut self.connection,
                &run.keys.dead_letters,
                after,
                dead_letters::PAGE,
            )?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            for letter in &page {
                let stream = letter.field("stream").and_then(|key| Stream::of_key(&run.keys, key));
                let id = letter.field("event_id").and_then(EventId::from_bytes);
                if let (Some(stream), Some(id)) = (stream, id) {
                    self.suspect(&mut suspects, stream, &[id], "rejected_and_waiting")?;
                }
            }
        }
        self.settle_events(suspects, "rejected_and_waiting")
    }

    fn outcomes(&mut self) -> Result<(), Failure> {
        let run = self.run;
        let outcomes = run.keys.outcomes.as_str();
        let length: u64 = self.ask(redis::cmd("XLEN").arg(outcomes), "count the outcomes")?;
        let passes = length / OUTCOMES_IN_A_PASS + 1;
        let mut suspects = Suspects::new();
        for pass in 0..passes {
            let mut seen = HashSet::new();
            let mut after = None;
            loop {
                let page = stream::page(&mut self.connection, outcomes, after, PAGE)?;
                let Some(last) = page.last() else { break };
                after = Some(last.id);
                for action in Action::ALL {
                    let (stream, word) = (Stream::from(action), action.as_str().as_bytes());
                    let of_action = page.iter().filter(|it| it.field("action") == Some(word));
                    let ids: Vec<EventId> = of_action
                        .filter_map(|it| EventId::from_bytes(it.field("event_id")?))
                        .collect();
                    let in_pass =
                        ids.iter().filter(|id| (id.ms.wrapping_add(id.seq)) % passes == pass);
                    for id in in_pass {
                        if !seen.insert((stream.word(), *id)) {
                            self.report(twice(stream, *id), NOT_WITHOUT_GUESSING)?;
                        }
                    }
                    if pass == 0 {
                        self.suspect(&mut suspects, stream, &ids, "decided_and_waiting")?;
                    }
                }
            }
        }
        self.settle_events(suspects, "decided_and_waiting")
    }

    fn suspect(
        &mut self,
        suspects: &mut Suspects,
        stream: Stream,
        ids: &[EventId],
        fault: &'static str,
    ) -> Result<(), Failure> {
        if self.lost.contains(&stream) {
            return Ok(());
        }
        let ids: Vec<String> = ids.iter().map(EventId::to_string).collect();
        for id in self.undone(stream, &ids)? {
            suspects.extend(id.parse().ok().map(|id| (stream.word(), id)));
        }
        if suspects.len() >= MOST_SUSPECTS {
            self.settle_events(std::mem::take(suspects), fault)?;
        }
        Ok(())
    }

    fn settle_events(&mut self, suspects: Suspects, fault: &'static str) -> Result<(), Failure> {
        if suspects.is_empty() {
            return Ok(());
        }
        thread::sleep(PAUSE);
        for stream in Stream::ALL {
            let of_stream: Vec<String> = suspects
                .iter()
                .filter(|(word, _)| *word == stream.word())
                .map(|(_, id)| id.to_string())
                .collect();
            // It may have been lost since the groups were looked at.
            if !of_stream.is_empty() && self.report_if_lost(stream)? {
                continue;
            }
            for ids in of_stream.chunks(PAGE) {
                for id in self.undone(stream, ids)? {
                    let has = match fault {
                        "decided_and_waiting" => "has its outcome",
                        _ => "is in the dead letters",
                    };
                    let violation = Violation {
                        invariant: "I4",
                        fault,
                        facts: vec![("stream", stream.word().into()), ("event_id", id[..].into())],
                        words: format!(
                            "event {id} of {} {has} and is still worked on",
                            stream.word()
                        ),
                    };
                    self.report(violation, NOT_WITHOUT_GUESSING)?;
                }
            }
        }
        Ok(())
    }

    /// Those of these entries, of a page at most, that are waiting or in work.
    pub(super) fn undone(&mut self, stream: Stream, ids: &[String]) -> Result<Vec<String>, Error> {
        const DOING: &str = "look for events";
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let key = stream.key(&self.run.keys);
        let mut call = UNDONE.keys(&[key]);
        let reply = call.arg(stream.group()).arg(ids).run(&mut self.connection, DOING)?;
        let ids = reply.rest.iter().map(|id| text(id).map(str::to_owned));
        ids.collect::<Option<_>>().ok_or_else(|| reply.unexpected(DOING))
    }
}

fn twice(stream: Stream, id: EventId) -> Violation {
    Violation {
        invariant: "I4",
        fault: "two_outcomes",
        facts: vec![("stream", stream.word().into()), ("event_id", id.to_string()[..].into())],
        words: format!("event {id} of {} has two outcomes", stream.word()),
    }
}
