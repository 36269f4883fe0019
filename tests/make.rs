//! What `make run`, `make install` and their like promise, with a libraryd that only notes what
//! happens to it: the scripts of tests/make/ are tried here, not the library.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Notes its start and what it is told, and whether Redis still answers while it finishes. What it
/// waits on holds nothing of the tree.
const STUB: &str = r#"#!/bin/sh
stop() {
    echo "told to stop, redis says $(redis-cli -s "$LIBRARY_ADDRESS" ping)" >>noted
    kill "$sleeper"
    wait "$sleeper"
    exit 0
}
trap stop TERM
trap 'echo interrupted >>noted' INT
trap 'echo hung up >>noted' HUP
while :; do
    (cd / && exec sleep 5) </dev/null >/dev/null 2>&1 9>&- &
    sleeper=$!
    [ -e noted ] || echo "started $* at $LIBRARY_ADDRESS" >>noted
    wait
done
"#;

const NOBODY: [&str; 0] = [];

const GRACEFUL: &str = "told to stop, redis says PONG\n";

/// A program that heeds SIGHUP and SIGINT, also where whoever runs the tests ignores them.
fn heeding(program: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT", program]);
    command
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).expect("writing a script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("making it executable");
}

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("a command that is there")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn signal(signal: &str, target: &str) {
    let status = Command::new("kill").args(["-s", signal, "--", target]).status().expect("kill");
    assert!(status.success(), "kill -s {signal} -- {target}");
}

/// A directory that looks like the source tree to make and its scripts, with a stub for libraryd
/// and a `run` of its own.
struct Tree {
    _outer: TempDir,
    root: PathBuf,
}

impl Tree {
    fn new() -> Self {
        Self::named("tree")
    }

    fn named(name: &str) -> Self {
        let outer = TempDir::new().expect("a temporary directory");
        let root = outer.path().join(name);
        fs::create_dir_all(root.join("target/debug")).expect("the tree");
        for entry in ["Makefile", "src", "systemd", "tests"] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(entry);
            symlink(source, root.join(entry)).expect("a link into the source tree");
        }
        executable(&root.join("target/debug/libraryd"), STUB);
        executable(
            &root.join("target/debug/library-req"),
            "#!/bin/sh\necho \"$LIBRARY_ADDRESS$LIBRARY_PASSWORD $*\"\n",
        );
        Self { _outer: outer, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The process that a lock file names.
    fn pid(&self, lock: &str) -> String {
        self.read(lock).trim().to_owned()
    }

    /// The processes whose working directory lies in the tree: all that `make run` starts.
    fn processes(&self) -> Vec<String> {
        let proc = fs::read_dir("/proc").expect("/proc");
        let inside = proc.flatten().filter(|process| {
            fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&self.root))
        });
        inside.map(|process| process.file_name().to_string_lossy().into_owned()).collect()
    }

    fn redis(&self, arguments: &[&str]) -> String {
        let mut cli = Command::new("redis-cli");
        cli.arg("-s").arg("run/redis.sock").args(arguments).current_dir(&self.root);
        text(&output(&mut cli)).trim().to_owned()
    }

    fn run_script(&self, address: &str) -> Command {
        let mut sh = heeding("sh");
        sh.args(["tests/make/run.sh", "target/debug", address]).current_dir(&self.root);
        sh.env("LIBRARY_PASSWORD", "meant for another Redis");
        sh.stdin(Stdio::null()).stderr(self.shown());
        sh
    }

    /// Where the scripts' words go: a test is silent unless it fails.
    fn shown(&self) -> File {
        let mut shown = File::options();
        shown.create(true).append(true).open(self.path("shown")).expect("a file in the tree")
    }

    /// Runs the script in a process group of its own until libraryd has started.
    fn start(&self) -> Child {
        let _ = fs::remove_file(self.path("noted"));
        let script = self.run_script("").process_group(0).stdout(self.shown()).spawn().expect("sh");
        wait_until("libraryd has started", || self.read("noted").ends_with('\n'));
        wait_until("its process is noted", || !self.pid("run/libraryd.lock").is_empty());
        wait_until("only script, Redis and libraryd are there", || self.processes().len() == 3);
        script
    }

    fn make(&self, arguments: &[&str]) -> Command {
        let mut make = Command::new("make");
        // This test may itself be run by make, whose settings are not for this one.
        make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env_remove("MFLAGS");
        make.args(["CARGO=true", "CARGO_TARGET_DIR=target"]).args(arguments);
        make.current_dir(&self.root);
        make
    }
}

