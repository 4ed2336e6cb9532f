//! The tables, as Markdown.

use std::fmt::Write;

use super::{ArmReport, CaseReport, Comparison, GoalRow, Measured, Report, Scope, Setup};
use crate::compare::{Measure, Placement};
use crate::stats::{Estimate, LEAST};

/// What is shown of a missing value.
pub(super) const NOTHING: &str = "–";

/// All tables of a run.
pub(crate) fn markdown(report: &Report) -> String {
    let mut text = String::new();
    push(&mut text, &setup(&report.setup));
    push(&mut text, "\n## Goals\n\n");
    push(&mut text, &table(&GOAL_HEADS, &goal_rows(&report.goals)));
    for case in &report.cases {
        push(&mut text, &format!("\n## {}\n\n", heading(case)));
        push(&mut text, &table(&arm_heads(case), &arm_rows(case)));
        let rows = comparison_rows(case);
        if !rows.is_empty() {
            push(&mut text, "\n");
            push(&mut text, &table(&COMPARISON_HEADS, &rows));
        }
        for problem in problems(case) {
            push(&mut text, &format!("\n{problem}\n"));
        }
    }
    text
}

fn push(text: &mut String, more: &str) {
    text.push_str(more);
}

pub(super) fn heading(case: &CaseReport) -> String {
    format!("{} (`{}`)", case.title, case.id)
}

/// What was not measured, a sentence each.
pub(super) fn problems(case: &CaseReport) -> impl Iterator<Item = String> {
    case.problems.iter().map(|problem| {
        let how = match problem.is_missing {
            true => "not available",
            false => "FAILED",
        };
        format!("{}: {how}: {}", problem.arm, problem.cause.trim())
    })
}

fn setup(setup: &Setup) -> String {
    let mut text = format!("# {}\n\n", title(setup));
    for (what, value) in setup_rows(setup) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "- {what}: {value}");
    }
    text
}

pub(super) fn title(setup: &Setup) -> &'static str {
    match setup.quick {
        true => "sluice-bench compare --quick: a QUICK run, few pairs, not a result",
        false => "sluice-bench compare",
    }
}

pub(super) fn setup_rows(setup: &Setup) -> Vec<(String, String)> {
    let [first, second] = setup.cpus;
    let quick = if setup.quick { " (quick)" } else { "" };
    let mut rows = vec![
        ("date", format!("{}, {:.0} min", setup.date, setup.minutes)),
        ("commit", setup.commit.clone()),
        ("kernel", setup.kernel.clone()),
        ("CPU", format!("{}, {} of them", setup.cpu, setup.cpu_count)),
        (
            "samples",
            format!("{} pairs{quick}, {} s each", setup.pairs, setup.seconds),
        ),
        (
            "placement",
            format!(
                "senders on CPU {first}; receivers, and what forwards by itself, on CPU {second}; \
                 \"together\": receivers on CPU {first}, too; \"one CPU\": all on CPU {second}"
            ),
        ),
        (
            "load averages",
            format!("{} before, {} after", setup.load[0], setup.load[1]),
        ),
    ]
    .into_iter()
    .map(|(what, value)| (what.to_owned(), value))
    .collect::<Vec<_>>();
    let versions = setup.versions.iter();
    rows.extend(versions.map(|(what, version)| (what.clone(), version.clone())));
    rows
}

pub(super) const GOAL_HEADS: [&str; 9] = [
    "figure",
    "against",
    "placement",
    "measured",
    "near",
    "far",
    "goal",
    "stretch",
    "verdict",
];

pub(super) fn goal_rows(goals: &[GoalRow]) -> Vec<Vec<String>> {
    let row = |goal: &GoalRow| {
        let of = |part: fn(&Measured) -> Option<Estimate>| {
            interval(goal.measured.as_ref().and_then(part).as_ref())
        };
        let times = if goal.against.is_some() { " x" } else { "" };
        let word = match goal.measure.better() {
            crate::compare::Better::Higher => "",
            crate::compare::Better::Lower => "at most ",
        };
        let limit = |value: f64| format!("{word}{}{times}", number(value));
        vec![
            goal.figure.clone(),
            goal.against.clone().unwrap_or_else(|| NOTHING.into()),
            scope(goal.scope).into(),
            of(|measured| Some(measured.all)),
            of(|measured| measured.near),
            of(|measured| measured.far),
            limit(goal.goal),
            goal.stretch.map_or_else(|| NOTHING.into(), limit),
            goal.verdict
                .map_or("not measured", crate::compare::Verdict::name)
                .into(),
        ]
    };
    goals.iter().map(row).collect()
}

fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Same => "same",
        Scope::Best => "best",
    }
}

pub(super) fn placement(placement: Placement) -> &'static str {
    match placement {
        Placement::Apart => "apart",
        Placement::Together => "together",
        Placement::OneCpu => "one CPU",
    }
}

pub(super) fn arm_heads(case: &CaseReport) -> Vec<String> {
    let fixed = ["design", "placement"].map(str::to_owned).into_iter();
    let measures = measures(case).into_iter();
    let measured = measures.map(|measure| format!("{}, {}", measure.name(), measure.unit()));
    fixed
        .chain(measured)
        .chain(["samples".to_owned()])
        .collect()
}

/// What any arm of a case has.
fn measures(case: &CaseReport) -> Vec<Measure> {
    let all = case.arms.iter().flat_map(|arm| arm.medians.keys());
    let mut all: Vec<_> = all.copied().collect();
    all.sort_unstable();
    all.dedup();
    all
}

pub(super) fn arm_rows(case: &CaseReport) -> Vec<Vec<String>> {
    let measures = measures(case);
    let row = |arm: &ArmReport| {
        let cells = measures.iter().map(|measure| {
            let median = arm.medians.get(measure);
            median.map_or_else(|| NOTHING.into(), |value| number(*value))
        });
        let first = [arm.label.clone(), placement(arm.placement).to_owned()];
        first
            .into_iter()
            .chain(cells)
            .chain([arm.samples.len().to_string()])
            .collect()
    };
    case.arms.iter().map(row).collect()
}

pub(super) const COMPARISON_HEADS: [&str; 7] = [
    "ratio of",
    "to",
    "measure",
    "placement",
    "all",
    "near",
    "far",
];

pub(super) fn comparison_rows(case: &CaseReport) -> Vec<Vec<String>> {
    let row = |row: &Comparison| {
        let placement = match row.scope {
            Scope::Same => "same".to_owned(),
            Scope::Best => {
                let [own, other] = row.placements.map(placement);
                format!("best: {own}, the other {other}")
            }
        };
        vec![
            row.of.clone(),
            row.against.clone(),
            row.measure.name().into(),
            placement,
            interval(Some(&row.ratio.all)),
            interval(row.ratio.near.as_ref()),
            interval(row.ratio.far.as_ref()),
        ]
    };
    case.comparisons.iter().map(row).collect()
}

/// The value, its 95 % interval, and of how many.
fn interval(estimate: Option<&Estimate>) -> String {
    match estimate {
        None => NOTHING.into(),
        Some(estimate) if estimate.n < LEAST => {
            format!("{} (n={})", number(estimate.value), estimate.n)
        }
        Some(Estimate {
            value,
            low,
            high,
            n,
        }) => {
            let [value, low, high] = [value, low, high].map(|value| number(*value));
            format!("{value} [{low} to {high}] (n={n})")
        }
    }
}

/// Three digits that count.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        size if size >= 0.01 => format!("{value:.3}"),
        0.0 => "0".into(),
        _ => format!("{value:.4}"),
    }
}

/// A table.
pub(crate) fn table<T: AsRef<str>>(heads: &[T], rows: &[Vec<String>]) -> String {
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<_> = cells.map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut text = line(&mut heads.iter().map(AsRef::as_ref));
    text += &line(&mut heads.iter().map(|_| "---"));
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_count() {
        for (value, text) in [
            (1234.4, "1234"),
            (99.96, "100"),
            (12.345, "12.3"),
            (1.005, "1.00"),
            (0.5, "0.50"),
            (0.0456, "0.046"),
            (0.00123, "0.0012"),
            (0.0, "0"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_bar_in_a_cell_is_no_column() {
        let text = table(&["a"], &[vec!["x|y".to_owned()]]);
        assert_eq!(text, "| a |\n| --- |\n| x\\|y |\n");
    }
}
