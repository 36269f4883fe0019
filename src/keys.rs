//! Every name that this system uses in Redis, in one file.
//!
//! The names of the first block are shared with the reference application (library-lending(7), Keys in Redis):
//! they are never renamed and what is in them keeps its form. Those of the second block are ours.
//! With a branch, every key begins with `{branch}:`; the braces are a Redis Cluster hash tag, so
//! that all keys of a branch live in one slot and one script can touch them together.

use crate::event::{Action, EventKey};
use crate::ids::{EventId, InstanceName, SubmissionId, UserId};

/// The consumer group of LendingService on requests and returns.
pub const LENDING_GROUP: &str = "lending_service";
/// The consumer group of ShelvingService on the books handed over for shelving.
pub const SHELVING_GROUP: &str = "shelving_service";

/// The streams that have a consumer group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Requests.
    Requests,
    /// Returns.
    Returns,
    /// Books handed over to shelving.
    HandOffs,
}

impl Stream {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Requests, Self::Returns, Self::HandOffs];

    /// The word for it, as an operator types it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Returns => "returns",
            Self::HandOffs => "handoffs",
        }
    }

    /// Its key.
    pub fn key(self, keys: &Keys) -> &str {
        match self {
            Self::Requests => &keys.requests,
            Self::Returns => &keys.returns,
            Self::HandOffs => &keys.handoffs,
        }
    }

    /// The stream of that key; none if it is another key.
    pub fn of_key(keys: &Keys, key: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| stream.key(keys).as_bytes() == key)
    }

    /// Its consumer group.
    pub fn group(self) -> &'static str {
        match self {
            Self::Requests | Self::Returns => LENDING_GROUP,
            Self::HandOffs => SHELVING_GROUP,
        }
    }

    /// What its events ask LendingService for; none if they are ShelvingService's.
    pub fn action(self) -> Option<Action> {
        match self {
            Self::Requests => Some(Action::Request),
            Self::Returns => Some(Action::Return),
            Self::HandOffs => None,
        }
    }
}

impl From<Action> for Stream {
    fn from(action: Action) -> Self {
        match action {
            Action::Request => Self::Requests,
            Action::Return => Self::Returns,
        }
    }
}

/// The keys of one branch of the library. Made once at start: the fixed names are not put
/// together again for each event.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,

    // Shared with the reference application.
    /// Stream of requests.
    pub requests: String,
    /// Stream of returns.
    pub returns: String,
    /// Stream of books handed over to ShelvingService.
    pub handoffs: String,
    /// Set of the books in automated storage.
    pub storage: String,
    /// Hash: lent book -> user.
    pub loans: String,
    /// ShelvingService's hash: book that is out of the main storage -> request that fetched it.
    pub shelves: String,

    // New here.
    /// LendingService's hash: book -> what lending last did with it. `?17-0` reserved by request
    /// 17-0, `=17-0` lent to request 17-0, `>17-0` on its way to the shelves in hand-off 17-0.
    pub book_states: String,
    /// Stream of outcomes.
    pub outcomes: String,
    /// Stream of events that could not be processed.
    pub dead_letters: String,
    /// Hash: event that was in hand when instances died -> how often it was tried since, in a group and
    /// alone, and by whom it is being tried, see `lone_try.lua`.
    pub lone_tries: String,
    /// Hash of events that wait only for others of their own millisecond.
    pub ties: String,
    /// Hash: user -> books that are or were lent to the user, joined by commas; to find a user's
    /// loans without going through all. The loans alone say what is true.
    pub books_of_users: String,
    /// Hash of facts that outlive the consumer groups: stream -> why its group must not be
    /// recreated at 0: decided events are still in its stream, see `--keep-events`.
    pub kept_events: String,
    /// ShelvingService's hash of answers: instance -> the last one to it, for its next call to find.
    pub fetch_answers: String,
    /// Hash of instances that have noticed that a consumer group is lost: instance -> the token with which
    /// it did. Empty but for the time until the group is made again.
    pub lost_groups: String,
    /// Channel, no key: instances ring here when they have decided something or put books on their
    /// shelves, for those that wait for it. What they say is in `lending/news.rs`.
    pub bell: String,
}

impl Keys {
    /// The keys of `branch`, or of a library without branches.
    pub fn new(branch: Option<&str>) -> Self {
        let prefix = branch.map(|name| format!("{{{name}}}:")).unwrap_or_default();
        let key = |name: &str| format!("{prefix}{name}");
        Self {
            requests: key("lending_requests_event_stream"),
            returns: key("book_return_requests_event_stream"),
            handoffs: key("books_for_shelving_event_stream"),
            storage: key("automated_book_storage"),
            loans: key("lent_books"),
            shelves: key("shelving_service_state"),
            book_states: key("lending_book_states"),
            outcomes: key("lending_outcomes_event_stream"),
            dead_letters: key("lending_dead_letter_event_stream"),
            lone_tries: key("lending_lone_tries"),
            ties: key("lending_ties"),
            books_of_users: key("lending_books_of_users"),
            kept_events: key("lending_kept_events"),
            fetch_answers: key("shelving_service_answers"),
            lost_groups: key("lending_lost_groups"),
            bell: key("lending_bell"),
            prefix,
        }
    }