impl Drop for Tree {
    /// A test that fails leaves nothing running either.
    fn drop(&mut self) {
        if std::thread::panicking() {
            print!("{}{}", self.read("shown"), self.read("noted"));
        }
        for process in self.processes() {
            let _ = Command::new("kill").args(["-s", "KILL", &process]).status();
        }
    }
}

fn status(mut script: Child) -> ExitStatus {
    wait_until("the script has ended", || script.try_wait().expect("a child").is_some());
    script.wait().expect("a child")
}

#[test]
fn ctrl_c_stops_libraryd_before_its_redis_and_leaves_nothing_running() {
    let tree = Tree::new();
    let script = tree.start();
    // What a terminal does: everybody in the foreground gets it.
    signal("INT", &format!("-{}", script.id()));
    assert_eq!(status(script).code(), Some(0));
    let noted = tree.read("noted");
    assert!(noted.starts_with("started worker1 at "), "{noted}");
    assert!(noted.ends_with(GRACEFUL), "{noted}");
    assert_eq!(noted.lines().count(), 2, "one signal, and no other: {noted}");
    assert_eq!(tree.processes(), NOBODY);
}

#[test]
fn ctrl_c_in_a_terminal_ends_make_run_with_success() {
    let tree = Tree::new();
    let make = "make CARGO=true CARGO_TARGET_DIR=target run; echo make ended with $?";
    let mut terminal = heeding("script")
        .args(["-qec", make, "/dev/null"])
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .env_remove("MFLAGS")
        .current_dir(&tree.root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script");
    wait_until("libraryd has started", || tree.read("noted").ends_with('\n'));
    terminal.stdin.as_mut().expect("piped").write_all(b"\x03").expect("typing Ctrl-C");
    wait_until("make has ended", || terminal.try_wait().expect("a child").is_some());
    let shown = text(&terminal.wait_with_output().expect("script"));
    assert!(tree.read("noted").ends_with(GRACEFUL), "{shown}");
    assert_eq!(tree.processes(), NOBODY);
    // A shell that stays in make's process group, as bash does, cannot keep Ctrl-C from make.
    let sh = fs::canonicalize("/bin/sh").expect("a shell");
    if sh.ends_with("dash") {
        assert!(shown.contains("make ended with 0"), "{shown}");
    }
}

#[test]
fn sigterm_and_sighup_stop_both_in_the_same_order() {
    let tree = Tree::new();
    for name in ["TERM", "HUP"] {
        let script = tree.start();
        signal(name, &script.id().to_string());
        assert_eq!(status(script).code(), Some(0), "{name}");
        assert!(tree.read("noted").ends_with(GRACEFUL), "{name}: {}", tree.read("noted"));
        assert_eq!(tree.processes(), NOBODY, "{name}");
    }
}

#[test]
fn when_libraryd_dies_its_redis_is_stopped_and_its_status_handed_on() {
    let tree = Tree::new();
    let script = tree.start();
    signal("KILL", &tree.pid("run/libraryd.lock"));
    assert_eq!(status(script).code(), Some(128 + 9));
    assert_eq!(tree.processes(), NOBODY);
}

#[test]
fn after_kill_9_of_everything_the_next_run_goes_on_with_the_same_library() {
    let tree = Tree::new();
    let script = tree.start();
    assert_eq!(tree.redis(&["set", "geb", "user1"]), "OK");
    let (libraryd, redis) = (tree.pid("run/libraryd.lock"), tree.pid("run/redis.lock"));
    for process in [&script.id().to_string(), &libraryd, &redis] {
        signal("KILL", process);
    }
    status(script);
    wait_until("all are gone", || tree.processes().is_empty());
    let script = tree.start();
    assert_eq!(tree.redis(&["get", "geb"]), "user1");
    signal("TERM", &script.id().to_string());
    assert_eq!(status(script).code(), Some(0));
}

#[test]
fn a_redis_that_was_left_behind_is_restarted_with_its_data() {
    let tree = Tree::new();
    let script = tree.start();
    assert_eq!(tree.redis(&["set", "geb", "user1"]), "OK");
    let left_behind = tree.pid("run/redis.lock");
    signal("KILL", &script.id().to_string());
    status(script);
    // While libraryd lives, the library is running.
    let refused = output(tree.run_script("").stderr(Stdio::piped()));
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains(&tree.pid("run/libraryd.lock")), "{}", text(&refused));
    signal("KILL", &tree.pid("run/libraryd.lock"));
    wait_until("only that Redis is left", || tree.processes() == [left_behind.clone()]);
    let script = tree.start();
    assert_ne!(tree.pid("run/redis.lock"), left_behind);
    assert_eq!(tree.redis(&["get", "geb"]), "user1");
    signal("TERM", &script.id().to_string());
    assert_eq!(status(script).code(), Some(0));
    assert_eq!(tree.processes(), NOBODY);
}

