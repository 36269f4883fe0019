//! `library-req` on a real Redis. Where an answer is wanted, the tests play the daemon by hand.
//!
//! A crate of its own beside `it`, whose harness it shares: `libraryd` never runs here.

// Helpers are no `#[test]` functions, where clippy allows it by itself.
#![allow(clippy::unwrap_used)]

#[path = "../it/common/mod.rs"]
#[allow(dead_code, unused_imports)] // The harness of `it`; not all of it is needed here.
mod common;
mod harness;

mod command_line;
mod send;
mod batch;
mod gate;
mod files;
mod questions;
mod watch;
mod lost;
mod terminal;
