//! What is said about the commands is what they do: manual pages, completions and the README are held
//! against --help, and --help against the parsers. So none of them can drift from the others.
//!
//! Completions are tried in the shells themselves, manual pages in mandoc and groff, where those are
//! installed (`.ci/run` sees to it); the rest needs nothing.

// A test that fails may panic where it stands.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use library_lending::connect::ConnectArgs;
use library_lending::keys::Keys;
use library_lending::outcome::BookList;

const PROGRAMS: [&str; 3] = ["library-req", "library-admin", "libraryd"];

type Set = BTreeSet<String>;

fn set<'a>(words: impl IntoIterator<Item = &'a str>) -> Set {
    words.into_iter().map(str::to_owned).collect()
}

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A program of ours, with an environment that says nothing.
fn program(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(match name {
        "library-req" => env!("CARGO_BIN_EXE_library-req"),
        "library-admin" => env!("CARGO_BIN_EXE_library-admin"),
        _ => env!("CARGO_BIN_EXE_libraryd"),
    });
    command.args(args).env_clear().stdin(Stdio::null());
    command
}

/// An option as --help shows it.
#[derive(Debug)]
struct Opt {
    short: Option<String>,
    long: String,
    value: Option<String>,
    default: Option<String>,
}

impl Opt {
    fn is_of_every_command(&self) -> bool {
        let name = self.long.trim_start_matches('-');
        ConnectArgs::NAMES.contains(&name) || ["help", "version"].contains(&name)
    }
}

/// The help of a program, or of one of its commands.
struct Help {
    program: &'static str,
    command: Option<String>,
    text: String,
    options: Vec<Opt>,
}

impl Help {
    fn of(program_name: &'static str, command: Option<&str>) -> Self {
        let args: Vec<&str> = command.into_iter().chain(["--help"]).collect();
        let output = program(program_name, &args).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {}", said(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let mut options: Vec<Opt> = Vec::new();
        let mut words = String::new();
        for line in text.lines() {
            if line.starts_with("  -") || line.starts_with("      --") {
                words.clear();
                options.push(option(line));
            }
            words = words + " " + line.trim();
            if let (Some(option), Some((_, rest))) =
                (options.last_mut(), words.split_once("[default: "))
            {
                option.default = rest.split_once(']').map(|(default, _)| default.to_owned());
            }
        }
        assert!(!options.is_empty(), "{text}");
        if !options.iter().any(|it| it.long == "--version") {
            // Left out for want of room.
            options.push(option("  -V, --version"));
        }
        Self { program: program_name, command: command.map(str::to_owned), text, options }
    }

    /// Of a program and all its commands.
    fn all(program: &'static str) -> Vec<Self> {
        let whole = Self::of(program, None);
        let commands = whole.words();
        let mut all = vec![whole];
        all.extend(commands.iter().map(|command| Self::of(program, Some(command))));
        all
    }

    /// The words that can follow: its lines `  word ...`.
    fn words(&self) -> Set {
        let words = self.text.lines().filter_map(|line| line.strip_prefix("  "));
        let words = words.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
        words.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
    }

    fn option_names(&self) -> Set {
        let names = self.options.iter().flat_map(|it| it.short.iter().chain([&it.long]));
        names.cloned().collect()
    }

    /// The exit statuses that it tells.
    fn statuses(&self) -> Set {
        let (_, told) = self.text.split_once("Exit status: ").expect("it tells them");
        let numbers = told.split_whitespace().filter(|word| word.parse::<u8>().is_ok());
        set(numbers)
    }

    fn typed(&self) -> String {
        self.command.as_ref().map_or(self.program.to_owned(), |it| format!("{} {it}", self.program))
    }
}

/// `  -a, --address ADDRESS   ...`, `      --ssl   ...`
fn option(line: &str) -> Opt {
    let mut words = line.split_whitespace().peekable();
    let short = words.next_if(|word| !word.starts_with("--"));
    let short = short.map(|word| word.trim_end_matches(',').to_owned());
    let long = words.next().unwrap().to_owned();
    let value = words.next().filter(|word| word.bytes().all(|byte| byte.is_ascii_uppercase()));
    Opt { short, long, value: value.map(str::to_owned), default: None }
}

/// All options of a program by their long names.
fn options(helps: &[Help]) -> BTreeMap<&str, &Opt> {
    helps.iter().flat_map(|help| &help.options).map(|it| (it.long.as_str(), it)).collect()
}

