//! The scripts on a private Redis, without the daemon around them: held against a model of the
//! contract, with each of their guards taken out, and with hostile input.

#![allow(missing_docs)]
// Helpers are no `#[test]` functions, where clippy allows it by itself.
#![allow(clippy::unwrap_used)]

mod alone;
mod choices;
mod chunks;
mod guards;
mod headers;
mod histories;
mod hostile;
mod library;
mod model;
mod mixed;
mod redis;
mod stories;
mod world;