#[test]
fn a_second_run_says_that_one_is_running_and_breaks_nothing() {
    let tree = Tree::new();
    let script = tree.start();
    let (before, env) = (tree.processes(), tree.read("run/env"));
    let second = output(tree.run_script("").stderr(Stdio::piped()));
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second).contains("running here already"), "{}", text(&second));
    assert_eq!(tree.processes(), before);
    assert_eq!(tree.read("run/env"), env);
    assert_eq!(tree.redis(&["ping"]), "PONG");
    signal("TERM", &script.id().to_string());
    assert_eq!(status(script).code(), Some(0));
}

#[test]
fn a_redis_that_does_not_start_is_reported_with_its_log() {
    let tree = Tree::new();
    // A directory where the append-only file is to be.
    fs::create_dir_all(tree.path("run/appendonlydir/appendonly.aof.manifest")).expect("mkdir");
    let failed = output(tree.run_script("").stderr(Stdio::piped()));
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed).contains("appendonly.aof.manifest"), "{}", text(&failed));
    assert_eq!(tree.processes(), NOBODY);
}

#[test]
fn run_env_works_in_every_shell_and_from_any_directory() {
    let tree = Tree::named("it's a \"$HOME\" & more");
    let script = tree.start();
    for shell in ["sh", "bash", "dash", "zsh"] {
        let mut command = Command::new(shell);
        command.current_dir("/").env("LIBRARY_PASSWORD", "meant for another Redis");
        command.args(["-c", ". \"$0\"; once=$PATH; . \"$0\"; [ \"$once\" = \"$PATH\" ] && library-req request user1 geb"]);
        command.arg(tree.path("run/env")).stdin(Stdio::null());
        let Ok(answer) = command.output() else {
            assert!(shell != "sh", "there is a sh everywhere");
            continue;
        };
        let expected = format!("{} request user1 geb\n", tree.path("run/redis.sock").display());
        assert_eq!(text(&answer), expected, "{shell}");
    }
    signal("TERM", &script.id().to_string());
    assert_eq!(status(script).code(), Some(0));
}

#[test]
fn a_path_too_long_for_a_socket_is_got_around() {
    let tree = Tree::named(&"long".repeat(40));
    let script = tree.start();
    let answer = output(
        Command::new("sh")
            .args(["-c", ". run/env; redis-cli -s \"$LIBRARY_ADDRESS\" ping"])
            .current_dir(&tree.root),
    );
    assert_eq!(text(&answer), "PONG\n");
    signal("TERM", &script.id().to_string());
    assert_eq!(status(script).code(), Some(0));
    assert!(tree.read("noted").ends_with(GRACEFUL), "{}", tree.read("noted"));
}

#[test]
fn with_an_address_that_redis_is_used_and_none_started() {
    let tree = Tree::new();
    for (given, meant) in [
        ("redis://example.org:7000/2", "redis://example.org:7000/2".to_owned()),
        ("/run/redis.sock", "/run/redis.sock".to_owned()),
        ("other/redis.sock", tree.path("other/redis.sock").display().to_string()),
    ] {
        let _ = fs::remove_file(tree.path("noted"));
        let script = tree.run_script(given).stdout(tree.shown()).spawn().expect("sh");
        wait_until("libraryd has started", || tree.read("noted").ends_with('\n'));
        assert_eq!(tree.read("noted"), format!("started worker1 at {meant}\n"));
        assert!(tree.read("run/env").contains(&format!("LIBRARY_ADDRESS='{meant}'\n")));
        assert!(!tree.path("run/redis.sock").exists());
        signal("TERM", &script.id().to_string());
        assert_eq!(status(script).code(), Some(0));
        assert_eq!(tree.processes(), NOBODY);
    }
    // It was waited for as a socket of that name.
    let refused = output(tree.run_script("localhost:7000").stderr(Stdio::piped()));
    assert!(!refused.status.success());
    let hint = "ADDRESS is no path of a socket; for a host and a port it is redis://HOST:PORT";
    assert!(text(&refused).contains(hint), "{}", text(&refused));
    // A variable of that name in the environment may mean anything.
    let shown = output(tree.make(&["-n", "run"]).env("ADDRESS", "redis://production"));
    assert!(!text(&shown).contains("production"), "{}", text(&shown));
}