    /// The stream that carries events of one kind.
    pub fn stream(&self, action: Action) -> &str {
        Stream::from(action).key(self)
    }

    /// The keys that all share, and the type of each.
    pub fn types(&self) -> [(&str, &'static str); 15] {
        [
            (&self.requests, "stream"),
            (&self.returns, "stream"),
            (&self.handoffs, "stream"),
            (&self.outcomes, "stream"),
            (&self.dead_letters, "stream"),
            (&self.storage, "set"),
            (&self.loans, "hash"),
            (&self.shelves, "hash"),
            (&self.book_states, "hash"),
            (&self.lone_tries, "hash"),
            (&self.ties, "hash"),
            (&self.books_of_users, "hash"),
            (&self.kept_events, "hash"),
            (&self.fetch_answers, "hash"),
            (&self.lost_groups, "hash"),
        ]
    }

    /// String: how many books are in the user's hands.
    pub fn count(&self, user: &UserId) -> String {
        [&self.prefix, "user:", user.as_str(), ":count"].concat()
    }

    /// Set: the books that a request has reserved so far. We read what the reference application
    /// left there; our own reservations are in [`Keys::book_states`].
    pub fn reservation(&self, request: EventId) -> String {
        // Not by `format!`: it takes more than twice as long, and each event needs this name.
        const ROOM: usize = "request:".len() + 41 + ":temp".len();
        let mut key = String::with_capacity(self.prefix.len() + ROOM);
        key.push_str(&self.prefix);
        key.push_str("request:");
        request.push_to(&mut key);
        key.push_str(":temp");
        key
    }

    /// As [`Keys::count`], for the user of a loan as Redis tells it.
    pub fn count_of(&self, user: &[u8]) -> Vec<u8> {
        [self.prefix.as_bytes(), b"user:", user, b":count"].concat()
    }

    /// What the keys of all counts look like, for SCAN.
    pub fn counts_pattern(&self) -> String {
        format!("{}user:*:count", glob_escaped(&self.prefix))
    }

    /// The user whose count a key is; whatever stands there, for it need be no well-formed id.
    pub fn user_of_count<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        self.middle(key, "user:", ":count")
    }

    /// What the keys of all reservations look like, for SCAN.
    pub fn reservations_pattern(&self) -> String {
        format!("{}request:*:temp", glob_escaped(&self.prefix))
    }

    /// The id of the request whose reservation a key is; whatever stands there.
    pub fn request_of_reservation<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        self.middle(key, "request:", ":temp")
    }

    fn middle<'a>(&self, key: &'a [u8], before: &str, after: &str) -> Option<&'a [u8]> {
        let key = key.strip_prefix(self.prefix.as_bytes())?;
        key.strip_prefix(before.as_bytes())?.strip_suffix(after.as_bytes())
    }

    /// String with a TTL: the lease of a running instance.
    pub fn lock(&self, instance: &InstanceName) -> String {
        format!("{}instance_lock:{instance}", self.prefix)
    }

    /// As [`Keys::lock`], for the name of a consumer as Redis tells it.
    pub fn lock_of(&self, consumer: &[u8]) -> Vec<u8> {
        [self.prefix.as_bytes(), b"instance_lock:", consumer].concat()
    }

    /// What the keys of all locks look like, for SCAN.
    pub fn locks_pattern(&self) -> String {
        format!("{}instance_lock:*", glob_escaped(&self.prefix))
    }

    /// List of one element, with a TTL: the outcome of an event whose sender asked for an answer.
    /// Named after the event alone: no field that a client sent chooses a key.
    pub fn answer(&self, event: EventKey) -> String {
        format!("{}lending_answer:{}:{}", self.prefix, event.action, event.id)
    }

    /// String with a TTL: the event that was added for a request sent with `--id`.
    pub fn submission(&self, id: &SubmissionId) -> String {
        format!("{}lending_submission:{id}", self.prefix)
    }

    /// String with a TTL: the events that were added for one chunk of a batch.
    pub fn batch_chunk(&self, batch: &SubmissionId, chunk: usize) -> String {
        format!("{}lending_batch:{batch}:{chunk}", self.prefix)
    }
}

/// The text with everything escaped that a pattern of Redis would take for more than itself.
fn glob_escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_counts_and_reservations_are_told_from_others() {
        let keys = Keys::new(Some("a*"));
        let user: UserId = "x:count".parse().unwrap();
        let key = keys.count(&user);
        assert_eq!(key, "{a*}:user:x:count:count");
        assert_eq!(keys.counts_pattern(), "{a\\*}:user:*:count");
        assert_eq!(keys.user_of_count(key.as_bytes()), Some(&b"x:count"[..]));
        assert_eq!(keys.user_of_count(b"user:x:count"), None);
        assert_eq!(keys.request_of_reservation(b"{a*}:request:17-0:temp"), Some(&b"17-0"[..]));
        assert_eq!(keys.request_of_reservation(b"{a*}:request:17-0"), None);
    }
}
