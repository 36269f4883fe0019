//! Events that were in hand when instances died, perhaps because of one of them (I5).
//!
//! They are tried apart from all others, first in groups, under a note that is there before they
//! are read; those with which a process died even so in smaller groups, and in the end alone.
//! Hundreds are in hand when an instance dies, and few of them, if any, are the cause: all others
//! are soon through. Suspicion lasts until an event is decided, and between two groups it is the
//! turn of those that nobody suspects.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;

use super::waiting::Waiting;
use crate::event::EventKey;

/// How many are tried at a time, by how many processes have died with them in a group.
const GROUPS: [usize; 3] = [128, 16, 1];
const ALONE: usize = GROUPS.len() - 1;

/// An event that may kill.
#[derive(Debug)]
pub struct Suspect {
    /// What it is known by.
    pub key: EventKey,
    /// The event, if it was tried before and waited; else it has not been read yet.
    pub waited: Option<Waiting>,
}

/// How many processes have died while they tried an event apart from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiedWith {
    /// In a group.
    pub in_group: usize,
    /// Alone.
    pub alone: usize,
}

/// The suspects of an instance.
#[derive(Debug, Default)]
pub struct Suspects {
    /// Those not read yet, by the size of their group. What is not known of yet is in the first.
    unread: [VecDeque<EventKey>; GROUPS.len()],
    /// Those to be tried again: the oldest, for which the others wait nearly always, and in turn
    /// all others.
    waited: [BTreeMap<EventKey, Waiting>; GROUPS.len()],
    /// How far the others have had their turn.
    tried_up_to: [Option<EventKey>; GROUPS.len()],
    /// Of each that is known of and not decided, the size of its group.
    size_of: HashMap<EventKey, usize>,
    last_turn: usize,
    had_last_turn: bool,
}

impl Suspects {
    /// An event that is not to be read without a note.
    pub fn add(&mut self, key: EventKey) {
        self.unread[0].push_back(key);
    }

    /// Takes back out of what is to be tried again those that are suspects still.
    pub fn take_back(&mut self, due: &mut Vec<Waiting>) {
        for one in due.extract_if(.., |one| self.size_of.contains_key(&one.event.key)) {
            let key = one.event.key;
            self.waited[self.size_of[&key]].insert(key, one);
        }
    }

    /// Whether there is nobody to be tried.
    pub fn is_empty(&self) -> bool {
        self.unread.iter().all(VecDeque::is_empty) && self.waited.iter().all(BTreeMap::is_empty)
    }

    /// Whether it is their turn: every other time.
    pub fn take_turn(&mut self) -> bool {
        self.had_last_turn = !self.is_empty() && !self.had_last_turn;
        self.had_last_turn
    }

    /// Those to be tried next: those of each size have their turn, read or not, since what waits
    /// comes back again and again. Nobody, if what `look_up` tells of them makes all groups smaller.
    ///
    /// # Errors
    /// What `look_up` says.
    pub fn next_group<E>(
        &mut self,
        look_up: impl FnOnce(&[EventKey]) -> Result<Vec<DiedWith>, E>,
    ) -> Result<Vec<Suspect>, E> {
        // Not read yet; the oldest that waited; all others that waited.
        const KINDS: usize = 3;
        const TURNS: usize = KINDS * GROUPS.len();
        for turn in (1..=TURNS).map(|n| (self.last_turn + n) % TURNS) {
            let (size, kind) = (turn / KINDS, turn % KINDS);
            let ready = match kind {
                0 => !self.unread[size].is_empty(),
                _ => !self.waited[size].is_empty(),
            };
            if ready {
                self.last_turn = turn;
                return match kind {
                    0 => self.next_unread(size, look_up),
                    1 => Ok(self.waited_after(size, None)),
                    _ => Ok(self.next_waited(size)),
                };
            }
        }
        Ok(Vec::new())
    }

    fn next_waited(&mut self, size: usize) -> Vec<Suspect> {
        let mut group = self.waited_after(size, self.tried_up_to[size]);
        if group.is_empty() {
            group = self.waited_after(size, None);
        }
        self.tried_up_to[size] = group.last().map(|one| one.key);
        group
    }

    fn waited_after(&mut self, size: usize, key: Option<EventKey>) -> Vec<Suspect> {
        let after = key.map_or(Bound::Unbounded, Bound::Excluded);
        let waited = self.waited[size].range((after, Bound::Unbounded)).take(GROUPS[size]);
        let keys: Vec<EventKey> = waited.map(|(key, _)| *key).collect();
        let suspect = |key| Suspect { key, waited: self.waited[size].remove(&key) };
        keys.into_iter().map(suspect).collect()
    }