/// Where nothing listens: a command line that is right ends there.
const NO_REDIS: &str = "redis://127.0.0.1:1";

/// A directory with the file that arguments name.
fn workplace() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("returns.txt"), "").unwrap();
    directory
}

/// A value that an option takes, by what the help calls it.
fn sample(value: &str) -> &'static str {
    match value {
        "ACTION" => "return",
        "ADDRESS" => NO_REDIS,
        "BOOK" => "geb",
        "F" => "password",
        "FILE" => "written",
        "ID" => "17-0",
        "LEVEL" => "info",
        "N" | "S" | "SECONDS" => "1",
        "NAME" | "TEXT" => "some",
        "STREAM" => "returns",
        "TIME" => "7d",
        "USER" => "user1",
        "W" => "all",
        _ => panic!("what is a {value}?"),
    }
}

/// A right command line of a command: what follows its name.
fn needed(help: &Help) -> &'static [&'static str] {
    match (help.program, help.command.as_deref()) {
        (_, Some("request" | "return")) => &["user1", "geb"],
        (_, Some("batch")) => &["returns.txt"],
        (_, Some("outcome")) => &["request:17-0"],
        (_, Some("loans" | "where")) => &["some"],
        (_, Some("dead-letters")) => &["list"],
        (_, Some("regroup")) => &["--from", "17-0"],
        ("libraryd", None) => &["worker1", "--exit-if-unavailable"],
        _ => &[],
    }
}

#[test]
fn the_help_of_every_command_fits_a_screen() {
    for help in PROGRAMS.into_iter().flat_map(Help::all) {
        let text = &help.text;
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        // A daemon is not typed at a prompt, and has more to say.
        assert!(text.lines().count() <= 24 || help.program == "libraryd", "{text}");
    }
}

#[test]
fn the_parsers_take_the_options_of_the_help_and_no_command_takes_those_of_another() {
    let directory = workplace();
    fs::write(directory.path().join("password"), "secret\n").unwrap();
    for name in PROGRAMS {
        let helps = Help::all(name);
        let commands =
            helps.iter().filter(|help| help.command.is_some() || help.program == "libraryd");
        for help in commands {
            for (long, option) in options(&helps) {
                let mut names = vec![long];
                names.extend(option.short.as_deref());
                let takes = help.options.iter().any(|it| it.long == long);
                for typed in names {
                    let mut args: Vec<&str> = vec!["--address", NO_REDIS];
                    args.extend(help.command.as_deref());
                    args.extend(needed(help));
                    if takes && long == "--remember" && help.command.as_deref() != Some("batch") {
                        args.extend(["--id", "some"]);
                    }
                    args.push(typed);
                    args.extend(option.value.as_deref().map(sample));
                    let output = program(name, &args).current_dir(&directory).output().unwrap();
                    let is_wrong = output.status.code() == Some(2);
                    assert_eq!(takes, !is_wrong, "{name} {args:?}: {}", said(&output));
                }
            }
        }
    }
}

#[test]
fn who_mistypes_an_option_or_a_command_is_told_the_right_one() {
    for name in PROGRAMS {
        for help in Help::all(name) {
            let typed = help.options.iter().map(|it| it.long.clone()).chain(help.words());
            for right in typed {
                let wrong = format!("{right}x");
                let args: Vec<&str> =
                    help.command.as_deref().into_iter().chain([&*wrong]).collect();
                let output = program(name, &args).output().unwrap();
                let told = said(&output);
                assert!(
                    told.contains(&format!("did you mean {right}?")),
                    "{name} {args:?}: {told}"
                );
                assert_eq!(output.status.code(), Some(2), "{name} {args:?}: {told}");
            }
        }
    }
}

#[test]
fn the_readme_shows_the_help_as_it_is() {
    let readme = source("README.md");
    let shown: Vec<&str> = readme
        .split("```text\n")
        .skip(1)
        .map(|rest| rest.split_once("```").expect("a block ends").0)
        .filter(|block| block.contains("usage: "))
        .collect();
    assert!(shown.len() >= 2, "the README shows how the commands are used");
    let helps: Vec<Help> = PROGRAMS.into_iter().flat_map(Help::all).collect();
    for block in shown {
        assert!(helps.iter().any(|help| help.text == block), "no command says this:\n{block}");
    }
}

// Manual pages.

