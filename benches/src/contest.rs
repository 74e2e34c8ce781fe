//! Rows of contenders that take turns, and the table that they end up in.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What a round measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Time for one run: less is better.
    Time,
    /// Operations a second: more is better.
    OperationsPerSecond,
    /// Bits a second: more is better.
    BitsPerSecond,
    /// Bytes of memory: fewer are better.
    Bytes,
    /// Times a second: fewer are better.
    PerSecond,
    /// Times: fewer are better.
    Count,
    /// How far off, in millionths: less is better.
    PartsPerMillion,
    /// A distance of levels: more is better.
    Decibel,
}

/// Where rows go as soon as they are measured: report, group, and its rows so far.
static REPORT: Mutex<Option<(PathBuf, &'static str, Vec<Row>)>> = Mutex::new(None);

/// Rows from now on belong to a group, and are written to the report one by one: what was measured before a run is cut
/// short is there.
pub fn begin(report: &Path, group: &'static str) {
    *REPORT.lock().unwrap() = Some((report.to_path_buf(), group, Vec::new()));
}

/// One contender of a row and what it measured, a value a round, in seconds or per second.
#[derive(Debug, Clone)]
pub struct Score {
    /// Its name and version.
    pub name: String,
    /// A value a round.
    pub rounds: Vec<f64>,
}

impl Score {
    /// The median of the rounds.
    pub fn median(&self) -> f64 {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.is_empty() {
            f64::NAN
        } else if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        }
    }

    fn range(&self) -> (f64, f64) {
        self.rounds.iter().fold((f64::INFINITY, 0.0), |(low, high), value| (value.min(low), value.max(high)))
    }
}

