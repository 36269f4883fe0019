//! LendingService: the robotic arm with its small storage. It grants and denies requests and takes
//! returns, and it owns the loans, the counts, the storage and the states of books.
//!
//! A reader thread takes events from both streams and gives them to the worker, which decides them
//! through one script ([`decide`]): in a thread of its own, or a few at a time in the reader's, as long as
//! nothing else is in hand ([`intake`]). [`reject`] gives up what cannot be decided, `lone_tries` counts the
//! tries of what instances have died with. What the main storage has, the worker learns from
//! [`crate::shelving::fetch`] alone. A listener thread hears when other instances have gone on.

// How events come in.
pub mod reader;
pub mod intake;
// The worker, and its two calls.
pub mod worker_thread;
pub mod worker;
pub mod decide;
pub mod reject;
// What is told of each event.
mod outcome_log;
// What the worker goes by: which books are asked for and when, who waits, and how often that is tried.
mod asking;
mod busy;
mod waiting;
mod pace;
// What other instances tell.
pub(crate) mod listener;
pub mod news;
// What instances have died with.
mod suspects;
pub(crate) mod lone_tries;

use crate::event::{Action, Event, EventKey, Fault};
use crate::stream::Entry;

/// How this service is called in the log.
pub const LOG: &str = "lending";

/// How many books automated storage has room for (library-lending(7), Books and users).
pub const STORAGE_CAPACITY: usize = 20;

/// How many books a user may have (library-lending(7), Requests).
pub const MOST_BOOKS_IN_HAND: usize = 5;

/// Up to this number, events that come together are no backlog, and somebody waits for each of them: if
/// nothing else is in hand they are decided where they were read, and those who wait for the outcomes run
/// first.
const FEW: usize = 16;

/// An event on its way to the worker.
#[derive(Debug)]
pub struct Delivered {
    /// What it is known by.
    pub key: EventKey,
    /// What is in it.
    pub content: Content,
    /// Whether nobody had it in hand before.
    pub fresh: bool,
}

/// What the reader makes of an entry.
#[derive(Debug)]
pub enum Content {
    /// A well-formed event.
    Event(Event),
    /// An event that cannot be worked on.
    Fault(Fault),
    /// Not looked at: the event was in hand when instances died, perhaps because of it.
    Suspect,
}

impl Delivered {
    /// An event from its entry.
    pub fn read(action: Action, entry: &Entry, fresh: bool) -> Self {
        let key = EventKey { id: entry.id, action };
        let content = match Event::parse(key, entry.fields()) {
            Ok(event) => Content::Event(event),
            Err(fault) => Content::Fault(fault),
        };
        Self { key, content, fresh }
    }

    /// What it is known by, and how many books it names as far as that was looked at.
    pub fn key_and_books(&self) -> (EventKey, usize) {
        let books = match &self.content {
            Content::Event(event) => event.books.len(),
            Content::Fault(_) | Content::Suspect => 0,
        };
        (self.key, books)
    }

    /// An event whose content is not looked at yet.
    pub fn suspect(key: EventKey) -> Self {
        Self { key, content: Content::Suspect, fresh: false }
    }
}