/// A manual page's source (mdoc).
struct Page(String);

impl Page {
    fn of(program: &str) -> Self {
        let section = if program == "library-req" { 1 } else { 8 };
        Self::read(&format!("{program}.{section}"))
    }

    fn read(name: &str) -> Self {
        Self(source(&format!("src/man/{name}")).replace("\\\n", ""))
    }

    /// The lines of a section.
    fn section(&self, name: &str) -> Vec<&str> {
        let lines = self.0.lines().skip_while(|line| *line != format!(".Sh {name}")).skip(1);
        let lines: Vec<&str> = lines.take_while(|line| !line.starts_with(".Sh ")).collect();
        assert!(!lines.is_empty(), "there is a section {name}");
        lines
    }

    /// The items of its lists whose heads begin with this macro: head and text.
    fn items(&self, begin: &str) -> Vec<(&str, String)> {
        let mut items: Vec<(&str, Vec<&str>)> = Vec::new();
        let mut inside = false;
        for line in self.0.lines() {
            if let Some(head) = line.strip_prefix(".It ") {
                inside = head.starts_with(begin);
                if inside {
                    items.push((head, Vec::new()));
                }
            } else if [".El", ".Sh", ".Ss"].iter().any(|end| line.starts_with(end)) {
                inside = false;
            } else if inside {
                items.last_mut().unwrap().1.push(line);
            }
        }
        items.into_iter().map(|(head, text)| (head, plain(&text))).collect()
    }
}

/// The text of mdoc lines, without macros.
fn plain(lines: &[&str]) -> String {
    const INLINE: [&str; 14] =
        ["Ar", "Cm", "Dv", "Ev", "Fl", "Ic", "Li", "No", "Pa", "Pc", "Po", "Pq", "Xr", "Ns"];
    let mut text = String::new();
    for line in lines {
        let is_macro = line.starts_with('.');
        let mut before = " ";
        for word in line.trim_start_matches('.').split_whitespace() {
            if is_macro && INLINE.contains(&word) {
                before = match word {
                    "Fl" => " -",
                    "Ns" => "",
                    _ => before,
                };
            } else {
                text = text + before + word;
                before = " ";
            }
        }
    }
    text
}

/// The options that mdoc lines name: `Fl -address`, `Fl a`.
fn flags(lines: &[&str]) -> Set {
    let words: Vec<&str> = lines.iter().flat_map(|line| line.split_whitespace()).collect();
    let names = words.windows(2).filter(|pair| pair[0].trim_start_matches('.') == "Fl");
    let names = names.filter(|pair| pair[1].starts_with(|c: char| c == '-' || c.is_alphabetic()));
    names.map(|pair| format!("-{}", pair[1])).collect()
}

#[test]
fn the_manual_explains_every_option_with_its_default_and_no_other() {
    for name in PROGRAMS {
        let helps = Help::all(name);
        let mut known = options(&helps);
        for (head, text) in Page::of(name).items("Fl") {
            let named = flags(&[head]);
            let option = named.iter().find_map(|name| known.remove(name.as_str()));
            let option = option.unwrap_or_else(|| panic!("{name} has no option {head}, or twice"));
            let names = set([&*option.long].into_iter().chain(option.short.as_deref()));
            assert_eq!(named, names, "{name}: {head}");
            assert_eq!(head.contains(" Ar "), option.value.is_some(), "{name}: {head}");
            let default = text.split_once("The default is ").map(|(_, default)| default);
            let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric());
            match (&option.default, default) {
                (None, None) => {}
                (Some(told), Some(text)) if text.strip_prefix(&**told).is_some_and(ends) => {}
                (told, _) => panic!("{name} --help has the default {told:?}, the manual: {text}"),
            }
        }
        assert!(known.is_empty(), "the manual of {name} does not tell {:?}", known.keys());
    }
}