/// Plays the demo with these binaries: how it ended, and all that it said.
fn demo(tree: &Tree, binaries: &Path) -> (Option<i32>, String) {
    let mut sh = Command::new("sh");
    sh.arg("tests/make/demo.sh").arg(binaries).current_dir(&tree.root);
    sh.env("TMPDIR", tree.path("target")).env("LIBRARY_PASSWORD", "meant for another Redis");
    let played = output(&mut sh);
    assert_eq!(tree.processes(), NOBODY, "{}", text(&played));
    let left = fs::read_dir(tree.path("target")).expect("a directory").count();
    assert_eq!(left, 1, "only debug/ was there: {}", text(&played));
    (played.status.code(), text(&played))
}

#[test]
fn the_demo_shows_what_it_claims_and_leaves_nothing_behind() {
    let tree = Tree::new();
    let binaries = Path::new(env!("CARGO_BIN_EXE_library-req")).parent().expect("a directory");
    let begun = Instant::now();
    let (status, played) = demo(&tree, binaries);
    assert_eq!(status, Some(0), "{played}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let mut rest = played.as_str();
    for line in [
        "lent to user1: alice-in-wonderland, geb (2 in hand)",
        "lent to user2: momo; geb: lent to someone else (1 in hand)",
        "user2 has 1 of 5, this asks for 5 more: nothing was lent",
        "taken back from user1: geb (1 in hand)",
        "nothing to take back from user1; geb: nobody has it",
        "nothing to take back from user1; momo: lent to someone else",
        "$ library-req request user3 geb --id order-4711\nlent to user3: geb (1 in hand)",
        "$ library-req request user3 geb --id order-4711\nlent to user3: geb (1 in hand)",
        "\"lent_to_another\":[\"momo\"]",
        "user3 has 2 of 5 books: geb, krabat",
        "geb: lent\n",
        "geb: lent to user3\n",
        "$ library-req history",
        "lent to a user: krabat",
        "$ library-req watch",
        "Z request ",
        ": lent to user4: ronja (1 in hand)",
        "$ library-req batch tonight\n",
        "1 bad line, 3 good: nothing was sent",
        "$ cat tonight.rejected\nreturn user4, ronja\n",
        "--partial",
        "3 events queued: 3 done",
        ",accepted,,the selfish gene,",
        "-rw-------\n",
        "3 events queued (3 of them by an earlier run)",
        "user4 has 2 of 5 books: ronja, the selfish gene",
        "no libraryd is running",
        "interrupted; request ",
        "is still queued",
        "lent to user5: momo-2 (1 in hand)",
        "| head -n 1\n",
        "nothing is wrong\n",
    ] {
        let at = rest.find(line).unwrap_or_else(|| panic!("{line:?} is missing here:\n{rest}"));
        rest = &rest[at + line.len()..];
    }
}

#[test]
fn a_demo_that_does_not_go_as_expected_says_so_and_fails() {
    let tree = Tree::new();
    let real = Path::new(env!("CARGO_BIN_EXE_libraryd"));
    fs::remove_file(tree.path("target/debug/libraryd")).expect("the stub");
    symlink(real, tree.path("target/debug/libraryd")).expect("a link");
    // A library-req that is content with everything.
    executable(&tree.path("target/debug/library-req"), "#!/bin/sh\n");
    let (status, played) = demo(&tree, &tree.path("target/debug"));
    assert_eq!(status, Some(1), "{played}");
    assert!(played.ends_with("This is not how it should be: exit status 0, not 1\n"), "{played}");
}

/// A directory with just these stubs and the few real commands that the scripts need.
fn commands(stubs: &[(&str, &str)]) -> TempDir {
    let directory = TempDir::new().expect("a temporary directory");
    for (name, script) in stubs {
        executable(&directory.path().join(name), &format!("#!/bin/sh\n{script}\n"));
    }
    for name in ["/bin/sh", "/usr/bin/env", "/bin/chmod"] {
        let name = Path::new(name);
        symlink(name, directory.path().join(name.file_name().expect("a file"))).expect("a link");
    }
    directory
}

fn need_redis(commands: &TempDir) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/make/redis-server.sh");
    output(Command::new("sh").arg(script).env("PATH", commands.path()).current_dir(commands))
}

