//! The nightly batch of returns, with a library-req that notes what it is told and ends as it is told
//! to, and with days that pass at will.

// Helpers are no `#[test]` functions, where clippy allows it by itself.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Notes its file's content and the batch's name; with the statuses that it has when lines were looked at,
/// it leaves bad ones and results.
const LIBRARY_REQ: &str = r#"#!/bin/sh
for file; do :; done
[ "$2 $3" = '--only return' ] || exit 99
echo "${10%%.*}: $(cat "$file")" >>"$NOTED"
status=$(cat "$STATUS")
case $status in
*x) exit "${status%x}" ;;
esac
if grep -q nonsense "$file"; then grep nonsense "$file" >"${14}"; fi
case $status in
[0123]) echo results >"${12}" ;;
esac
exit "$status"
"#;

/// A machine on which returns are collected.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(TempDir::new().unwrap());
        for directory in ["state", "spool", "bin"] {
            fs::create_dir(machine.path(directory)).unwrap();
        }
        machine.executable("library-req", LIBRARY_REQ);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn executable(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn script(&self, day: &str, arguments: &[&str]) -> Output {
        self.executable("date", &format!("#!/bin/sh\necho {day}\n"));
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/library-returns.sh"))
            .args(arguments)
            .env("PATH", path)
            .env("STATE_DIRECTORY", self.path("state"))
            .env("RETURNS", self.path("spool/returns"))
            .env("BATCH_OPTIONS", "--partial --timeout 600 --remember 3d")
            .env("NOTED", self.path("noted"))
            .env("STATUS", self.path("status"))
            .output()
            .unwrap()
    }

    /// A start of the unit on a day; library-req ends with `status`, behind which an `x` stands if it has
    /// not come to look at lines. Gives the unit's own status and what library-req was given.
    fn night(&self, day: &str, status: &str) -> (i32, String) {
        self.put("status", status);
        let _ = fs::remove_file(self.path("noted"));
        let collected = self.script(day, &["collect"]);
        assert!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stderr));
        let done = self.script(day, &["hand-in", "library-req"]);
        let noted = fs::read_to_string(self.path("noted")).unwrap_or_default();
        (done.status.code().unwrap(), noted)
    }

    fn state(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("state")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Redis was out of reach until after midnight: the file of the day before was never looked at again,
/// and the unit ended well.
#[test]
fn returns_that_could_not_be_handed_in_are_on_another_day_oldest_first() {
    let machine = Machine::new();
    machine.put("spool/returns", "return a 1\n");
    assert_eq!(machine.night("2026-11-26", "4"), (4, "returns-2026-11-26: return a 1\n".into()));
    assert_eq!(machine.night("2026-11-26", "3"), (3, "returns-2026-11-26: return a 1\n".into()));
    machine.put("spool/returns", "return b 2\n");
    // What came later on that day is for the next; and behind what is not done yet.
    assert_eq!(machine.night("2026-11-26", "4").1, "returns-2026-11-26: return a 1\n");
    assert!(machine.path("spool/returns").exists(), "until then it is its owner's");
    assert_eq!(machine.night("2026-11-27", "4").1, "returns-2026-11-26: return a 1\n");
    let both = "returns-2026-11-26: return a 1\nreturns-2026-11-27: return b 2\n";
    assert_eq!(machine.night("2026-11-27", "1"), (0, both.into()));
    assert_eq!(machine.night("2026-11-28", "0"), (0, String::new()));
}

/// "no returns to hand in" was said while they lay there.
#[test]
fn returns_that_are_for_the_next_day_are_told() {
    let machine = Machine::new();
    let told = |day| {
        assert!(machine.script(day, &["collect"]).status.success());
        machine.put("status", "0");
        let said = machine.script(day, &["hand-in", "library-req"]);
        assert!(said.status.success());
        String::from_utf8(said.stdout).unwrap()
    };
    assert_eq!(told("2026-11-26"), "no returns to hand in\n");
    machine.put("spool/returns", "return a 1\n");
    assert_eq!(told("2026-11-26"), "");
    machine.put("spool/returns", "return b 2\n");
    let late = told("2026-11-26");
    assert!(late.ends_with(
        "spool/returns came after this day's returns were collected: it is for the next day\n"
    ));
    assert_eq!(told("2026-11-27"), "");
    assert_eq!(told("2026-11-27"), "no returns to hand in\n");
}

/// Lines that were no returns are no better on the next day; but if nothing was sent, all is still to do,
/// whatever results an earlier try has left.
#[test]
fn bad_lines_are_sent_once_and_told_until_they_are_gone_and_a_bad_option_loses_nothing() {
    let machine = Machine::new();
    machine.put("spool/returns", "return a 1\n");
    assert_eq!(machine.night("2026-11-26", "3").0, 3);
    assert_eq!(machine.night("2026-11-26", "2x").0, 2);
    assert_eq!(machine.state(), ["returns-2026-11-26", "returns-2026-11-26.batch"]);
    machine.put("state/returns-2026-11-26", "return a 1\nnonsense\n");
    assert_eq!(machine.night("2026-11-27", "2").0, 2);
    let ends = ["", ".batch", ".csv", ".done", ".rejected", ".told"];
    assert_eq!(machine.state(), ends.map(|end| format!("returns-2026-11-26{end}")));
    // Another day's success does not cover it up.
    machine.put("spool/returns", "return b 2\n");
    assert_eq!(machine.night("2026-11-28", "0"), (2, "returns-2026-11-28: return b 2\n".into()));
    fs::remove_file(machine.path("state/returns-2026-11-26.rejected")).unwrap();
    assert_eq!(machine.night("2026-11-29", "0"), (0, String::new()));
}

/// Each try wrote the bad lines anew: over those that had been corrected in place, and when they had been
/// handed in and removed.
#[test]
fn bad_lines_are_written_once_however_often_a_day_is_tried() {
    let machine = Machine::new();
    let rejected = || fs::read_to_string(machine.path("state/returns-2026-11-26.rejected")).ok();
    machine.put("spool/returns", "return a 1\nnonsense\n");
    for status in ["4", "3"] {
        assert_eq!(machine.night("2026-11-26", status).0.to_string(), status);
        assert_eq!(rejected().as_deref(), Some("nonsense\n"));
    }
    machine.put("state/returns-2026-11-26.rejected", "return b 2\n");
    assert_eq!(machine.night("2026-11-27", "3").0, 3);
    assert_eq!(rejected().as_deref(), Some("return b 2\n"));
    fs::remove_file(machine.path("state/returns-2026-11-26.rejected")).unwrap();
    assert_eq!(machine.night("2026-11-28", "3").0, 3);
    assert_eq!(machine.night("2026-11-28", "2").0, 0);
    assert_eq!(rejected(), None);
}

#[test]
fn what_was_interrupted_while_bad_lines_were_told_goes_on_where_it_was() {
    const BAD: (&str, &str) = ("bad", "nonsense\n");
    const TOLD: (&str, &str) = ("told", "");
    const CORRECTED: (&str, &str) = ("rejected", "return b 2\n");
    for (left, told) in [
        (&[BAD][..], Some(BAD.1)),
        (&[BAD, TOLD], Some(BAD.1)),
        // They were corrected and handed in since then, or are being corrected.
        (&[TOLD], None),
        (&[TOLD, CORRECTED], Some(CORRECTED.1)),
        // By a version that knew no mark.
        (&[CORRECTED], Some(CORRECTED.1)),
        (&[BAD, TOLD, CORRECTED], Some(CORRECTED.1)),
    ] {
        let machine = Machine::new();
        machine.put("state/returns-2026-11-26", "return a 1\nnonsense\n");
        for (end, text) in left {
            machine.put(&format!("state/returns-2026-11-26.{end}"), text);
        }
        for status in ["3", "2"] {
            machine.night("2026-11-26", status);
            let rejected = machine.path("state/returns-2026-11-26.rejected");
            assert_eq!(fs::read_to_string(rejected).ok().as_deref(), told, "{left:?}");
            assert!(!machine.path("state/returns-2026-11-26.bad").exists(), "{left:?}");
        }
    }
}

/// Else the second would be told the outcomes of the first, and its books stay lent.
#[test]
fn the_same_returns_of_two_machines_on_one_day_are_two_batches() {
    let batches = ["desk1", "desk2"].map(|name| {
        let machine = Machine::new();
        machine.executable("uname", &format!("#!/bin/sh\necho {name}\n"));
        machine.executable("library-req", "#!/bin/sh\necho \"${10}\" >\"$NOTED\"\n");
        machine.put("spool/returns", "return a 1\n");
        machine.night("2026-11-26", "0").1
    });
    assert_eq!(batches, ["returns-2026-11-26.desk1\n", "returns-2026-11-26.desk2\n"]);
}

/// A day that was tried again under the new name was sent a second time.
#[test]
fn a_day_keeps_its_batch_when_the_machine_gets_another_name() {
    let machine = Machine::new();
    let named = |name: &str| machine.executable("uname", &format!("#!/bin/sh\necho {name}\n"));
    machine.executable("library-req", "#!/bin/sh\necho \"${10}\" >\"$NOTED\"\nexit 4\n");
    machine.put("spool/returns", "return a 1\n");
    // Interrupted before the name was whole, or the machine lost its power.
    machine.put("state/returns-2026-11-26.batch.new", "retu");
    machine.put("state/returns-2026-11-26.batch", "");
    for name in ["desk1", "desk2"] {
        named(name);
        assert_eq!(machine.night("2026-11-26", "").1, "returns-2026-11-26.desk1\n");
    }
    // Not known, it is not guessed.
    fs::remove_file(machine.path("state/returns-2026-11-26.batch")).unwrap();
    machine.executable("uname", "#!/bin/sh\nexit 1\n");
    assert_eq!(machine.night("2026-11-26", ""), (1, String::new()));
}

#[test]
fn what_was_interrupted_while_it_was_collected_is_collected_later_and_whole() {
    const RETURN: &str = "return a 1\n";
    for (left, noted) in [
        // In the spool still, here in part if it was copied.
        (&[("spool/returns.taken", RETURN)][..], RETURN),
        (&[("spool/returns.taken", RETURN), ("state/incoming", "ret")], RETURN),
        (&[("state/incoming", RETURN)], RETURN),
        // A new file is for another day.
        (&[("spool/returns.taken", RETURN), ("spool/returns", "return b 2\n")], RETURN),
        (&[("state/incoming", RETURN), ("spool/returns", "return b 2\n")], RETURN),
    ] {
        let machine = Machine::new();
        left.iter().for_each(|(name, text)| machine.put(name, text));
        assert_eq!(
            machine.night("2026-11-27", "0"),
            (0, format!("returns-2026-11-27: {noted}")),
            "{left:?}"
        );
        let has_new = left.iter().any(|(name, _)| *name == "spool/returns");
        assert_eq!(machine.path("spool/returns").exists(), has_new);
        let next = machine.night("2026-11-28", "0").1;
        assert_eq!(next.is_empty(), !has_new, "{left:?}: {next}");
    }
    // The clock was set back meanwhile: it replaces no other.
    let machine = Machine::new();
    machine.put("state/incoming", RETURN);
    machine.put("state/returns-2026-11-27", "return b 2\n");
    assert_eq!(machine.night("2026-11-27", "0").1, "returns-2026-11-27: return b 2\n");
    assert_eq!(machine.night("2026-11-28", "0").1, format!("returns-2026-11-28: {RETURN}"));
}

/// With a name mistyped, or a disk not mounted, the unit ended well every night, and there was nothing to
/// hand in, for ever. An empty spool is another thing.
#[test]
fn a_spool_that_is_not_there_is_told() {
    let machine = Machine::new();
    assert_eq!(machine.night("2026-11-26", "0"), (0, String::new()));
    fs::remove_dir(machine.path("spool")).unwrap();
    // What was collected before is handed in all the same.
    machine.put("state/returns-2026-11-25", "return a 1\n");
    for calls in ["returns-2026-11-25: return a 1\n", ""] {
        assert_eq!(machine.night("2026-11-27", "0"), (2, calls.to_owned()));
        let told = machine.script("2026-11-27", &["hand-in", "false"]);
        let said = String::from_utf8_lossy(&told.stderr);
        assert!(said.contains("/spool, where returns are to be left, is no directory"), "{said}");
        // Nor if a file is there.
        machine.put("spool", "");
    }
    fs::remove_file(machine.path("spool")).unwrap();
    fs::create_dir(machine.path("spool")).unwrap();
    assert_eq!(machine.night("2026-11-28", "0"), (0, String::new()));
}

/// The step is done as root, and others may write to the spool.
#[test]
fn only_a_file_of_its_own_is_taken() {
    let machine = Machine::new();
    machine.put("secret", "secret");
    let mode = || fs::metadata(machine.path("secret")).unwrap().permissions().mode() & 0o777;
    let before = mode();
    let secret = machine.path("secret");
    let link: [&dyn Fn(PathBuf) -> std::io::Result<()>; 3] = [
        &|name| symlink(&secret, name),
        // It leads nowhere from another directory.
        &|name| symlink("../secret", name),
        &|name| fs::hard_link(&secret, name),
    ];
    for link in link {
        link(machine.path("spool/returns")).unwrap();
        for _ in 0..2 {
            let collected = machine.script("2026-11-26", &["collect"]);
            assert_eq!(collected.status.code(), Some(2));
            let said = String::from_utf8_lossy(&collected.stderr);
            assert!(said.contains("spool/returns.taken is no file of its own"), "{said}");
            assert_eq!((mode(), machine.state()), (before, vec![]));
        }
        fs::remove_file(machine.path("spool/returns.taken")).unwrap();
    }
    // Nor is anything moved into a directory that stands where a file belongs.
    machine.put("spool/returns", "return a 1\n");
    symlink(machine.path("state"), machine.path("state/incoming")).unwrap();
    assert_eq!(machine.script("2026-11-26", &["collect"]).status.code(), Some(2));
    assert!(machine.path("spool/returns").exists());
}

/// The other step is done as the service's user, to whom the state belongs.
#[test]
fn what_is_taken_is_given_to_the_service_and_to_nobody_else() {
    let machine = Machine::new();
    // This only root can do; without, there is one user for all.
    let _ = chown(machine.path("state"), Some(4711), Some(4711));
    let owner = |name| {
        let file = fs::metadata(machine.path(name)).unwrap();
        (file.uid(), file.gid())
    };
    machine.put("secret", "secret");
    let before = owner("secret");
    machine.put("spool/returns", "return a 1\n");
    assert!(machine.script("2026-11-26", &["collect"]).status.success());
    let day = "state/returns-2026-11-26";
    assert_eq!(owner(day), owner("state"));
    assert_eq!(fs::metadata(machine.path(day)).unwrap().mode() & 0o777, 0o600);
    // That user exchanges the file for a link, after it was looked at: no other file is given away.
    let exchange = "#!/bin/sh\necho 1\n[ \"$4\" = incoming ] && ln -sf ../secret incoming\n";
    machine.executable("stat", exchange);
    machine.put("spool/returns", "return b 2\n");
    machine.script("2026-11-27", &["collect"]);
    assert!(machine.path("state/returns-2026-11-27").is_symlink());
    assert_eq!(owner("secret"), before);
}