#[test]
fn the_synopsis_names_the_options_that_go_with_each_command() {
    for name in PROGRAMS {
        let helps = Help::all(name);
        let by_short: BTreeMap<&str, &str> = options(&helps)
            .into_values()
            .filter_map(|option| Some((option.short.as_deref()?, option.long.as_str())))
            .collect();
        let page = Page::of(name);
        let lines = page.section("SYNOPSIS");
        let mut forms: BTreeMap<Option<&str>, Set> = BTreeMap::new();
        for form in lines.split(|line| *line == ".Nm").filter(|form| !form.is_empty()) {
            if form[0] == ".Fl h | V" {
                continue;
            }
            let command = form[0].strip_prefix(".Cm ");
            let flags = flags(form).into_iter();
            let flags =
                flags.map(|flag| by_short.get(&*flag).map_or(flag.clone(), |&long| long.into()));
            forms.entry(command).or_default().extend(flags);
        }
        // The whole has no form of its own where there are commands.
        for help in helps.iter().skip(usize::from(helps.len() > 1)) {
            let own = help.options.iter().filter(|it| !it.is_of_every_command());
            let own = set(own.map(|it| it.long.as_str()));
            let mut shown = forms.remove(&help.command.as_deref()).unwrap_or_default();
            shown.retain(|long| own.contains(long) || !ConnectArgs::NAMES.contains(&&long[2..]));
            assert_eq!(shown, own, "{}", help.typed());
        }
        assert!(forms.is_empty(), "{name} has no {:?}", forms.keys());
    }
}

#[test]
fn the_manual_tells_every_exit_status() {
    let Page(overview) = Page::read("library-lending.7");
    let rows: Vec<Vec<&str>> = overview
        .lines()
        .filter(|line| line.contains(" Ta"))
        .map(|line| line.trim_start_matches(".It ").split(" Ta").map(str::trim).collect())
        .collect();
    for name in PROGRAMS {
        let statuses = Help::of(name, None).statuses();
        let page = Page::of(name);
        let items = page.section("EXIT STATUS").into_iter();
        let told = set(items.filter_map(|line| line.strip_prefix(".It ")));
        assert_eq!(told, statuses, "{name}");
        let column = rows[0].iter().position(|head| *head == format!("Sy {name}")).unwrap();
        let told = rows[1..].iter().filter(|row| !row[column].is_empty());
        assert_eq!(set(told.map(|row| row[0])), statuses, "{name} in library-lending(7)");
    }
}

/// That it names all of them, every test sees to that has JSON of library-admin printed.
#[test]
fn the_manual_of_library_admin_names_no_member_of_json_that_is_not_there() {
    let files = ["status", "dead_letters", "regroup", "check/mod", "check/books", "check/counts"];
    let files = files.iter().chain(&["check/events", "check/handoffs", "check/reservations"]);
    let code = files.chain(&["check/ttls"]).map(|file| source(&format!("src/admin/{file}.rs")));
    let code = code.collect::<String>();
    let page = Page::of("library-admin");
    let literals = page.section("JSON").into_iter().filter_map(|line| line.strip_prefix(".Li "));
    let names: Set = set(literals.flat_map(str::split_whitespace).filter(|it| it.len() > 1));
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        assert!(code.contains(&format!("\"{name}\"")), "there is no member {name}");
    }
}

/// A key with a star for what varies, which is in braces in the code and in capitals in the manual.
fn shape(key: &str) -> String {
    let varies = |part: &str| part.starts_with('{') || part.bytes().all(|b| b.is_ascii_uppercase());
    let parts = key.split(':').map(|part| if varies(part) { "*" } else { part });
    parts.collect::<Vec<_>>().join(":")
}