/// Notes its arguments; an `apt-get install` of it brings a redis-server.
const APT_GET: &str = r#"echo "apt-get $*" >>noted
[ "$1" = update ] || { echo >redis-server; echo >redis-cli; chmod +x redis-server redis-cli; }"#;

const INSTALLED: &str = "apt-get update\napt-get install --yes redis-server\n";

#[test]
fn where_there_is_no_redis_root_and_sudo_install_it() {
    for stubs in [
        &[("id", "echo 0"), ("apt-get", APT_GET)][..],
        &[
            ("id", "echo 1000"),
            ("apt-get", APT_GET),
            ("sudo", "[ $1 = -n ] && shift; \"$@\""),
            ("true", ""),
        ],
    ] {
        let commands = commands(stubs);
        let installed = need_redis(&commands);
        assert!(installed.status.success(), "{}", text(&installed));
        let noted = fs::read_to_string(commands.path().join("noted")).unwrap();
        assert_eq!(noted, INSTALLED);
        // And where it is, nothing is asked of anybody.
        assert_eq!(text(&need_redis(&commands)), "");
        assert_eq!(fs::read_to_string(commands.path().join("noted")).unwrap(), INSTALLED);
    }
}

#[test]
fn where_redis_cannot_be_installed_the_line_to_type_is_shown() {
    for (stubs, hint) in [
        (&[("id", "echo 1000"), ("apt-get", APT_GET)][..], "apt-get install --yes redis-server"),
        (&[("id", "echo 1000"), ("apt-get", APT_GET), ("sudo", "exit 1")], "As root, type"),
        (&[("id", "echo 0")], "Install the package"),
        (&[("id", "echo 0"), ("apt-get", "exit 100")], "could not be installed"),
    ] {
        let commands = commands(stubs);
        let refused = need_redis(&commands);
        assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
        assert!(text(&refused).contains(hint), "{}", text(&refused));
        assert!(!commands.path().join("noted").exists());
    }
}

/// What `make static` says of binaries made by this stub of cargo, and whether it lays them down.
fn make_static(make_binary: &str) -> (String, bool) {
    let tree = Tree::new();
    let cargo = format!(
        r#"#!/bin/sh
while [ "$1" != --target ]; do shift; done
mkdir -p "$CARGO_TARGET_DIR/$2/release" && cd "$CARGO_TARGET_DIR/$2/release" || exit 1
for binary in libraryd library-req library-admin; do {make_binary}; done"#
    );
    executable(&tree.path("cargo"), &cargo);
    let made = output(&mut tree.make(&["static", "CARGO=./cargo"]));
    let laid_down = tree.path("target/static/libraryd").exists();
    assert_eq!(made.status.success(), laid_down, "{}", text(&made));
    (text(&made), laid_down)
}

#[test]
fn only_static_and_small_binaries_are_fit_to_be_installed() {
    let ours = std::env::current_exe().expect("a test is a program");
    let (said, laid_down) = make_static(&format!("cp '{}' $binary", ours.display()));
    assert!(said.contains("is not statically linked") && !laid_down, "{said}");
    // The one program that Debian links statically; elsewhere it may be a script.
    if fs::read("/sbin/ldconfig").is_ok_and(|program| program.starts_with(b"\x7fELF")) {
        let (said, laid_down) = make_static("cp /sbin/ldconfig $binary");
        assert!(said.contains("libraryd") && said.contains("MiB") && laid_down, "{said}");
        let (said, laid_down) =
            make_static("cp /sbin/ldconfig $binary; truncate -s 3145729 $binary");
        assert!(said.contains("is larger than 3145728 bytes") && !laid_down, "{said}");
    }
}

/// A tree in which `make static` has been run, as far as `make install` can tell.
fn built() -> Tree {
    let tree = Tree::new();
    fs::create_dir(tree.path("target/static")).expect("mkdir");
    for source in fs::read_dir(tree.path("src/bin")).expect("src/bin").flatten() {
        let binary = source.path().file_stem().expect("a name").to_owned();
        executable(&tree.path("target/static").join(binary), "#!/bin/sh\n");
    }
    tree
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found
}

