//! Integration tests: the real binaries (in `inline` a part of one) on a private redis-server each.
//!
//! One crate, because it links once. A test's name is a sentence of the contract; what fails
//! prints the logs of the server and of every daemon, and what Redis held.

// Helpers are no `#[test]` functions, where clippy allows it by itself.
#![allow(clippy::unwrap_used)]

mod common;

mod admin;
mod admin_check;
mod answers;
mod bad_input;
mod bell;
mod branch;
mod command_line;
mod contract_requests;
mod contract_returns;
mod crash_points;
mod gathering;
mod harness;
mod inline;
mod library_req;
mod lifecycle;
mod logging;
mod order;
mod outages;
mod poison;
mod redis_user;
mod reference;
mod seed;
mod several;
mod storm;
mod takeover;
mod tidying;
mod tls;