#[test]
fn the_overview_tells_the_keys_the_lists_and_the_causes() {
    let page = Page::read("library-lending.7");
    let told: Set = page
        .items("Li")
        .into_iter()
        .flat_map(|(head, _)| head.split([' ', ',']).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    for list in BookList::ALL.map(BookList::as_str) {
        assert!(told.contains(list), "library-lending(7) does not tell {list}");
    }

    let keys = Keys::new(None);
    let code = source("src/keys.rs");
    let made = code.split('"').filter_map(|text| text.strip_prefix("{}")).map(shape);
    let known: Set = keys.types().iter().map(|(key, _)| (*key).to_owned()).chain(made).collect();
    let section = page.section("KEYS IN REDIS");
    let heads = section.iter().filter_map(|line| line.strip_prefix(".It Li "));
    let heads: Set = heads.flat_map(|head| head.split(" , ")).map(shape).collect();
    assert_eq!(heads, known);

    let events = source("src/event.rs");
    let (_, causes) = events.split_once("pub fn cause(").unwrap();
    let causes = causes.split_once("\n    }\n").unwrap().0.split('"').skip(1).step_by(2);
    let decide = source("lua/decide.lua");
    let broken = decide.lines().filter(|line| line.trim_start().starts_with("broken["));
    let broken = broken.filter_map(|line| line.split('\'').nth(1));
    let causes: Vec<&str> = causes.chain(broken).collect();
    assert!(causes.len() > 15, "{causes:?}");
    for cause in causes {
        assert!(told.contains(cause), "library-lending(7) does not tell {cause}");
    }
}

/// What a formatter says about all pages; nothing if it is not there.
fn complaints(formatter: &str, args: &[&str]) -> Vec<String> {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/man");
    let names = fs::read_dir(&pages).unwrap().map(|entry| entry.unwrap().file_name());
    let mut command = Command::new(formatter);
    command.args(args).args(names).current_dir(&pages).stdin(Stdio::null());
    let Ok(output) = command.output() else {
        println!("there is no {formatter} here");
        return Vec::new();
    };
    // Which other manuals are installed here is no fault of ours.
    let foreign = ["referenced manual not found", "outdated mandoc.db"];
    let said = said(&output);
    let ours = said.lines().filter(|line| !foreign.iter().any(|it| line.contains(it)));
    ours.map(str::to_owned).collect()
}

#[test]
fn mandoc_and_groff_find_no_fault_in_the_manual_pages() {
    assert_eq!(complaints("mandoc", &["-Tlint"]), [""; 0]);
    assert_eq!(complaints("groff", &["-ww", "-mdoc", "-Tutf8", "-z"]), [""; 0]);
}

// Completions.

/// What a shell offers at the end of a command line, in this directory.
type Offer = fn(&Path, &str) -> Set;

const SHELLS: [(&str, Offer); 3] = [("bash", bash), ("zsh", zsh), ("fish", fish)];

/// The completion of the program that a command line begins with.
fn completion(line: &str, shell: &str) -> PathBuf {
    let name = line.split_whitespace().next().unwrap();
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/completions/{name}.{shell}"))
}

/// The lines that a shell prints.
fn run(shell: &str, directory: &Path, args: &[&str]) -> Set {
    // A completion that waits for something must not wait for ever.
    let mut command = Command::new("timeout");
    command.args(["60", shell]).args(args).current_dir(directory).env("HOME", directory);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{shell} {args:?}: {}",
        said(&output)
    );
    let lines = String::from_utf8(output.stdout).unwrap();
    set(lines.lines().map(str::trim).filter(|line| !line.is_empty()))
}