/// The quote ended in a syntax error of the shell, and the script's directory stayed.
#[test]
fn uninstall_removes_what_install_laid_down() {
    let tree = built();
    let destination = tree.path("it's a dest dir");
    let destdir = format!("DESTDIR={}", destination.display());
    let installed = output(&mut tree.make(&["install", &destdir, "PREFIX=/opt/library"]));
    assert!(installed.status.success(), "{}", text(&installed));
    for name in ["opt/library/bin/libraryd", "opt/library/bin/library-req"] {
        let mode = fs::metadata(destination.join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{name}");
    }
    for name in [
        "man/man1/library-req.1",
        "man/man7/library-lending.7",
        "man/man8/libraryd.8",
        "bash-completion/completions/library-req",
        "zsh/site-functions/_library-admin",
        "fish/vendor_completions.d/libraryd.fish",
    ] {
        assert!(destination.join("opt/library/share").join(name).exists(), "{name}");
    }
    let units = destination.join("opt/library/lib/systemd/system");
    let unit = fs::read_to_string(units.join("libraryd@.service")).unwrap();
    assert!(unit.contains("ExecStart=/opt/library/bin/libraryd "), "{unit}");
    assert!(!unit.contains("/usr/local"), "{unit}");
    let nightly = fs::read_to_string(units.join("library-returns.service")).unwrap();
    let script = "/opt/library/libexec/library-lending/library-returns.sh";
    assert!(nightly.contains(&format!("ExecStartPre=+{script} collect")), "{nightly}");
    assert!(nightly.contains(&format!("ExecStart={script} hand-in /opt/library/bin/library-req")));
    assert!(!nightly.contains("/usr/local"), "{nightly}");
    let mode = fs::metadata(destination.join(&script[1..])).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    let settings = destination.join("etc/default/libraryd");
    assert!(settings.exists());
    let uninstalled = output(&mut tree.make(&["uninstall", &destdir, "PREFIX=/opt/library"]));
    assert!(uninstalled.status.success(), "{}", text(&uninstalled));
    assert_eq!(files(&destination), Vec::<PathBuf>::new());
    let own = destination.join("opt/library/libexec/library-lending");
    assert!(!own.exists() && own.parent().unwrap().exists());
    // What somebody else has put there is theirs.
    fs::create_dir(&own).unwrap();
    fs::write(own.join("theirs"), "").unwrap();
    let uninstalled = output(&mut tree.make(&["uninstall", &destdir, "PREFIX=/opt/library"]));
    assert!(uninstalled.status.success(), "{}", text(&uninstalled));
    assert_eq!(files(&destination), [own.join("theirs")]);
    let refused = output(&mut tree.make(&["install", "PREFIX=/it's"]));
    assert!(text(&refused).contains("PREFIX must be a plain path"), "{}", text(&refused));
}

#[test]
fn settings_that_the_operator_changed_are_neither_overwritten_nor_removed() {
    let tree = built();
    let destdir = format!("DESTDIR={}", tree.path("dest").display());
    let settings = tree.path("dest/etc/default/libraryd");
    assert!(output(&mut tree.make(&["install", &destdir])).status.success());
    fs::write(&settings, "LIBRARY_ADDRESS=redis://ours\n").unwrap();
    assert!(output(&mut tree.make(&["install", &destdir])).status.success());
    assert!(output(&mut tree.make(&["uninstall", &destdir])).status.success());
    assert_eq!(files(&tree.path("dest")), std::slice::from_ref(&settings));
    assert_eq!(fs::read_to_string(settings).unwrap(), "LIBRARY_ADDRESS=redis://ours\n");
}

#[test]
fn install_compiles_nothing_and_says_what_is_to_be_done_first() {
    let tree = Tree::new();
    let destdir = format!("DESTDIR={}", tree.path("dest").display());
    let refused = output(&mut tree.make(&["install", &destdir, "CARGO=false"]));
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("run make static first"), "{}", text(&refused));
    assert_eq!(files(&tree.path("dest")), Vec::<PathBuf>::new());
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    let tree = built();
    let prefix = tree.path("prefix");
    let arguments = [
        "install".to_owned(),
        format!("PREFIX={}", prefix.display()),
        format!("SETTINGS={}", tree.path("settings").display()),
    ];
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let installed = output(&mut tree.make(&arguments));
    assert!(installed.status.success(), "{}", text(&installed));
    let units = prefix.join("lib/systemd/system");
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).args(
        ["libraryd@worker1.service", "library-returns.service", "library-returns.timer"]
            .map(|unit| units.join(unit)),
    );
    verify.env("SYSTEMD_LOG_LEVEL", "warning").stdin(Stdio::null());
    let Ok(verified) = verify.output() else {
        return; // No systemd here.
    };
    assert_eq!(text(&verified), "");
    assert!(verified.status.success());
}
