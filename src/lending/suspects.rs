//! Events that were in hand when instances died, perhaps because of one of them (I5).
//!
//! They are tried apart from all others, first in groups, under a note that is there before they
//! are read; those with which a process died even so in smaller groups, and in the end alone.
//! Hundreds are in hand when an instance dies, and few of them, if any, are the cause: all others
//! are soon through. Suspicion lasts until an event is decided, and between two groups it is the
//! turn of those that nobody suspects.

use std::collections::{HashMap, VecDeque};

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
    /// Those to be tried, by the size of their group. What is not known of yet is in the first.
    lists: [VecDeque<Suspect>; GROUPS.len()],
    /// Of each that is known of and not decided, its list.
    list_of: HashMap<EventKey, usize>,
    last: usize,
    others_turn: bool,
}

impl Suspects {
    /// An event that is not to be read without a note.
    pub fn add(&mut self, key: EventKey) {
        self.lists[0].push_back(Suspect { key, waited: None });
    }

    /// Takes back out of what is to be tried again those that are suspects still.
    pub fn take_back(&mut self, due: &mut Vec<Waiting>) {
        for one in due.extract_if(.., |one| self.list_of.contains_key(&one.event.key)) {
            let key = one.event.key;
            self.lists[self.list_of[&key]].push_back(Suspect { key, waited: Some(one) });
        }
    }

    /// Whether there is nobody to be tried.
    pub fn is_empty(&self) -> bool {
        self.lists.iter().all(VecDeque::is_empty)
    }

    /// Whether it is their turn: every other time.
    pub fn take_turn(&mut self) -> bool {
        self.others_turn = !self.is_empty() && !self.others_turn;
        self.others_turn
    }

    /// Those to be tried next. Each list has its turn: what waits comes back to its own again and
    /// again. Nobody, if what `look_up` tells of them puts all into other lists.
    ///
    /// # Errors
    /// What `look_up` says.
    pub fn next_group<E>(
        &mut self,
        look_up: impl FnOnce(&[EventKey]) -> Result<Vec<DiedWith>, E>,
    ) -> Result<Vec<Suspect>, E> {
        let mut turns = (1..=GROUPS.len()).map(|n| (self.last + n) % GROUPS.len());
        let Some(list) = turns.find(|list| !self.lists[*list].is_empty()) else {
            return Ok(Vec::new());
        };
        self.last = list;
        let count = self.lists[list].len().min(GROUPS[list]);
        let mut group: Vec<Suspect> = self.lists[list].drain(..count).collect();
        let is_new = |key: &EventKey| !self.list_of.contains_key(key);
        let new: Vec<EventKey> = group.iter().map(|one| one.key).filter(is_new).collect();
        if !new.is_empty() {
            for (key, died) in new.iter().zip(look_up(&new)?) {
                let list = if died.alone > 0 { ALONE } else { died.in_group.min(ALONE) };
                self.list_of.insert(*key, list);
            }
        }
        for one in group.extract_if(.., |one| self.list_of[&one.key] != list) {
            self.lists[self.list_of[&one.key]].push_back(one);
        }
        Ok(group)
    }

    /// Whether an event is tried alone.
    pub fn is_alone(&self, key: EventKey) -> bool {
        self.list_of.get(&key) == Some(&ALONE)
    }

    /// Events are decided.
    pub fn clear(&mut self, keys: &[EventKey]) {
        for key in keys {
            self.list_of.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Action;
    use crate::ids::EventId;

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
}
