//! The figures: collected, printed as a table, written as JSON.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use crate::common::Redis;

/// What a figure is held against.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// At least so much, and better so much.
    AtLeast(f64, f64),
    /// At most so much, and better so much.
    AtMost(f64, f64),
    /// Reported only.
    Nothing,
}

/// One line of the table.
#[derive(Debug)]
pub struct Row {
    pub figure: String,
    pub of: String,
    pub value: f64,
    pub unit: &'static str,
    /// What it is compared with, in the same unit.
    pub against: Option<f64>,
    /// Of the ratio where there is one, else of the value.
    pub wanted: Wanted,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.against.map(|against| self.value / against)
    }

    fn verdict(&self) -> &'static str {
        let judged = self.ratio().unwrap_or(self.value);
        match self.wanted {
            Wanted::Nothing => "",
            Wanted::AtLeast(_, aim) if judged >= aim => "aim",
            Wanted::AtMost(_, aim) if judged <= aim => "aim",
            Wanted::AtLeast(least, _) if judged >= least => "ok",
            Wanted::AtMost(most, _) if judged <= most => "ok",
            _ => "MISSED",
        }
    }
}

pub struct Report {
    head: Vec<(&'static str, String)>,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(redis: &Redis, quick: bool, runs: usize) -> Self {
        let info: String = redis.ask(&["INFO", "server"]);
        let redis_version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        let head = vec![
            ("libraryd", env!("CARGO_PKG_VERSION").to_owned()),
            ("commit", output("git", &["describe", "--always", "--dirty"])),
            ("redis", redis_version.unwrap_or("?").trim().to_owned()),
            ("rustc", output("rustc", &["--version"])),
            ("cpu", proc_line("/proc/cpuinfo", "model name")),
            ("cores", std::thread::available_parallelism().map_or(0, usize::from).to_string()),
            ("kernel", output("uname", &["-sr"])),
            ("load", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()),
            ("runs", format!("{runs}{}", if quick { ", quick" } else { "" })),
        ];
        let report = Self { head, rows: Vec::new() };
        for (name, value) in &report.head {
            println!("{name:<9} {value}");
        }
        report
    }

    /// A heading for what follows.
    pub fn part(&self, title: &str) {
        println!("\n{title}");
        println!(
            "  {:<22} {:<26} {:>10} {:>10} {:>7}  {:<7} wanted",
            "figure", "of", "value", "against", "ratio", "",
        );
    }

    /// Prints a row and keeps it for the JSON.
    pub fn add(&mut self, row: Row) {
        let number = |value: f64| match value {
            value if value >= 1_000.0 => format!("{value:.0}"),
            value => format!("{value:.2}"),
        };
        let wanted = match row.wanted {
            Wanted::AtLeast(least, aim) => format!(">= {least}, better {aim}"),
            Wanted::AtMost(most, aim) => format!("<= {most}, better {aim}"),
            Wanted::Nothing => String::new(),
        };
        let line = format!(
            "  {:<22} {:<26} {:>10} {:>10} {:>7}  {:<7} {wanted}",
            format!("{} ({})", row.figure, row.unit),
            row.of,
            number(row.value),
            row.against.map(number).unwrap_or_default(),
            row.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            row.verdict(),
        );
        println!("{}", line.trim_end());
        self.rows.push(row);
    }

    /// How many figures miss what is wanted.
    pub fn missed(&self) -> usize {
        self.rows.iter().filter(|row| row.verdict() == "MISSED").count()
    }

    pub fn to_json(&self) -> String {
        let mut json = String::from("{\n");
        for (name, value) in &self.head {
            let _ = writeln!(json, "  {name:?}: {value:?},");
        }
        json.push_str("  \"figures\": [\n");
        for (n, row) in self.rows.iter().enumerate() {
            let (least, aim) = match row.wanted {
                Wanted::AtLeast(least, aim) => (format!("\">= {least}\""), aim.to_string()),
                Wanted::AtMost(most, aim) => (format!("\"<= {most}\""), aim.to_string()),
                Wanted::Nothing => ("null".into(), "null".into()),
            };
            let or_null = |value: Option<f64>| value.map_or("null".into(), |v| format!("{v:.4}"));
            let _ = writeln!(
                json,
                "    {{\"figure\": {:?}, \"of\": {:?}, \"value\": {}, \"unit\": {:?}, \
                 \"against\": {}, \"ratio\": {}, \"wanted\": {least}, \"aim\": {aim}, \
                 \"verdict\": {:?}}}{}",
                row.figure,
                row.of,
                or_null(Some(row.value).filter(|value| value.is_finite())),
                row.unit,
                or_null(row.against),
                or_null(row.ratio()),
                row.verdict(),
                if n + 1 < self.rows.len() { "," } else { "" },
            );
        }
        json.push_str("  ]\n}\n");
        json
    }
}

/// The middle one; of an even number the lower.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    percentile(values, 50)
}

pub fn percentile(values: impl IntoIterator<Item = f64>, percent: usize) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * percent / 100]
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or("?".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn proc_line(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_once(':')).map_or("?".into(), |(_, v)| v.trim().to_owned())
}