/// A row: one task, done by loopbox and by its peers.
#[derive(Debug, Clone)]
pub struct Row {
    /// The task.
    pub name: String,
    /// What is measured.
    pub unit: Unit,
    /// Loopbox first.
    pub scores: Vec<Score>,
    /// The ratio over the best peer that the project aims at, where there is a goal; peers whose name begins with the
    /// given word count.
    pub goal: Option<(f64, &'static str)>,
    /// The figure itself that the project aims at, where there is one.
    pub aim: Option<f64>,
}

impl Row {
    /// Puts it into the report: each row that was measured goes this way.
    pub fn recorded(self) -> Self {
        if let Some((report, group, rows)) = REPORT.lock().unwrap().as_mut() {
            rows.push(self.clone());
            write_section(report, group, rows);
        }
        self
    }
}

type Round<'a> = Box<dyn FnMut() -> f64 + 'a>;

/// A row in the making.
pub struct Contest<'a> {
    name: String,
    unit: Unit,
    contenders: Vec<(String, Round<'a>)>,
    goal: Option<(f64, &'static str)>,
    aim: Option<f64>,
}

impl<'a> Contest<'a> {
    /// A task without contenders.
    pub fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self { name: name.into(), unit, contenders: Vec::new(), goal: None, aim: None }
    }

    /// The goal: so many times better than each peer whose name contains the word.
    pub fn goal(mut self, ratio: f64, against: &'static str) -> Self {
        self.goal = Some((ratio, against));
        self
    }

    /// The goal: this figure, or a better one.
    pub fn aim(mut self, value: f64) -> Self {
        self.aim = Some(value);
        self
    }

    /// A contender, whose rounds return the value themselves (seconds, or a rate).
    pub fn value(mut self, name: impl Into<String>, round: impl FnMut() -> f64 + 'a) -> Self {
        self.contenders.push((name.into(), Box::new(round)));
        self
    }

    /// A contender, whose rounds are timed.
    pub fn timed(self, name: impl Into<String>, mut round: impl FnMut() + 'a) -> Self {
        self.value(name, move || {
            let start = Instant::now();
            round();
            start.elapsed().as_secs_f64()
        })
    }

    /// Lets them take turns: one round to warm up, then `rounds`.
    pub fn run(mut self, rounds: usize) -> Row {
        eprint!("  {} ", self.name);
        let start = Instant::now();
        let mut scores: Vec<Score> =
            self.contenders.iter().map(|(name, _)| Score { name: name.clone(), rounds: Vec::new() }).collect();
        for round in 0..=rounds {
            for ((_, run), score) in self.contenders.iter_mut().zip(&mut scores) {
                let value = run();
                if round > 0 {
                    score.rounds.push(value);
                }
            }
            eprint!(".");
            // A row that takes very long has said enough after three rounds.
            if round >= 3 && start.elapsed() > Duration::from_secs(120) {
                break;
            }
        }
        eprintln!();
        for score in &scores {
            eprintln!("    {:24} {}", score.name, self.unit.shown(score.median()));
        }
        Row { name: self.name, unit: self.unit, scores, goal: self.goal, aim: self.aim }.recorded()
    }
}

impl Unit {
    /// A figure for people.
    pub fn shown(self, value: f64) -> String {
        match self {
            Self::Time if value < 0.1 => format!("{:.2} ms", value * 1e3),
            Self::Time => format!("{value:.2} s"),
            Self::OperationsPerSecond => format!("{:.1} k/s", value / 1e3),
            Self::BitsPerSecond => format!("{:.1} Gbit/s", value / 1e9),
            Self::Bytes => format!("{:.2} MB", value / 1e6),
            Self::PerSecond => format!("{value:.1}/s"),
            Self::Count => format!("{value:.0}"),
            Self::PartsPerMillion => format!("{value:.1} ppm"),
            Self::Decibel => format!("{value:.1} dB"),
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Self::OperationsPerSecond | Self::BitsPerSecond | Self::Decibel)
    }
}

/// How many times better the first is than the second.
fn ratio(unit: Unit, ours: f64, theirs: f64) -> f64 {
    match unit {
        _ if ours == theirs => 1.0,
        Unit::Decibel => 10f64.powf((ours - theirs) / 20.0),
        _ if unit.more_is_better() => ours / theirs,
        _ => theirs / ours,
    }
}

fn table(rows: &[Row]) -> String {
    let mut out = String::from(
        "| task | loopbox (spread) | peer | its figure (spread) | loopbox is better by | goal |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let Some((ours, peers)) = row.scores.split_first() else { continue };
        let figure = |score: &Score| {
            let (low, high) = score.range();
            format!("{} ({}–{})", row.unit.shown(score.median()), row.unit.shown(low), row.unit.shown(high))
        };
        let aim = row.aim.map_or(String::new(), |aim| {
            let (sign, met) = match row.unit.more_is_better() {
                true => ("≥", ours.median() >= aim),
                false => ("≤", ours.median() <= aim),
            };
            format!("{sign} {} {}", row.unit.shown(aim), if met { "met" } else { "**missed**" })
        });
        if peers.is_empty() {
            let _ = writeln!(out, "| {} | {} | none |  |  | {aim} |", row.name, figure(ours));
        }
        for (n, peer) in peers.iter().enumerate() {
            let (task, own) = if n == 0 { (row.name.as_str(), figure(ours)) } else { ("", String::new()) };
            let by = ratio(row.unit, ours.median(), peer.median());
            let goal = match row.goal {
                Some((goal, word)) if peer.name.contains(word) || word.is_empty() => {
                    format!("{goal} {}", if by >= goal { "met" } else { "**missed**" })
                }
                _ if n == 0 => aim.clone(),
                _ => String::new(),
            };
            let _ = writeln!(out, "| {task} | {own} | {} | {} | {by:.2} × | {goal} |", peer.name, figure(peer));
        }
    }
    out
}

/// Puts the rows of a group into the report, between its markers, and leaves all else of it as it is.
fn write_section(report: &Path, group: &str, rows: &[Row]) {
    let begin = format!("<!-- measured: {group} -->\n");
    let end = "<!-- end -->\n";
    let old = std::fs::read_to_string(report).unwrap_or_default();
    let section = format!("{begin}{}{end}", table(rows));
    let new = match old.split_once(&begin) {
        Some((before, rest)) => {
            let after = rest.split_once(end).map_or("", |(_, after)| after);
            format!("{before}{section}{after}")
        }
        None => format!("{old}\n## {group}\n\n{section}"),
    };
    std::fs::write(report, new).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_time_and_more_operations_are_better() {
        assert!((ratio(Unit::Time, 1.0, 3.0) - 3.0).abs() < 1e-9);
        assert!((ratio(Unit::OperationsPerSecond, 6.0, 3.0) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_section_is_replaced_where_it_stands() {
        let folder = rig::Scratch::new("report");
        let report = folder.join("performance.md");
        std::fs::write(&report, "before\n<!-- measured: disk -->\nold\n<!-- end -->\nafter\n").unwrap();
        let scores = vec![
            Score { name: "loopbox".into(), rounds: vec![1.0, 3.0, 2.0] },
            Score { name: "peer".into(), rounds: vec![8.0, 8.0] },
        ];
        let row = Row { name: "task".into(), unit: Unit::Time, scores, goal: Some((3.0, "peer")), aim: None };
        write_section(&report, "disk", &[row]);
        let text = std::fs::read_to_string(&report).unwrap();
        assert!(text.starts_with("before\n<!-- measured: disk -->\n| task"), "{text}");
        assert!(text.ends_with("<!-- end -->\nafter\n") && !text.contains("old"), "{text}");
        assert!(text.contains("| 4.00 × | 3 met |"), "{text}");
        let alone = Row {
            name: "alone".into(),
            unit: Unit::Time,
            scores: vec![Score { name: "loopbox".into(), rounds: vec![2.0] }],
            goal: None,
            aim: Some(1.5),
        };
        assert!(table(&[alone]).contains("| alone | 2.00 s (2.00 s–2.00 s) | none |  |  | ≤ 1.50 s **missed** |"));
    }
}