    fn next_unread<E>(
        &mut self,
        size: usize,
        look_up: impl FnOnce(&[EventKey]) -> Result<Vec<DiedWith>, E>,
    ) -> Result<Vec<Suspect>, E> {
        let count = self.unread[size].len().min(GROUPS[size]);
        let mut group: Vec<EventKey> = self.unread[size].drain(..count).collect();
        let is_new = |key: &EventKey| !self.size_of.contains_key(key);
        let new: Vec<EventKey> = group.iter().copied().filter(is_new).collect();
        if !new.is_empty() {
            for (key, died) in new.iter().zip(look_up(&new)?) {
                let size = if died.alone > 0 { ALONE } else { died.in_group.min(ALONE) };
                self.size_of.insert(*key, size);
            }
        }
        for key in group.extract_if(.., |key| self.size_of[key] != size) {
            self.unread[self.size_of[&key]].push_back(key);
        }
        Ok(group.into_iter().map(|key| Suspect { key, waited: None }).collect())
    }

    /// Whether an event is tried alone.
    pub fn is_alone(&self, key: EventKey) -> bool {
        self.size_of.get(&key) == Some(&ALONE)
    }

    /// Events are decided.
    pub fn clear(&mut self, keys: &[EventKey]) {
        for key in keys {
            self.size_of.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Action, AnswerWish, Event};
    use crate::ids::EventId;
    use crate::lending::decide::Doubt;

    fn key(ms: u64) -> EventKey {
        EventKey { id: EventId { ms, seq: 0 }, action: Action::Request }
    }

    fn next(suspects: &mut Suspects, died: &[(u64, usize, usize)]) -> Vec<u64> {
        let look_up = |keys: &[EventKey]| {
            let of = |key: &EventKey| died.iter().find(|(ms, ..)| *ms == key.id.ms);
            let died = keys.iter().map(|key| {
                of(key).map_or(DiedWith::default(), |(_, in_group, alone)| DiedWith {
                    in_group: *in_group,
                    alone: *alone,
                })
            });
            Ok::<_, ()>(died.collect())
        };
        let group = suspects.next_group(look_up).unwrap();
        group.iter().map(|one| one.key.id.ms).collect()
    }

    #[test]
    fn those_that_processes_died_with_are_tried_in_ever_smaller_groups() {
        let mut suspects = Suspects::default();
        (0..30).for_each(|ms| suspects.add(key(ms)));
        let died: Vec<_> = (0..20).map(|ms| (ms, 1, 0)).chain([(28, 2, 0), (29, 1, 1)]).collect();
        let groups: Vec<_> = (0..6).map(|_| next(&mut suspects, &died)).collect();
        assert_eq!(groups[0], (20..28).collect::<Vec<_>>());
        assert_eq!(groups[1], (0..16).collect::<Vec<_>>());
        assert_eq!(groups[2], [28]);
        assert_eq!(groups[3], (16..20).collect::<Vec<_>>());
        assert_eq!(groups[4], [29]);
        assert!(groups[5].is_empty() && suspects.is_empty());
        assert!(suspects.is_alone(key(29)) && !suspects.is_alone(key(3)));
    }

    #[test]
    fn others_have_their_turn_between_two_groups() {
        let mut suspects = Suspects::default();
        assert!(!suspects.take_turn());
        suspects.add(key(1));
        assert!(suspects.take_turn());
        assert!(!suspects.take_turn());
        assert!(suspects.take_turn());
    }

    #[test]
    fn among_those_that_waited_the_oldest_go_on_and_all_others_have_their_turn() {
        let mut suspects = Suspects::default();
        (0..40).for_each(|ms| suspects.add(key(ms)));
        let died: Vec<_> = (0..40).map(|ms| (ms, 1, 0)).collect();
        let mut tried = Vec::new();
        for _ in 0..20 {
            let group = next(&mut suspects, &died);
            let event = |ms: &u64| Event {
                key: key(*ms),
                user: "user1".parse().unwrap(),
                books: Vec::new(),
                answer: AnswerWish::None,
            };
            let mut due: Vec<_> = group
                .iter()
                .map(|ms| Waiting { event: event(ms), doubt: Doubt::None, for_older: true })
                .collect();
            suspects.take_back(&mut due);
            tried.push(group);
        }
        let last = tried.split_off(12);
        assert!(last.iter().filter(|group| **group == (0..16).collect::<Vec<_>>()).count() >= 4);
        assert!((0..40).all(|ms| last.iter().any(|group| group.contains(&ms))), "{last:?}");
    }
}
