//! What the library has to keep has no TTL. Nobody else notices one before the key is gone, and with it the
//! loans, say: until then all is as it should be.
//!
//! Mending takes the TTL away. That is no guess: no content changes, nothing works on a library that loses
//! one of these keys, and whoever wants to be rid of it can set the TTL again.

use std::collections::BTreeSet;

use super::{CHANGED_MEANWHILE, Check, Mended, PAGE, Violation};
use crate::admin::failure::Failure;
use crate::admin::show::{shown, span};
use crate::error::Error;

impl Check<'_> {
    /// Looks at the keys that all share.
    pub(super) fn shared_ttls(&mut self) -> Result<(), Failure> {
        let keys = self.keys();
        let shared = keys.types().into_iter().map(|(key, _)| key);
        // libraryd gives the ties a TTL.
        let kept = shared.filter(|key| *key != keys.ties).map(|key| key.as_bytes().to_vec());
        let kept = kept.collect();
        self.report_ttls(kept)
    }

    /// Reports those of these keys that have a TTL, and takes it away.
    pub(super) fn report_ttls(&mut self, keys: BTreeSet<Vec<u8>>) -> Result<(), Failure> {
        let keys: Vec<_> = keys.into_iter().collect();
        for keys in keys.chunks(PAGE) {
            for (key, ttl_ms) in self.with_ttl(keys)? {
                let violation = Violation {
                    invariant: "ttl",
                    fault: "expires",
                    facts: vec![
                        ("key", key[..].into()),
                        ("expires_in_ms", (ttl_ms as usize).into()),
                    ],
                    words: format!("the key {} expires in {}", shown(key), span(ttl_ms)),
                };
                let mended = if self.repair { self.persist(key)? } else { Mended::NotTried };
                self.report(violation, mended)?;
            }
        }
        Ok(())
    }

    /// Those of these keys, of a page at most, that have a TTL, each with its milliseconds.
    pub(super) fn with_ttl<'k>(
        &mut self,
        keys: &'k [Vec<u8>],
    ) -> Result<Vec<(&'k Vec<u8>, u64)>, Error> {
        let mut pipe = redis::pipe();
        for key in keys {
            pipe.cmd("PTTL").arg(key);
        }
        let ttls: Vec<i64> =
            pipe.query(&mut self.connection).map_err(Error::redis("look for keys that expire"))?;
        // Negative: there is no TTL, or no key.
        let with_ttl = keys.iter().zip(ttls);
        Ok(with_ttl.filter_map(|(key, ttl)| Some((key, u64::try_from(ttl).ok()?))).collect())
    }

    fn persist(&mut self, key: &[u8]) -> Result<Mended, Error> {
        /// What PTTL says of a key without one.
        const NONE: i64 = -1;
        const DOING: &str = "take a TTL away";
        let had_one: bool =
            redis::cmd("PERSIST").arg(key).query(self.connection.0).map_err(Error::redis(DOING))?;
        if had_one {
            return Ok(Mended::Yes("it stays".to_owned()));
        }
        let ttl: i64 = self.ask(redis::cmd("PTTL").arg(key), DOING)?;
        Ok(if ttl == NONE { Mended::Meanwhile } else { CHANGED_MEANWHILE })
    }
}