fn bash(directory: &Path, line: &str) -> Set {
    // The words as readline gives them, which breaks them at `=` too.
    const SCRIPT: &str = r#"
        source "$1" && shift || exit
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        [[ $(complete -p "$1") =~ -F\ ([^ ]+) ]] && "${BASH_REMATCH[1]}"
        ((${#COMPREPLY[@]} == 0)) || printf '%s\n' "${COMPREPLY[@]}""#;
    let words = line.replace('=', " = ");
    let words = words.strip_suffix("= ").map_or(words.clone(), |words| format!("{words}="));
    let completion = completion(line, "bash");
    let mut args = vec!["--norc", "-c", SCRIPT, "bash", completion.to_str().unwrap()];
    args.extend(words.split(' '));
    run("bash", directory, &args)
}

fn fish(directory: &Path, line: &str) -> Set {
    const SCRIPT: &str = "source $argv[1]; complete -C $argv[2]";
    let completion = completion(line, "fish");
    let args = ["--no-config", "-c", SCRIPT, completion.to_str().unwrap(), line];
    let described = run("fish", directory, &args);
    set(described.iter().map(|line| line.split('\t').next().unwrap()))
}

fn zsh(directory: &Path, line: &str) -> Set {
    // Completions work in an interactive shell only: in one on a terminal of its own, in which
    // compadd, which all of them end with, notes what it is given. What compinit finds it keeps in
    // HOME, which is the workplace. To show what does not fit that terminal it would ask first.
    const SCRIPT: &str = r#"
        zmodload zsh/zpty && zpty shell zsh -f -i && zpty -w shell "
            fpath=(${(q)1} \$fpath) PS1=
            autoload -U compinit && compinit -u -C
            compadd() {
                if [[ \${@[1,(i)(-|--)]} != *-(O|A|D)\\ * ]] {
                    local -a hits
                    builtin compadd -O hits \"\$@\"
                    print -rl -- \$hits >>${(q)1}/offered
                }
                builtin compadd \"\$@\"
            }
            comppostfuncs=(exit)
            setopt no_auto_list
            bindkey '^I' complete-word"
        zpty -w -n shell "$2"$'\t'
        while zpty -r shell said; do :; done
        ! [[ -e $1/offered ]] || cat $1/offered"#;
    let functions = tempfile::tempdir().unwrap();
    for program in PROGRAMS {
        let function = functions.path().join(format!("_{program}"));
        fs::copy(completion(program, "zsh"), function).unwrap();
    }
    let functions = functions.path().to_str().unwrap();
    run("zsh", directory, &["-f", "-c", SCRIPT, "zsh", functions, line])
}

/// Calls `each` with every shell that is here, and every help.
fn in_every_shell(each: impl Fn(&str, &dyn Fn(&str) -> Set, &Help)) {
    let helps: Vec<Help> = PROGRAMS.into_iter().flat_map(Help::all).collect();
    for (shell, offer) in SHELLS {
        if Command::new(shell).args(["-c", "exit"]).status().is_err() {
            println!("there is no {shell} here");
            continue;
        }
        let directory = workplace();
        for help in &helps {
            each(shell, &|line| offer(directory.path(), line), help);
        }
    }
}

#[test]
fn every_shell_offers_the_options_of_each_command_and_no_other() {
    in_every_shell(|shell, offer, help| {
        let line = format!("{} -", help.typed());
        assert_eq!(offer(&line), help.option_names(), "{shell}: {line}");
    });
}

#[test]
fn every_shell_offers_the_commands_and_the_files_that_can_follow() {
    in_every_shell(|shell, offer, help| {
        let line = format!("{} ", help.typed());
        let expected = match &help.command {
            Some(command) if command == "batch" => set(["returns.txt"]),
            _ => help.words(),
        };
        let mut words = offer(&line);
        // Where nothing else can follow, zsh offers the options at once.
        words.retain(|word| !word.starts_with('-'));
        assert_eq!(words, expected, "{shell}: {line}");
    });
}

#[test]
fn every_shell_offers_files_where_an_option_takes_one_and_the_words_where_it_takes_one_of_some() {
    let seen = RefCell::new(BTreeSet::new());
    in_every_shell(|shell, offer, help| {
        for option in &help.options {
            let Some(value) = option.value.as_deref() else { continue };
            // Once is enough for an option of several commands.
            if !seen.borrow_mut().insert(format!("{shell} {} {}", help.program, option.long)) {
                continue;
            }
            let words: &[&str] = match option.long.as_str() {
                "--stream" => &["requests", "returns", "handoffs"],
                "--log-level" => &["error", "warn", "info", "debug", "trace"],
                "--log-outcomes" => &["all", "refused", "none"],
                "--address" => &["redis://", "returns.txt"],
                _ if ["F", "FILE"].contains(&value) => &["returns.txt"],
                _ => &[],
            };
            for separator in [" ", "="].iter().take(1 + words.len().min(1)) {
                let line = format!("{} {}{separator}", help.typed(), option.long);
                let offered = offer(&line);
                // fish offers the whole argument.
                let offered: BTreeSet<&str> =
                    offered.iter().filter_map(|word| word.rsplit('=').next()).collect();
                for word in words {
                    assert!(offered.contains(word), "{shell}: {line}{word}: {offered:?}");
                }
                let is_file = words.contains(&"returns.txt");
                assert_eq!(offered.contains("returns.txt"), is_file, "{shell}: {line}");
            }
        }
    });
}

#[test]
fn the_sources_of_all_completions_name_every_option() {
    // For machines without these shells.
    for name in PROGRAMS {
        let known: Set = options(&Help::all(name)).into_keys().map(str::to_owned).collect();
        for (shell, _) in SHELLS {
            let text = fs::read_to_string(completion(name, shell)).unwrap();
            let code = text.lines().map(str::trim_start).filter(|line| match shell {
                "fish" => line.starts_with("complete "),
                _ => !line.starts_with('#'),
            });
            let code = code.collect::<Vec<_>>().join("\n").replace(" -l ", " --");
            let letters = |c: char| c.is_ascii_lowercase() || c == '-';
            let named = code.match_indices("--").map(|(at, _)| {
                let rest = &code[at..];
                &rest[..rest.find(|c: char| !letters(c)).unwrap_or(rest.len())]
            });
            let named = set(named.filter(|name| name.len() > 2));
            assert_eq!(named, known, "{name}.{shell}");
        }
    }
}
