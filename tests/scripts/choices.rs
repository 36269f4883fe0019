//! Random cases that shrink: a case is made of choices, a list of numbers. A case that fails is
//! tried again with fewer and smaller ones, as long as it still fails.

use std::fmt::Write as _;
use std::hash::{BuildHasher as _, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How long is tried to make a failing case smaller.
const SHRINKING: Duration = Duration::from_secs(30);

/// The most choices of a case; from there on all are 0, and a case ends soon.
const MOST: usize = 4_000;

/// Where a case gets its choices from.
pub struct Choices {
    made: Vec<u32>,
    at: usize,
    random: Option<u64>,
}

impl Choices {
    /// Other choices with every seed.
    pub fn random(seed: u64) -> Self {
        Self { made: Vec::new(), at: 0, random: Some(seed) }
    }

    fn again(made: &[u32]) -> Self {
        Self { made: made.to_vec(), at: 0, random: None }
    }

    fn next(&mut self) -> u32 {
        if self.at == self.made.len() {
            let Some(state) = &mut self.random else { return 0 };
            if self.made.len() >= MOST {
                return 0;
            }
            // SplitMix64.
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            self.made.push((z >> 33) as u32);
        }
        self.at += 1;
        self.made[self.at - 1]
    }

    /// A number below `n`; 0 is the simplest.
    pub fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n.max(1)
    }

    /// A number from `first` to `last`; `first` is the simplest.
    pub fn between(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    /// True in one of `n` cases; false is the simpler.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Runs a property on `cases` random cases. `SCRIPTS_CASES` multiplies their number; `SCRIPTS_SEED`
/// makes those of an earlier run again.
pub fn check(cases: u64, mut property: impl FnMut(&mut Choices) -> Result<(), String>) {
    let seed = number("SCRIPTS_SEED").unwrap_or_else(|| {
        // Seeded by the system.
        std::hash::RandomState::new().build_hasher().finish() >> 1
    });
    let mut run = |choices: &mut Choices| {
        catch_unwind(AssertUnwindSafe(|| property(choices))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.or(panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
        })
    };
    for case in 0..cases * number("SCRIPTS_CASES").unwrap_or(1) {
        let mut choices = Choices::random(seed.wrapping_add(case));
        if let Err(first) = run(&mut choices) {
            let (made, fault) = shrink(choices.made, first, &mut run);
            let mut shown = String::new();
            let _ = write!(shown, "{made:?}");
            panic!(
                "{fault}\n---- SCRIPTS_SEED={} does it again; choices {shown}",
                seed.wrapping_add(case)
            );
        }
    }
}

type Run<'a> = &'a mut dyn FnMut(&mut Choices) -> Result<(), String>;

fn shrink(mut best: Vec<u32>, mut fault: String, run: Run<'_>) -> (Vec<u32>, String) {
    let until = Instant::now() + SHRINKING;
    let mut fails = |made: &[u32], fault: &mut String| {
        if Instant::now() > until {
            return None;
        }
        let mut choices = Choices::again(made);
        let found = run(&mut choices).err()?;
        *fault = found;
        // What was not asked for is not needed.
        choices.made.truncate(choices.at);
        Some(choices.made)
    };
    loop {
        let before = best.clone();
        let mut length = best.len().next_power_of_two() / 2;
        while length > 0 {
            let mut at = 0;
            while at < best.len() {
                let mut fewer = best.clone();
                fewer.drain(at..(at + length).min(fewer.len()));
                match fails(&fewer, &mut fault) {
                    Some(made) if made.len() < best.len() => best = made,
                    _ => at += length,
                }
            }
            length /= 2;
        }
        for at in 0..best.len() {
            // The numbers matter by their remainders: small ones are tried, not halves.
            for smaller in (0..best.get(at).copied().unwrap_or(0).min(12)).chain([0]) {
                let mut simpler = best.clone();
                if at >= simpler.len() || simpler[at] <= smaller {
                    break;
                }
                simpler[at] = smaller;
                if let Some(made) = fails(&simpler, &mut fault)
                    && made.len() <= best.len()
                {
                    best = made;
                    break;
                }
            }
        }
        if best == before || Instant::now() > until {
            return (best, fault);
        }
    }
}
